"""Who may connect: tokens, origins, and how fast."""

import dataclasses
import enum
import hmac
import secrets
import time
import urllib.parse
from collections.abc import Callable

from fdjax.serve.settings import ServeSettings, is_loopback


class Role(enum.IntEnum):
    """What a token allows; each role may do what those before it may."""

    NONE = 0
    """The page, and whether the server lives."""

    PLAYER = 1
    """A session of one's own, and videos."""

    DIRECTOR = 2
    """Watching, steering and listing the sessions of others."""


def with_tokens(settings: ServeSettings) -> ServeSettings:
    """Settings with the tokens that are needed: all but this machine's own need them.

    A token for directors is needed wherever there is one for players.
    """
    if settings.is_local and settings.token is None and settings.director_token is None:
        return settings
    return dataclasses.replace(
        settings,
        token=settings.token or secrets.token_urlsafe(18),
        director_token=settings.director_token or secrets.token_urlsafe(18),
    )


def role_of(token: str | None, settings: ServeSettings) -> Role:
    """The role of whoever gives a token, compared in constant time."""
    if settings.token is None and settings.director_token is None:
        return Role.DIRECTOR
    given = (token or "").encode()
    for expected, role in (
        (settings.director_token, Role.DIRECTOR),
        (settings.token, Role.PLAYER),
    ):
        if expected is not None and hmac.compare_digest(given, expected.encode()):
            return role
    return Role.NONE


def bearer(header: str | None) -> str | None:
    """The token of an `Authorization: Bearer` header."""
    kind, _, token = (header or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def is_allowed_origin(
    origin: str | None, host: str | None, settings: ServeSettings
) -> bool:
    """Whether a page may connect.

    A browser says of which site the page is; that must be the one it connects to. A
    server without a token must be asked for by a name of this machine: else a foreign
    name that points here would make every site an own one.

    Args:
        origin: The header; programs that are no browsers send none.
        host: The header.
        settings: Of the server.
    """
    name = urllib.parse.urlsplit(f"//{host or ''}").hostname or ""
    if settings.token is None and not is_loopback(name):
        return False
    if origin is None or origin in settings.origins:
        return True
    return urllib.parse.urlsplit(origin).netloc.lower() == (host or "").lower()


class RateLimit:
    """A bucket that fills at a constant rate; every message takes one token."""

    def __init__(
        self,
        rate: float,
        burst: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A full bucket.

        Args:
            rate: Tokens per second.
            burst: The most that it holds.
            clock: Seconds that never run back.
        """
        self._rate, self._burst, self._clock = rate, burst, clock
        self._level, self._since = burst, clock()

    def take(self) -> bool:
        """Whether there was a token."""
        now = self._clock()
        filled = self._level + (now - self._since) * self._rate
        self._level, self._since = min(self._burst, filled), now
        if self._level < 1:
            return False
        self._level -= 1
        return True
