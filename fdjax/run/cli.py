"""`fdjax-run`: the methods that are installed, from the command line.

fdjax-run --help                        every method
fdjax-run METHOD --help                 every field of its config, as a flag
fdjax-run METHOD --prompt "..." --pipeline.diffusion_model.seed 7
fdjax-run METHOD --no-instantiate       print the resolved config and stop
fdjax-run --preset examples/maze_at_dusk
fdjax-run --config outputs/METHOD.config.json
fdjax-run --replay outputs/METHOD.replay.json
"""

import contextlib
import dataclasses
import logging
import pathlib
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from fdjax import config as config_lib
from fdjax.config.values import did_you_mean
from fdjax.run import edge, plugins, registry, repeat, replay, versions, xla_flags
from fdjax.run import flags as cli_flags
from fdjax.run.preset import read_preset
from fdjax.run.runner import RunnerConfig

_NAME = "fdjax-run"
_SOURCES = ("config", "preset", "replay")  # of a config, but for a method
_SWITCHES = ("--no-instantiate", "--debug", "--help", "--tiny")
_log = logging.getLogger(__name__)
_COLUMN = 16  # where descriptions of methods begin
_GENERAL_HELP = f"""\
usage: {_NAME} METHOD [--FIELD VALUE ...]

  {_NAME} METHOD --help            every field of a method, with its default
  {_NAME} METHOD --no-instantiate  print the resolved config and stop
  {_NAME} --preset DIR             a picture, a prompt, controls and settings that
                                     lie in a folder; METHOD and flags win over it
  {_NAME} --config FILE            repeat a run from the config that it wrote
  {_NAME} --replay FILE            repeat a run, and say at which chunk it differs
                                     if it does (exit code 1)
  {_NAME} METHOD --tiny            the whole path in half a minute on a CPU, by
                                     a small random network: its output is noise
  {_NAME} --version                versions and devices, for a bug report
  --nocompilation_cache              do not keep compiled programs for the next run;
                                     they are in FDJAX_CACHE_DIR (~/.cache/fdjax)
  --debug                            show the traceback of an error

In names, dashes and underscores are the same. Values are numbers, texts, None, true
and false, and tuples (1,2). A bool needs no value: --FIELD or --noFIELD.
"""
_PLUGIN_HELP = (
    f"A method registers through the entry-point group {plugins.GROUP}, or through "
    f'the environment variable {plugins.VARIABLE}="slug=module:ATTR,...". Editing '
    "entry points needs a reinstall of their package (pip install). Only in a clone of "
    "fdjax are its own read from pyproject.toml each time; if the clone is not "
    "installed, run scripts/run.py."
)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    Args:
        argv: Arguments without the program's name. None: those of the process, whose
            settings are then made, too: compiler flags, and the cache of compiled
            programs.

    Returns:
        0; 2 for a user's mistake, told in one message; 1 for a full disk or a bug; 130
        after Ctrl-C, with the files of what was made until then.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work() -> int:
        with log_to_stderr():
            command = read_command(arguments)
            if command is not None:
                if argv is None:
                    prepare_process(command)
                if command.expected is not None:
                    return repeat.run(command.config, command.expected)
                command.config.setup().run()
            return 0

    return edge.guard(_NAME, work, debug="--debug" in arguments)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A command line of methods.

    Attributes:
        name: As it is typed.
        help: What it prints above the list of methods.
    """

    name: str = _NAME
    help: str = _GENERAL_HELP


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What a command line asks for.

    Attributes:
        config: Of the method, with what the flags change.
        expected: What its run is compared with, if that is asked for.
        is_tiny: Whether it is the small random network.
        keeps_compiled: Whether compiled programs are kept for the next process.
    """

    config: RunnerConfig
    expected: replay.Replay | None
    is_tiny: bool
    keeps_compiled: bool


def prepare_process(command: Command) -> None:
    """Makes the compiler's settings; for a process that does nothing else."""
    is_quick = command.expected is not None and command.expected.is_quick
    if command.is_tiny or is_quick:
        xla_flags.compile_quickly()
    xla_flags.set_defaults()
    if command.keeps_compiled:
        xla_flags.enable_compilation_cache()


