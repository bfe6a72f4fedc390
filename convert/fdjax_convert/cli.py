"""`fdjax-convert`: published checkpoints to fdjax's format and back.

fdjax-convert SOURCE DESTINATION              what SOURCE is decides what is made
fdjax-convert SOURCE DESTINATION --method self-forcing-wan2.1-t2v-1.3b
fdjax-convert --inspect SOURCE                what is it?
fdjax-convert --to_torch SOURCE FILE.safetensors
"""

import os
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from fdjax.run import edge

_NAME = "fdjax-convert"
_DTYPES = ("float32", "bfloat16", "float16")

_HELP = f"""\
usage: {_NAME} SOURCE DESTINATION [flags]
       {_NAME} --inspect SOURCE
       {_NAME} --to_torch SOURCE FILE

SOURCE is a .safetensors file, a *.safetensors.index.json, a .pt, .pth or .ckpt file
of torch >= 1.6, a folder with one of them, hf://OWNER/REPO[/FILE], or an address.
DESTINATION is a directory to make. With --to_torch, SOURCE is a checkpoint of fdjax
and FILE ends in .safetensors or .pt.
"""


def run(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    Args:
        argv: Arguments without the program's name. None: those of the process, which
            then leaves accelerators alone: they may be in use.

    Returns:
        0; 2 for a user's mistake, told in one message; 1 for a full disk or a bug; 130
        after Ctrl-C. Whatever happens, DESTINATION is whole or not there.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        os.environ["JAX_PLATFORMS"] = "cpu"

    def command() -> int:
        # Converting needs no accelerator, whatever else the process does with one.
        import jax

        try:
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                return _run(arguments, _flags())
        except KeyboardInterrupt:
            raise KeyboardInterrupt("Nothing was written.") from None

    return edge.guard(_NAME, command, debug="--debug" in arguments)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    options: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("inspect", None, "Print what SOURCE is, and stop.", **options)
    flags.DEFINE_bool("to_torch", False, "Write a published layout again.", **options)
    flags.DEFINE_string(
        "method",
        None,
        "Method (see fdjax-run --help) whose component is filled; without it, the "
        "first method that SOURCE fits.",
        **options,
    )
    flags.DEFINE_string(
        "component",
        None,
        "Which component: transformer, encoder, decoder, text_encoder, image_encoder; "
        "without it, the one that SOURCE is.",
        **options,
    )
    flags.DEFINE_enum(
        "dtype", None, _DTYPES, "Cast floating tensors; default: keep.", **options
    )
    flags.DEFINE_string(
        "wrapper",
        None,
        "Entry of a training checkpoint that holds the weights, e.g. generator_ema; "
        "without it, the usual ones are tried, averaged weights (EMA) first.",
        **options,
    )
    flags.DEFINE_string(
        "layout",
        None,
        "Key layout, e.g. official or diffusers; default: detected. With --to_torch, "
        "the layout to write; default: that of the original.",
        **options,
    )
    flags.DEFINE_bool(
        "wrapped",
        False,
        "With --to_torch: write the wrapper and the prefix of the original, too.",
        **options,
    )
    flags.DEFINE_bool("overwrite", False, "Replace what is there.", **options)
    flags.DEFINE_bool("debug", False, "Show the traceback of an error.", **options)
    flags.DEFINE_bool("help", False, "Show this help.", short_name="h", **options)
    return values


def _run(arguments: list[str], values: flags.FlagValues) -> int:
    try:
        positional = values([_NAME, *arguments], known_only=False)[1:]
    except flags.UnrecognizedFlagError as error:
        raise ValueError(f"{error}; see {_NAME} --help") from None
    if values.help:
        print(_HELP + "\nflags:\n" + _flag_help(values))
        return 0
    wanted = 0 if values.inspect else 2
    if len(positional) != wanted:
        expected = "no argument" if values.inspect else "SOURCE and DESTINATION"
        raise ValueError(f"expected {expected}, got {positional}; see {_NAME} --help")
    if values.inspect:
        from fdjax.checkpoint.fetch import fetch
        from fdjax_convert import inspect

        path = fetch(values.inspect, flag="--inspect")
        print(inspect.inspect(path, values.wrapper))
    elif values.to_torch:
        _to_torch(positional[0], positional[1], values)
    else:
        _convert(positional[0], positional[1], values)
    return 0


def _convert(source: str, destination: str, values: flags.FlagValues) -> None:
    from fdjax_convert import convert as load
    from fdjax_convert import methods

    target = _target(destination)
    _check_free(target, values.overwrite)
    if target.suffix in (".safetensors", ".pt", ".pth", ".ckpt"):
        raise ValueError(
            f"{target}: DESTINATION is a directory to make; to write a published "
            "layout, use --to_torch"
        )
    start = time.perf_counter()
    metadata = load.convert(
        source,
        target,
        components=methods.components(values.method, values.component),
        layout=values.layout,
        dtype=values.dtype,
        wrapper=values.wrapper,
        overwrite=values.overwrite,
    )
    print(load.report(metadata, time.perf_counter() - start))
    print(f"written to {target}")


def _to_torch(source: str, destination: str, values: flags.FlagValues) -> None:
    from fdjax_convert import convert as load

    target = _target(destination)
    _check_free(target, values.overwrite)
    start = time.perf_counter()
    size, note = load.write_torch(
        Path(source), target, layout=values.layout, wrapped=values.wrapped
    )
    seconds = time.perf_counter() - start
    print(f"{note}: {size / 1e9:.2f} GB in {seconds:.1f} s, written to {target}")


def _target(destination: str) -> Path:
    try:
        return Path(destination).expanduser()
    except RuntimeError:  # ~name, without such a user
        raise ValueError(
            f"{destination}: there is no such user; write ./{destination} for a file "
            "of that name"
        ) from None


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give --overwrite to replace it")


def _flag_help(values: flags.FlagValues) -> str:
    lines = []
    for name in sorted(values):
        flag = values[name]
        if name == flag.name:  # not its short form
            lines.append(f"  --{name}")
            lines += textwrap.wrap(
                flag.help, 80, initial_indent="      ", subsequent_indent="      "
            )
    return "\n".join(lines)
