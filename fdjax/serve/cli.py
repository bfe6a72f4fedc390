"""`fdjax-serve`: a method in a browser.

fdjax-serve maze-world                  then open http://127.0.0.1:8000
fdjax-serve maze-world --port 9000 --maze_seed 3
fdjax-serve METHOD --host 0.0.0.0       the token is printed
"""

import contextlib
import dataclasses
import importlib.util
import logging
import socket
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from fdjax import config as config_lib
from fdjax.config import docs as config_docs
from fdjax.config import values as config_values
from fdjax.run import cli, edge
from fdjax.serve.settings import ServeSettings

_NAME = "fdjax-serve"
_NEEDED = ("msgpack", "starlette", "uvicorn", "websockets")
_HELP = f"""\
usage: {_NAME} METHOD [--OPTION VALUE ...] [--FIELD VALUE ...]

Runs a method live, for players in a browser: http://127.0.0.1:8000.

  {_NAME} METHOD --help            every field of a method, with its default
  {_NAME} --preset DIR             begin with a picture, a prompt and settings
  {_NAME} METHOD --tiny            a small random network: its output is noise
  --debug                            show the traceback of an error

options:
{{options}}"""
_log = logging.getLogger(__name__)


def run(argv: Sequence[str] | None = None) -> int:
    """Serves until Ctrl-C; returns the exit code.

    Args:
        argv: Arguments without the program's name. None: those of the process, whose
            settings are then made, too.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        with cli.log_to_stderr():
            return _run(arguments, in_process_of_its_own=argv is None)

    return edge.guard(_NAME, work, debug="--debug" in arguments)


def _run(arguments: list[str], *, in_process_of_its_own: bool) -> int:
    settings, rest = split_settings(arguments)
    program = cli.Program(name=_NAME, help=_HELP.format(options=_options()))
    command = cli.read_command(rest, program)
    if command is None:
        return 0
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{_NAME} needs {', '.join(missing)}; pip install 'fdjax[serve]'."
        )
    if in_process_of_its_own:
        cli.prepare_process(command)
    from fdjax.serve import listen  # what the extra brings

    with contextlib.closing(bind(settings)) as bound:
        listen.serve(command.config, settings, bound)
    return 0


def bind(settings: ServeSettings) -> socket.socket:
    """A socket that listens, before anything is loaded.

    Raises:
        ValueError: The port is in use, or the host is none of this machine.
    """
    host, port = settings.host.strip("[]"), settings.port
    try:
        family, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"--host {host} is no address: {error.strerror}.") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise ValueError(
            f"{host}:{port} cannot be listened on: {error.strerror}; choose another "
            "--port (0 takes a free one), or --host."
        ) from None
    return bound


def split_settings(arguments: Sequence[str]) -> tuple[ServeSettings, list[str]]:
    """The server's own options, and the arguments that are left.

    Raises:
        ValueError: A value is missing or wrong.
    """
    types = config_values.field_types(ServeSettings)
    given: dict[str, Any] = {}
    rest = []
    left = iter(arguments)
    for argument in left:
        name, equals, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if not argument.startswith("--") or name not in types:
            rest.append(argument)
            continue
        if not equals and (value := next(left, "")) == "":
            raise ValueError(f"flag --{name} needs a value")
        if name == "origins":
            given[name] = (*given.get(name, ()), *value.split(","))
            continue
        try:
            given[name] = config_values.parse(value, types[name], None)
        except ValueError as error:
            raise ValueError(f"flag --{name}: {error}") from None
    return ServeSettings(**given), rest


def _options() -> str:
    """Every field of the settings as a flag."""
    texts = config_docs.field_docs(ServeSettings)
    lines = []
    for field in dataclasses.fields(ServeSettings):
        default = config_lib.format_value(field.default)
        lines += [f"  --{field.name}  (default {default})"]
        doc = " ".join(texts.get(field.name, "").split())
        lines += textwrap.wrap(
            doc, 88, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run())
