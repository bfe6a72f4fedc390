"""A server of a tiny maze-world, which a CPU runs faster than it is shown."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import msgpack
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from fdjax.run.registry import runner_configs
from fdjax.serve import access, app
from fdjax.serve.model import Model
from fdjax.serve.settings import ServeSettings

LIVE = "ws://127.0.0.1/v1/live"
_FPS = 60  # so that nothing has to be waited for


def model(slug="maze-world"):
    config = dataclasses.replace(runner_configs()[slug].tiny(), fps=_FPS)
    runner = config.setup()
    return Model(runner, runner.prepare())


@contextlib.contextmanager
def serving(model, **settings) -> Iterator[tuple[TestClient, app.Server]]:
    server = app.Server(
        model, access.with_tokens(ServeSettings(**settings)), lambda: None
    )
    with TestClient(app.make_app(server), base_url="http://127.0.0.1") as client:
        yield client, server


def wait_ready(client):
    for _ in range(1200):
        if client.get("/healthz").status_code == 200:
            return
        time.sleep(0.05)
    raise TimeoutError("the server is not ready")


class Player:
    """A client of the socket that acknowledges what it reads."""

    def __init__(self, socket, **hello):
        self.socket = socket
        self.seen = []
        self.send("hello", **hello)

    def send(self, kind, **fields):
        self.socket.send_bytes(msgpack.packb({"type": kind, **fields}))

    def read(self):
        message = msgpack.unpackb(self.socket.receive_bytes())
        if message["type"] == "frame":
            self.send("ack", frame=message["frame"])
        self.seen.append(message)
        return message

    def end(self):
        """The code with which the server closes."""
        try:
            for _ in range(5000):
                self.read()
        except WebSocketDisconnect as closed:
            return closed.code
        raise TimeoutError("the server goes on")

    def until(self, kind, **fields):
        for _ in range(2000):
            message = self.read()
            if message["type"] == kind and all(
                message[name] == value for name, value in fields.items()
            ):
                return message
        raise TimeoutError(f"no {kind} {fields}")
