"""Many clients of one server, good and bad ones: who is disturbed, and by how much.

    fdjax-serve maze-world --max_sessions 8 &
    python scripts/serve_load.py --clients 50 --seconds 60

Most of the clients play; the others read slowly, go silent, send garbage, or vanish in
the midst of a chunk and come back. Prints one line of JSON: frames per second and the
time from an input to its frame of those that play, how every kind of client ended, and
the server's memory every few seconds.
"""

import asyncio
import collections
import dataclasses
import json
import random
import time
import urllib.request
from collections.abc import Mapping
from typing import Any

import msgpack
import websockets
from absl import app, flags

_URL = flags.DEFINE_string("url", "http://127.0.0.1:8000", "Of the server.")
_CLIENTS = flags.DEFINE_integer("clients", 50, "How many.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 60, "For how long.", lower_bound=1)
_BAD = flags.DEFINE_float(
    "bad", 0.5, "Share of clients that misbehave.", lower_bound=0, upper_bound=1
)
_TOKEN = flags.DEFINE_string("token", None, "Of the players.")
_SEED = flags.DEFINE_integer("seed", 0, "Of what the clients do.")

_BAD_KINDS = ("slow", "silent", "garbage", "vanishing")


@dataclasses.dataclass
class Results:
    """What the clients saw.

    Attributes:
        latencies: Seconds from an input to the first frame that knows it.
        rates: Frames per second of each client that played.
        ends: How often each kind of client ended, and how.
        memory: Bytes of the server, by the second.
    """

    latencies: list[float] = dataclasses.field(default_factory=list)
    rates: list[float] = dataclasses.field(default_factory=list)
    ends: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    memory: dict[int, int] = dataclasses.field(default_factory=dict)


class Client:
    """One client for as long as the test lasts."""

    def __init__(self, kind: str, until: float, results: Results, seed: int) -> None:
        """Connects nothing yet.

        Args:
            kind: "good", or one of `_BAD_KINDS`.
            until: Second of `time.monotonic` at which it ends.
            results: Takes what it sees.
            seed: Of what it does.
        """
        self.kind, self.until, self.results = kind, until, results
        self.random = random.Random(seed)

    async def run(self) -> None:
        """Connects again and again."""
        url = _URL.value.replace("http", "ws", 1) + "/v1/live"
        while time.monotonic() < self.until:
            try:
                async with asyncio.timeout_at(self._loop_time(self.until)):
                    async with websockets.connect(url, max_size=None) as socket:
                        await self._hello(socket)
                        await getattr(self, f"_{self.kind}")(socket)
                self._ended("left")
            except TimeoutError:
                self._ended("stayed")
            except websockets.ConnectionClosed as closed:
                self._ended(f"closed {closed.code}")
                await asyncio.sleep(0.5)
            except OSError as error:
                self._ended(type(error).__name__)
                await asyncio.sleep(0.5)

    def _loop_time(self, until: float) -> float:
        return asyncio.get_running_loop().time() + until - time.monotonic()

    def _ended(self, how: str) -> None:
        self.results.ends[f"{self.kind}: {how}"] += 1

    async def _hello(self, socket: Any) -> None:
        hello = {"type": "hello", "token": _TOKEN.value, "image": "jpeg"}
        await socket.send(msgpack.packb(hello))

    async def _good(self, socket: Any) -> None:
        """Plays: other keys once a second, and an undo now and then."""
        sent: dict[int, float] = {}
        count = 0
        frames, since, changed = 0, None, 0.0
        try:
            while True:
                message = msgpack.unpackb(await socket.recv())
                now = time.monotonic()
                if message["type"] != "frame":
                    continue
                since = since or now
                frames += 1
                ack = {"type": "ack", "frame": message["frame"]}
                await socket.send(msgpack.packb(ack))
                for number in [each for each in sent if each <= message["input"]]:
                    self.results.latencies.append(now - sent.pop(number))
                if now - changed > 1:
                    changed, count = now, count + 1
                    keys = self.random.choice(("w", "a", "d", "wa"))
                    sent[count] = now
                    await self._say(socket, "keys", keys=keys, input=count)
                    if self.random.random() < 0.05:
                        await self._say(socket, "undo", chunks=1)
                        await self._say(socket, "play", playing=True)
        finally:
            if since is not None and time.monotonic() - since > 2:
                self.results.rates.append(frames / (time.monotonic() - since))

    async def _say(self, socket: Any, kind: str, **fields: Any) -> None:
        await socket.send(msgpack.packb({"type": kind, **fields}))

    async def _slow(self, socket: Any) -> None:
        """Reads a message a second, and acknowledges nothing."""
        while True:
            await socket.recv()
            await asyncio.sleep(1)

    async def _silent(self, socket: Any) -> None:
        """Holds the connection half open: reads nothing at all."""
        socket.transport.pause_reading()
        await asyncio.sleep(3600)

    async def _garbage(self, socket: Any) -> None:
        """Sends what is no message, of some kind or other, after a while."""
        await asyncio.sleep(self.random.random() * 2)
        bad = (
            self.random.randbytes(self.random.randrange(1, 2000)),
            b"\xdf\xff\xff\xff\xff",
            msgpack.packb({"type": "keys", "keys": 7}),
            msgpack.packb({"type": "load", "file": "../../etc/passwd"}),
            b"\x00" * 100_000,
            "text",
        )
        await socket.send(self.random.choice(bad))
        while True:
            await socket.recv()

    async def _vanishing(self, socket: Any) -> None:
        """Breaks the connection without a word, wherever the server is."""
        async with asyncio.timeout(self.random.random() * 4):
            try:
                while True:
                    await socket.recv()
            except asyncio.CancelledError:
                socket.transport.abort()
                raise


def _metrics() -> Mapping[str, float]:
    request = urllib.request.Request(f"{_URL.value}/metrics")
    with urllib.request.urlopen(request, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def _watch(results: Results, until: float) -> None:
    began = time.monotonic()
    while time.monotonic() < until:
        values = await asyncio.to_thread(_metrics)
        second = round(time.monotonic() - began)
        results.memory[second] = int(values["fdjax_memory_bytes"] / 1e6)
        await asyncio.sleep(5)


async def _run() -> Results:
    results, until = Results(), time.monotonic() + _SECONDS.value
    chooser = random.Random(_SEED.value)
    clients = []
    for number in range(_CLIENTS.value):
        is_bad = number < _BAD.value * _CLIENTS.value
        kind = _BAD_KINDS[number % len(_BAD_KINDS)] if is_bad else "good"
        clients.append(Client(kind, until, results, chooser.randrange(2**31)))
    await asyncio.gather(*(client.run() for client in clients), _watch(results, until))
    return results


def main(argv: list[str]) -> None:
    """Runs the clients and prints what they saw."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    results = asyncio.run(_run())
    latencies = sorted(results.latencies)
    report = {
        "clients": _CLIENTS.value,
        "seconds": _SECONDS.value,
        "players": len(results.rates),
        "frames_per_second": [round(rate, 1) for rate in sorted(results.rates)],
        "input_to_frame_ms": {
            str(part): round(1e3 * latencies[int(part / 100 * (len(latencies) - 1))])
            for part in (50, 95, 99)
            if latencies
        },
        "ends": dict(sorted(results.ends.items())),
        "memory_mb": results.memory,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    app.run(main)
