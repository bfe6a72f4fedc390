"""Runs the server on a socket until it is told to end."""

import logging
import socket
import urllib.parse

import uvicorn

from fdjax.run.runner import RunnerConfig
from fdjax.serve import access, app, protocol
from fdjax.serve.model import Model
from fdjax.serve.settings import ServeSettings

_log = logging.getLogger(__name__)


def serve(config: RunnerConfig, settings: ServeSettings, bound: socket.socket) -> None:
    """Serves a method; returns after Ctrl-C.

    Args:
        config: Of the method.
        settings: Of the server.
        bound: Listens already.

    Raises:
        ValueError, FileNotFoundError: The method's inputs are wrong.
        Exception: Whatever kept the model from being loaded.
    """
    runner = config.setup()
    model = Model(runner, runner.prepare(), settings.undo_chunks)
    settings = access.with_tokens(settings)
    made = app.Server(model, settings, lambda: setattr(server, "should_exit", True))
    server = uvicorn.Server(
        uvicorn.Config(
            app.make_app(made),
            log_level="warning",
            ws="websockets-sansio",
            ws_max_size=protocol.MAX_MESSAGE,
            ws_per_message_deflate=False,  # pictures are compressed
            ws_ping_interval=20,
            ws_ping_timeout=20,
            timeout_graceful_shutdown=3,
            server_header=False,
        )
    )
    print(invitation(settings, bound), flush=True)
    server.run(sockets=[bound])
    if made.engine.error is not None:
        raise made.engine.error


def invitation(settings: ServeSettings, bound: socket.socket) -> str:
    """Where to open the page, with the tokens where there are any."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    lines = []
    for name, token in (
        ("players", settings.token),
        ("directors", settings.director_token),
    ):
        # Behind "#", which browsers do not send: no log and no referrer has it.
        mark = f"#token={urllib.parse.quote(token)}" if token else ""
        lines.append(f"{name}: http://{shown}:{port}/{mark}")
    if settings.token is None:
        return f"Open http://{shown}:{port}/"
    return "\n".join(lines)