def read_command(
    arguments: list[str], program: Program | None = None
) -> Command | None:
    """What is asked for; None if that was help, which is printed.

    Args:
        arguments: Without the program's name.
        program: `fdjax-run` by default.

    Raises:
        ValueError, FileNotFoundError: An argument is wrong.
    """
    program = program or Program()
    if "--version" in arguments:
        print(versions.text())
        return None
    method, rest = _split_method(arguments)
    sources = {flag: path for flag in _SOURCES if (path := _path_of(f"--{flag}", rest))}
    discovery = registry.discover()
    if method is None and not sources:
        values = _parse_flags(rest, [], program)
        wanted = values["help"].value
        print(_method_list(discovery, program), file=None if wanted else sys.stderr)
        if not wanted:
            raise ValueError("name a METHOD, one of those above.")
        return None
    base, expected = _base_config(method, sources, discovery, program)
    if "--tiny" in rest:
        base = base.tiny()
    fields = list(cli_flags.config_fields(base))
    values = _parse_flags(rest, fields, program)
    if values["help"].value:
        print(f"usage: {program.name} {base.runner_name} [--FIELD VALUE ...]\n")
        print(*textwrap.wrap(base.description, 88), sep="\n")
        print(cli_flags.format_help(base))
        return None
    try:
        config = config_lib.derive_config(base, **cli_flags.overrides(fields, values))
        config_lib.check_config(config)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if not values["instantiate"].value:
        print(f"Resolved config for {config.runner_name!r}:\n{config.to_text()}")
        return None
    if values["tiny"].value:
        _log.warning(
            "TINY: a small random network shows the path; its output is noise."
        )
    return Command(
        config=config,
        expected=expected,
        is_tiny=bool(values["tiny"].value),
        keeps_compiled=bool(values["compilation_cache"].value),
    )


