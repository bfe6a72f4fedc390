"""Who plays, who waits, and who has to go; all of it on the event loop."""

import asyncio
import dataclasses
import hmac
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from fdjax.serve.engine import Engine
from fdjax.serve.live import Live
from fdjax.serve.outbox import Outbox
from fdjax.serve.parcels import Parcels
from fdjax.serve.settings import ServeSettings

_GRACE = 30.0  # seconds that a session waits for a page whose connection broke
_SHORT_GRACE = 3.0  # where others wait for a session
_LONGEST_SILENCE = 15.0  # seconds without a frame acknowledged
_log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Guest:
    """One who has a session, or waits for one.

    Attributes:
        outbox: Of the connection.
        close: Closes it with a code and a reason.
        live: The session, once there is one.
        last_input: Second of the clock.
        left: Second at which the connection broke; None: it stands.
    """

    outbox: Outbox
    close: Callable[[int, str], None]
    live: Live | None = None
    last_input: float = 0.0
    left: float | None = None


class Lobby:
    """Gives sessions in the order of arrival, at most so many at a time."""

    def __init__(
        self,
        engine: Engine,
        settings: ServeSettings,
        parcels: Parcels,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Empty.

        Args:
            engine: Runs the sessions.
            settings: Limits.
            parcels: Files from and for players.
            clock: Seconds that never run back.
        """
        self.playing: list[Guest] = []
        self.waiting: list[Guest] = []
        self.num_began = self.num_refused = 0
        self._engine, self._settings, self._clock = engine, settings, clock
        self._parcels = parcels

    def enter(self, guest: Guest) -> None:
        """Gives a session, or a place in the queue; sends away where that is full."""
        guest.last_input = self._clock()
        if len(self.waiting) >= self._settings.max_waiting and not self._has_room:
            self.num_refused += 1
            guest.close(4503, "The server and its queue are full; come back later.")
            return
        self.waiting.append(guest)
        self.look()

    def resume(self, guest: Guest, secret: str) -> bool:
        """Takes up the session of a connection that broke, or of another page.

        Returns:
            Whether there is one.
        """
        given = secret.encode()
        for place, other in enumerate(self.playing):
            live = other.live
            if live is None or not hmac.compare_digest(live.secret.encode(), given):
                continue
            if other.left is None:
                other.close(4409, "The session was opened in another page.")
            self.playing[place] = guest
            self._attach(guest, live)
            return True
        return False

    def leave(self, guest: Guest, *, at_once: bool = False) -> None:
        """Notes that a connection has ended; its session waits a while for the next.

        Args:
            guest: Whose connection it was.
            at_once: The player left on purpose.
        """
        if guest in self.waiting:
            self.waiting.remove(guest)
            self.look()
        elif guest in self.playing and guest.live is not None:
            live, outbox = guest.live, guest.outbox

            def detach() -> None:
                if live.player is outbox:
                    live.player = None

            self._engine.call(detach)
            guest.left = self._clock()
            if at_once:
                self._end(guest)

    def end(self, session: str) -> bool:
        """Ends a session by its public id; whether there was one."""
        for guest in self.playing:
            if guest.live is not None and guest.live.id == session:
                guest.close(4410, "The operator has ended the session.")
                self._end(guest)
                return True
        return False

    def find(self, session: str) -> Live | None:
        """A session by its public id."""
        lives = [guest.live for guest in self.playing if guest.live is not None]
        return next((live for live in lives if live.id == session), None)

    def look(self) -> None:
        """Gives free sessions to those who wait, and tells the others their places."""
        while self.waiting and self._has_room:
            self._admit(self.waiting.pop(0))
        for position, guest in enumerate(self.waiting, start=1):
            guest.outbox.tell(self._place(position))

    async def watch(self) -> None:
        """Ends sessions whose time is over; runs as long as the server."""
        while True:
            await asyncio.sleep(min(1.0, self._settings.idle_timeout / 4))
            self.sweep()

    def sweep(self) -> None:
        """Ends sessions without input, and those whose page is not there any more."""
        now = self._clock()
        for guest in list(self.playing):
            grace = _SHORT_GRACE if self.waiting else _GRACE
            if guest.left is not None and now - guest.left > grace:
                self._end(guest)
            elif guest.left is None and guest.outbox.silence > _LONGEST_SILENCE:
                guest.close(4408, "No frame was acknowledged any more.")
                self._end(guest)
            elif now - guest.last_input > self._settings.idle_timeout:
                if guest.left is None:
                    seconds = f"{self._settings.idle_timeout:g}"
                    guest.close(4410, f"Nothing was pressed for {seconds} seconds.")
                self._end(guest)

    def touch(self, guest: Guest) -> None:
        """Notes that somebody plays."""
        guest.last_input = self._clock()

    @property
    def _has_room(self) -> bool:
        is_ready = self._engine.phase == "ready"
        return is_ready and len(self.playing) < self._settings.max_sessions

    def _place(self, position: int) -> dict[str, Any]:
        engine = self._engine
        if engine.phase != "ready":
            return {
                "type": "loading",
                "phase": engine.phase,
                "text": engine.text,
                "progress": engine.progress,
            }
        return {"type": "queued", "position": position}

    def _admit(self, guest: Guest) -> None:
        live = Live(self._engine.model, self._settings.max_chunks, self._parcels)
        guest.live, guest.last_input = live, self._clock()
        self.playing.append(guest)
        self.num_began += 1
        engine = self._engine

        def begin() -> None:
            live.player = guest.outbox
            guest.outbox.tell(self._welcome(live))
            engine.add(live)
            live.begin()

        engine.call(begin).add_done_callback(_log_failure)

    def _attach(self, guest: Guest, live: Live) -> None:
        guest.live, guest.last_input = live, self._clock()
        outbox = guest.outbox

        def attach() -> None:
            live.player = outbox
            outbox.tell(self._welcome(live))
            live.tell_state()

        self._engine.call(attach)

    def _welcome(self, live: Live) -> Mapping[str, Any]:
        return {"type": "playing", "session": live.id, "secret": live.secret}

    def _end(self, guest: Guest) -> None:
        self.playing.remove(guest)
        if guest.live is not None:
            live = guest.live
            self._engine.call(lambda: self._engine.remove(live))
        self.look()


def _log_failure(future: Any) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _log.warning("A session could not begin: %s", error, exc_info=error)
