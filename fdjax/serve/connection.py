"""One WebSocket: who it is, what it sends, and what it is sent."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from fdjax.serve import access, metrics, protocol
from fdjax.serve.access import Role
from fdjax.serve.engine import Engine
from fdjax.serve.live import Live
from fdjax.serve.lobby import Guest, Lobby
from fdjax.serve.outbox import Outbox
from fdjax.serve.settings import ServeSettings

_HELLO_SECONDS = 10
_MESSAGES = 200.0, 400.0  # a second, and at once
_COMMANDS = 10.0, 40.0
_CHEAP = frozenset(("ack", "ping", "keys", "image"))
_NO_INPUT = frozenset(("ack", "ping", "image"))
_log = logging.getLogger(__name__)


class Closing(Exception):
    """The connection ends: with a code, and what a person is told."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class Connection:
    """Reads and writes one socket until either ends."""

    def __init__(
        self, socket: WebSocket, engine: Engine, lobby: Lobby, settings: ServeSettings
    ) -> None:
        """Does nothing yet; `run` does.

        Args:
            socket: Not accepted yet.
            engine: Runs the sessions.
            lobby: Gives them.
            settings: Who may come, and how much.
        """
        self._socket, self._engine = socket, engine
        self._lobby, self._settings = lobby, settings
        self._closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._messages = access.RateLimit(*_MESSAGES)
        self._commands = access.RateLimit(*_COMMANDS)

    async def run(self) -> None:
        """Serves the client; returns when it is gone."""
        headers = self._socket.headers
        if not access.is_allowed_origin(
            headers.get("origin"), headers.get("host"), self._settings
        ):
            await self._socket.close(1008)  # before it is accepted: 403
            return
        await self._socket.accept()
        try:
            await self._serve(await self._hello())
            await self._say_goodbye(Closing(1000, ""))
        except Closing as end:
            await self._say_goodbye(end)
        except (protocol.ProtocolError, UnicodeError) as error:
            await self._say_goodbye(Closing(4400, str(error)))
        except (WebSocketDisconnect, ConnectionError):
            pass

    async def _hello(self) -> dict[str, Any]:
        """The first message.

        Raises:
            Closing: It did not come, or its token is not right.
        """
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                hello = await self._receive()
        except TimeoutError:
            raise Closing(4408, "No hello came.") from None
        if hello["type"] != "hello":
            raise Closing(4400, "The first message must be hello.")
        needed = Role.PLAYER if hello["watch"] is None else Role.DIRECTOR
        if access.role_of(hello["token"], self._settings) < needed:
            what = "a session" if needed is Role.PLAYER else "watching"
            raise Closing(4401, f"The token is missing or wrong for {what}.")
        return hello

    async def _receive(self) -> dict[str, Any]:
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1006)
        if not self._messages.take():
            raise Closing(4429, "Too many messages.")
        return protocol.read(message.get("bytes"))

    async def _serve(self, hello: Mapping[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        outbox = Outbox(loop, self._engine.model.fps, hello["image"])
        outbox.tell(self._welcome(hello))
        if hello["watch"] is not None:
            await self._watch(outbox, hello["watch"])
            return
        guest = Guest(outbox=outbox, close=self._close_soon)
        if hello["resume"] is None or not self._lobby.resume(guest, hello["resume"]):
            self._lobby.enter(guest)
        left = False
        try:
            left = await self._both(outbox, guest)
        finally:
            self._lobby.leave(guest, at_once=left)

    async def _watch(self, outbox: Outbox, session: str) -> None:
        live = self._lobby.find(session)
        if live is None:
            raise Closing(4404, f"There is no session {session!r}.")
        found = live

        def join() -> None:
            found.watchers.append(outbox)
            outbox.tell({"type": "watching", "session": found.id})
            found.tell_state()

        self._engine.call(join)
        try:
            await self._both(outbox, found)
        finally:
            self._engine.call(lambda: found.watchers.remove(outbox))

    async def _both(self, outbox: Outbox, who: Guest | Live) -> bool:
        """Reads and writes until one of them ends; whether the player left."""
        tasks = {
            asyncio.ensure_future(self._read(outbox, who)),
            asyncio.ensure_future(self._write(outbox)),
        }
        try:
            done, _ = await asyncio.wait(
                {*tasks, self._closing}, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                if (error := task.exception()) is not None:
                    raise error
            return True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, outbox: Outbox, who: Guest | Live) -> None:
        while True:
            command = await self._receive()
            kind = command["type"]
            if kind == "leave":
                return
            if kind == "ack":
                outbox.acknowledge(command["frame"])
            elif kind == "ping":
                outbox.tell(self._pong(command["time"]))
            elif kind == "image":
                outbox.image = command["format"]
            elif kind not in _CHEAP and not self._commands.take():
                text = "Too many commands; wait a moment."
                outbox.tell({"type": "refused", "command": kind, "text": text})
            else:
                self._do(outbox, who, command)

    def _do(self, outbox: Outbox, who: Guest | Live, command: dict[str, Any]) -> None:
        kind = command["type"]
        live = who if isinstance(who, Live) else who.live
        if isinstance(who, Live):
            if kind not in protocol.WATCHER:
                text = "A director sends keys, prompts and pauses."
                outbox.tell({"type": "refused", "command": kind, "text": text})
                return
            command["input"] = 0  # the player's own count
        else:
            self._lobby.touch(who)
        if kind == "hello" or live is None:
            raise protocol.ProtocolError(f"{kind} is out of place here")
        found = live
        self._engine.call(lambda: found.do(command))

    def _pong(self, time: float) -> dict[str, Any]:
        return {
            "type": "pong",
            "time": time,
            "memory": metrics.process_memory(),
            "device_memory": metrics.device_memory(),
        }

    async def _write(self, outbox: Outbox) -> None:
        while True:
            await self._socket.send_bytes(await outbox.next())

    def _close_soon(self, code: int, reason: str) -> None:
        """Ends the connection; called on the event loop by the lobby."""
        if not self._closing.done():
            self._closing.set_exception(Closing(code, reason))

    async def _say_goodbye(self, end: Closing) -> None:
        with contextlib.suppress(RuntimeError, WebSocketDisconnect, ConnectionError):
            # A client that reads nothing does not get to hold the task.
            async with asyncio.timeout(2):
                await self._socket.close(end.code, end.reason[:120])

    def _welcome(self, hello: Mapping[str, Any]) -> dict[str, Any]:
        model, role = (
            self._engine.model,
            access.role_of(hello["token"], self._settings),
        )
        return {
            "type": "welcome",
            "protocol": protocol.VERSION,
            "method": model.name,
            "description": model.runner.config.description,
            "role": role.name.lower(),
            "keys": dict(model.steering.actions),
            "takes_prompt": model.takes_prompt,
            "prompt": model.prompt,
            "fps": model.fps,
            "height": model.runner.config.pixel_height,
            "width": model.runner.config.pixel_width,
            "idle_timeout": self._settings.idle_timeout,
            "max_upload": self._settings.max_upload_mb * 10**6,
        }