def _split_method(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The method, and all other arguments. Only switches may stand before it."""
    for index, argument in enumerate(arguments):
        if not argument.startswith("-"):
            return argument, arguments[:index] + arguments[index + 1 :]
        if argument.replace("_", "-") not in _SWITCHES:
            break
    return None, arguments


def _path_of(flag: str, arguments: list[str]) -> pathlib.Path | None:
    """The value of a flag that decides which config it is, and so comes first."""
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return pathlib.Path(argument.partition("=")[2])
        if argument == flag:
            if index + 1 == len(arguments):
                raise ValueError(f"flag {flag} needs a value")
            return pathlib.Path(arguments[index + 1])
    return None


def _parse_flags(
    arguments: list[str], fields: list[cli_flags.ConfigField], program: Program
) -> flags.FlagValues:
    """The general flags and those of the fields, in a FlagValues of their own."""
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "Explain the flags.", flag_values=values)
    flags.DEFINE_bool("instantiate", True, "Run.", flag_values=values)
    flags.DEFINE_bool(
        "compilation_cache", True, "Keep compiled programs.", flag_values=values
    )
    flags.DEFINE_bool("tiny", False, "A small random network.", flag_values=values)
    flags.DEFINE_bool("version", False, "Print versions.", flag_values=values)
    flags.DEFINE_bool("debug", False, "Show tracebacks.", flag_values=values)
    flags.DEFINE_string("config", None, "A run's config.", flag_values=values)
    flags.DEFINE_string("preset", None, "A preset.", flag_values=values)
    flags.DEFINE_string("replay", None, "A replay file.", flag_values=values)
    cli_flags.define_flags(fields, values)
    try:
        values([program.name, *cli_flags.normalise(arguments, values)])
    except cli_flags.UnknownFlagError as error:
        hint = (
            ""
            if fields
            else f"; the flags of a method follow it: {program.name} METHOD ..."
        )
        raise ValueError(f"{error}{hint}") from None
    return values


def _base_config(
    method: str | None,
    sources: Mapping[str, pathlib.Path],
    discovery: registry.Discovery,
    program: Program,
) -> tuple[RunnerConfig, replay.Replay | None]:
    """The config that the flags change, and what its run is compared with.

    It is a method's, a preset's, or that of a run.
    """
    if len(sources) > 1:
        raise ValueError(f"give --{' or --'.join(sources)}, not both.")
    if (preset := sources.get("preset")) is not None:
        if method is not None:
            _known(method, discovery, program)
        return read_preset(preset, discovery.configs, method=method), None
    if (file := sources.get("config")) is not None:
        return _of_this_method(f"--config {file}", _read_config(file), method), None
    if (file := sources.get("replay")) is not None:
        what = f"--replay {file}"
        try:
            expected = replay.read(file, plugins.known_classes())
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"{what}: {edge.message(error)}") from error
        return _of_this_method(what, expected.config, method), expected
    assert method is not None
    return _known(method, discovery, program), None


def _read_config(file: pathlib.Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"--config: there is no file {file}.")
    try:
        return config_lib.from_json(
            file.read_text(encoding="utf-8"), classes=plugins.known_classes()
        )
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"--config {file}: {edge.message(error)}") from error


def _of_this_method(what: str, config: Any, method: str | None) -> RunnerConfig:
    if not isinstance(config, RunnerConfig):
        raise ValueError(f"{what} holds a {type(config).__name__}, no run.")
    if method not in (None, config.runner_name):
        raise ValueError(
            f"{what} is a run of {config.runner_name!r}, not of {method!r}; leave "
            "METHOD out."
        )
    return config


def _known(
    method: str, discovery: registry.Discovery, program: Program
) -> RunnerConfig:
    """The config of a method.

    Raises:
        ValueError: There is none of this name; says which are near, or what broke.
    """
    if method in discovery.configs:
        return discovery.configs[method]
    message = f"unknown method {method!r}{did_you_mean(method, discovery.configs)}"
    for plugin in discovery.broken:
        if plugin.name == method:
            message += f"; {plugin.source} is broken: {plugin.reason}"
    raise ValueError(f"{message}. See {program.name} --help.")


def _method_list(discovery: registry.Discovery, program: Program) -> str:
    lines = [program.help, "methods:"]
    if not discovery.configs:
        lines.append("  none")
    for slug, config in discovery.configs.items():
        if len(slug) > _COLUMN - 4:
            lines.append(f"  {slug}")
            lines += _wrap(config.description, _COLUMN, _COLUMN)
        else:
            text = f"{slug:<{_COLUMN - 2}}{config.description}"
            lines += _wrap(text, 2, _COLUMN)
    if discovery.broken:
        lines += ["", "broken plug-ins:"]
    for plugin in discovery.broken:
        lines += _wrap(plugin.source, 2, 6)
        lines += _wrap(plugin.reason, 6, 6)
    return "\n".join([*lines, "", *_wrap(_PLUGIN_HELP, 0, 0)])


def _wrap(text: str, first: int, rest: int) -> list[str]:
    return textwrap.wrap(
        text,
        88,
        initial_indent=" " * first,
        subsequent_indent=" " * rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


class _OnlyOnce(logging.Filter):
    """Lets each warning through once, however many parts of a run come upon it."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        if record.levelno < logging.WARNING:
            return True
        text = record.getMessage()
        is_new = text not in self._told
        self._told.add(text)
        return is_new


def _log_warning(message: Any, *_: Any, **__: Any) -> None:
    """Shows a warning as one line, without the line of source that gave it."""
    _log.warning("%s", message)


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Shows log records, from INFO for methods and from WARNING for the rest."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(_OnlyOnce())
    loggers = [logging.getLogger(name) for name in plugins.method_packages()]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.INFO)
    logging.getLogger().addHandler(handler)
    shown = warnings.showwarning
    warnings.showwarning = _log_warning
    try:
        yield
    finally:
        warnings.showwarning = shown
        logging.getLogger().removeHandler(handler)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(run())
