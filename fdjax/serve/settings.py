"""What a server allows, and whom it lets in."""

import dataclasses
import ipaddress

_LOOPBACK_NAMES = ("localhost",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Limits and access of a server; refused where they make no sense."""

    host: str = "127.0.0.1"
    """Address to listen on; any but this machine's own needs a token."""

    port: int = 8000
    """Port; 0 takes a free one, which is printed."""

    token: str | None = None
    """What players must give. Made and printed where it is needed and not given."""

    director_token: str | None = None
    """What those must give who watch and list the sessions of others. Made as
    `token`."""

    origins: tuple[str, ...] = ()
    """Other sites whose pages may connect, such as https://example.org."""

    max_sessions: int = 4
    """Sessions at a time; who comes later waits in a queue."""

    lanes: int | None = None
    """Sessions that make their chunks in one forward pass. None: all of them on an
    accelerator with enough memory; 1, so each alone, on a processor."""

    max_waiting: int = 100
    """Places in the queue; who comes later is sent away."""

    idle_timeout: float = 300.0
    """Seconds without any input after which a session ends."""

    undo_chunks: int = 64
    """Chunks that can be undone; each takes the memory of one chunk's keys and values,
    the newest 4 on the device and the others on the host."""

    max_chunks: int = 7200
    """Chunks after which a session must begin again: its timeline takes memory."""

    max_upload_mb: int = 512
    """Largest session file that is taken, in 10^6 bytes."""

    max_videos: int = 8
    """Videos of POST /v1/videos that wait or are kept; the oldest finished one goes."""

    def __post_init__(self) -> None:
        least = {
            "max_sessions": 1,
            "max_waiting": 0,
            "lanes": 1,
            "idle_timeout": 1,
            "undo_chunks": 0,
            "max_chunks": 1,
            "max_upload_mb": 1,
            "max_videos": 1,
        }
        for name, limit in least.items():
            value = getattr(self, name)
            if value is not None and not value >= limit:
                raise ValueError(f"{name} must be at least {limit}, got {value}.")
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must be in [0, 65535], got {self.port}.")
        for name in ("token", "director_token"):
            value = getattr(self, name)
            if value is not None and not (8 <= len(value) <= 200 and value.isascii()):
                raise ValueError(f"{name} must have 8 to 200 ASCII characters.")
        if self.token is not None and self.token == self.director_token:
            raise ValueError("token and director_token must differ: each is a role.")
        for origin in self.origins:
            if not origin.startswith(("http://", "https://")) or origin.endswith("/"):
                raise ValueError(
                    "origins must be like https://example.org, without a path, got "
                    f"{origin!r}."
                )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    if host in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
