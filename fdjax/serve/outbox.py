"""What is on its way to one client: messages at once, frames when they are due.

A client that does not keep up loses frames, never order: at most two that are due wait
for it, and no more chunks are made for a player who has not acknowledged the last ones.
"""

import asyncio
import collections
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fdjax.serve import protocol
from fdjax.serve.live import Frame

_MOST_UNSENT = 2
_MOST_MESSAGES = 1000
_LARGE = 100_000  # pixels, from which encoding takes longer than a thread's switch


class Outbox:
    """Sink of a session and source of a socket's writer; of one event loop."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fps: float, image: str = "jpeg"
    ) -> None:
        """Empty.

        Args:
            loop: Of the socket.
            fps: Of the method; half a second may be unacknowledged.
            image: "jpeg" or "webp".
        """
        self.image = image
        self.num_sent = self.num_dropped = 0
        self._loop = loop
        self._limit = max(6, round(fps / 2))
        self._messages: collections.deque[Mapping[str, Any]] = collections.deque()
        self._frames: collections.deque[Frame] = collections.deque()
        self._epochs: dict[str, int] = {}
        self._acknowledged = 0
        self._heard = time.monotonic()
        self._changed = asyncio.Event()

    # From any thread

    @property
    def is_full(self) -> bool:
        """Whether the client has yet to acknowledge what it was sent."""
        return self.num_sent - self._acknowledged >= self._limit

    def show(self, frames: Sequence[Frame]) -> None:
        """Takes frames in their order."""
        self._soon(self._add, frames)

    def tell(self, message: Mapping[str, Any]) -> None:
        """Takes a message, which overtakes frames."""
        self._soon(self._say, message)

    # On the event loop

    def acknowledge(self, frame: int) -> None:
        """Notes how many frames the client has shown."""
        self._acknowledged = max(self._acknowledged, min(frame, self.num_sent))
        self._heard = time.monotonic()
        self._changed.set()

    @property
    def silence(self) -> float:
        """Seconds for which frames that were sent have not been acknowledged."""
        if self.num_sent == self._acknowledged:
            return 0.0
        return time.monotonic() - self._heard

    async def next(self) -> bytes:
        """The next message; waits until there is one."""
        while True:
            self._changed.clear()
            if self._messages:
                return protocol.pack(self._messages.popleft())
            wait = self._wait()
            if wait is not None and wait <= 0:
                return await self._encode(self._frames.popleft())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def _wait(self) -> float | None:
        """Seconds until a frame can be sent; None: something must change first."""
        now = time.monotonic()
        due = sum(frame.when <= now for frame in self._frames)
        for _ in range(due - _MOST_UNSENT):
            self._frames.popleft()
            self.num_dropped += 1
        if not self._frames or self.is_full:
            return None
        return self._frames[0].when - now

    async def _encode(self, frame: Frame) -> bytes:
        height, width, _ = frame.picture.pixels.shape
        if height * width < _LARGE:
            data = frame.picture.encoded(self.image)
        else:
            data = await self._loop.run_in_executor(
                None, frame.picture.encoded, self.image
            )
        if self.num_sent == self._acknowledged:
            self._heard = time.monotonic()
        self.num_sent += 1
        return protocol.pack(
            {
                "type": "frame",
                "frame": self.num_sent,
                "timeline": frame.timeline,
                "epoch": frame.epoch,
                "chunk": frame.chunk,
                "index": frame.index,
                "count": frame.count,
                "input": frame.input,
                "late_ms": 1e3 * (time.monotonic() - frame.when),
                "image": self.image,
                "data": data,
            }
        )

    def _soon(self, function: Any, value: Any) -> None:
        # Where the loop has ended the client has, too.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, value)

    def _add(self, frames: Sequence[Frame]) -> None:
        self._frames.extend(filter(self._is_fresh, frames))
        self._changed.set()

    def _say(self, message: Mapping[str, Any]) -> None:
        if len(self._messages) >= _MOST_MESSAGES:
            return  # the socket's writer is stuck, and the ping will end it
        self._messages.append(message)
        for timeline in message.get("timelines", ()):
            self._epochs[timeline["timeline"]] = timeline["epoch"]
        if "timelines" in message:
            self._frames = collections.deque(filter(self._is_fresh, self._frames))
        self._changed.set()

    def _is_fresh(self, frame: Frame) -> bool:
        return frame.epoch >= self._epochs.get(frame.timeline, 0)
