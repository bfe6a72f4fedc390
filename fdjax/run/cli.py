"""`fdjax-run`: the methods that are installed, from the command line.

fdjax-run --help                        every method
fdjax-run METHOD --help                 every field of its config, as a flag
fdjax-run METHOD --prompt "..." --pipeline.diffusion_model.seed 7
fdjax-run METHOD --no-instantiate       print the resolved config and stop
fdjax-run --preset examples/maze_at_dusk
fdjax-run --config outputs/METHOD.config.json
"""

import contextlib
import logging
import pathlib
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from fdjax import config as config_lib
from fdjax.config.values import did_you_mean
from fdjax.run import edge, plugins, registry, versions, xla_flags
from fdjax.run import flags as cli_flags
from fdjax.run.preset import read_preset
from fdjax.run.runner import RunnerConfig

_NAME = "fdjax-run"
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

    def command() -> int:
        with _log_to_stderr():
            return _run(arguments, in_process_of_its_own=argv is None)

    return edge.guard(_NAME, command, debug="--debug" in arguments)


def _run(arguments: list[str], *, in_process_of_its_own: bool) -> int:
    if "--version" in arguments:
        print(versions.text())
        return 0
    method, rest = _split_method(arguments)
    file, preset = (_path_of(flag, rest) for flag in ("--config", "--preset"))
    discovery = registry.discover()
    if method is None and file is None and preset is None:
        values = _parse_flags(rest, [])
        print(
            _method_list(discovery), file=None if values["help"].value else sys.stderr
        )
        if not values["help"].value:
            raise ValueError("name a METHOD, one of those above.")
        return 0
    base = _base_config(method, file, preset, discovery)
    if "--tiny" in rest:
        base = base.tiny()
    fields = list(cli_flags.config_fields(base))
    values = _parse_flags(rest, fields)
    if values["help"].value:
        print(f"usage: {_NAME} {base.runner_name} [--FIELD VALUE ...]\n")
        print(*textwrap.wrap(base.description, 88), sep="\n")
        print(cli_flags.format_help(base))
        return 0
    try:
        config = config_lib.derive_config(base, **cli_flags.overrides(fields, values))
        config_lib.check_config(config)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if not values["instantiate"].value:
        print(f"Resolved config for {config.runner_name!r}:\n{config.to_text()}")
        return 0
    if values["tiny"].value:
        _log.warning(
            "TINY: a small random network shows the path; its output is noise."
        )
    if in_process_of_its_own:
        if values["tiny"].value:
            xla_flags.compile_quickly()
        xla_flags.set_defaults()
        if values["compilation_cache"].value:
            xla_flags.enable_compilation_cache()
    config.setup().run()
    return 0


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
    arguments: list[str], fields: list[cli_flags.ConfigField]
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
    cli_flags.define_flags(fields, values)
    try:
        values([_NAME, *cli_flags.normalise(arguments, values)])
    except cli_flags.UnknownFlagError as error:
        hint = (
            "" if fields else f"; the flags of a method follow it: {_NAME} METHOD ..."
        )
        raise ValueError(f"{error}{hint}") from None
    return values


def _base_config(
    method: str | None,
    file: pathlib.Path | None,
    preset: pathlib.Path | None,
    discovery: registry.Discovery,
) -> RunnerConfig:
    """The config that the flags change: a method's, a preset's, or that of a run."""
    if preset is not None:
        if file is not None:
            raise ValueError("give --config or --preset, not both.")
        if method is not None:
            _known(method, discovery)
        return read_preset(preset, discovery.configs, method=method)
    if file is not None:
        if not file.is_file():
            raise FileNotFoundError(f"--config: there is no file {file}.")
        try:
            config = config_lib.from_json(
                file.read_text(encoding="utf-8"), classes=plugins.known_classes()
            )
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"--config {file}: {edge.message(error)}") from error
        if not isinstance(config, RunnerConfig):
            raise ValueError(
                f"--config {file} holds a {type(config).__name__}, no run."
            )
        if method not in (None, config.runner_name):
            raise ValueError(
                f"--config {file} is a run of {config.runner_name!r}, not of "
                f"{method!r}; leave METHOD out."
            )
        return config
    assert method is not None
    return _known(method, discovery)


def _known(method: str, discovery: registry.Discovery) -> RunnerConfig:
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
    raise ValueError(f"{message}. See {_NAME} --help.")


def _method_list(discovery: registry.Discovery) -> str:
    lines = [_GENERAL_HELP, "methods:"]
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
def _log_to_stderr() -> Iterator[None]:
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
