"""Files between server and page, in memory: each is fetched once, or forgotten."""

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable

_LIFETIME = 300.0  # seconds
_MOST_FILES = 64


@dataclasses.dataclass(frozen=True)
class Parcel:
    """A file.

    Attributes:
        data: Its bytes.
        media_type: Such as "video/mp4".
        name: That the page proposes for it.
        until: Second of the clock at which it is forgotten.
    """

    data: bytes
    media_type: str
    name: str
    until: float


class Parcels:
    """Files by an id that nobody can guess; any thread may ask."""

    def __init__(
        self, max_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Holds nothing.

        Args:
            max_bytes: Of all files together; the oldest are forgotten beyond it.
            clock: Seconds that never run back.
        """
        self._max_bytes, self._clock = max_bytes, clock
        self._parcels: dict[str, Parcel] = {}
        self._lock = threading.Lock()

    def put(self, data: bytes, media_type: str, name: str) -> str:
        """Keeps a file for a while; its id.

        Raises:
            ValueError: It is larger than all that may be kept.
        """
        if len(data) > self._max_bytes:
            raise ValueError(
                f"The file has {len(data):,} bytes, the most are {self._max_bytes:,}."
            )
        name_of_it = secrets.token_urlsafe(24)
        with self._lock:
            until = self._clock() + _LIFETIME
            self._parcels[name_of_it] = Parcel(data, media_type, name, until)
            self._forget()
        return name_of_it

    def take(self, name: str) -> Parcel | None:
        """The file of an id, which is forgotten; None if there is none."""
        with self._lock:
            self._forget()
            return self._parcels.pop(name, None)

    def _forget(self) -> None:
        now = self._clock()
        kept = [item for item in self._parcels.items() if item[1].until > now]
        kept = kept[-_MOST_FILES:]
        while sum(len(parcel.data) for _, parcel in kept) > self._max_bytes:
            kept = kept[1:]
        self._parcels = dict(kept)
