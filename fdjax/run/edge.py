"""The edge of a command line: what its user sees when something goes wrong."""

import contextlib
import dis
import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable

from absl import flags

from fdjax.run import signals  # nothing that imports jax: its settings come first

FAILURE = 1
"""Exit code where neither the command nor its inputs are wrong: a full disk, a bug."""

MISTAKE = 2
"""Exit code of a user's mistake, told in one message."""

INTERRUPTED = 130
"""Exit code after Ctrl-C; after another signal, 128 and its number."""

_LINE = 500  # characters
_MISTAKES = (ValueError, KeyError, OSError, flags.Error)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RAISE = dis.opmap["RAISE_VARARGS"]
_LIBRARIES = sys.stdlib_module_names | {
    *("PIL", "av", "flax", "huggingface_hub", "imageio", "jax", "jaxlib", "ml_dtypes"),
    *("numpy", "orbax", "safetensors", "tensorstore", "tokenizers"),
}
"""Whose errors say what they could not do, and not what a user should."""


def guard(name: str, command: Callable[[], int], *, debug: bool = False) -> int:
    """Runs a command and tells what stopped it in one message; returns the exit code.

    A `ValueError`, `KeyError` or `OSError` is taken for a mistake in what was given,
    which its text explains; if a library raised it, its first line and a file with
    the traceback. Any other exception is a bug or a failure of the
    machine, and is told in the same way. SIGTERM and SIGHUP end the command as Ctrl-C
    does.

    Args:
        name: Program, as its messages begin.
        command: Returns an exit code.
        debug: Show every traceback.
    """
    with signals.ending_like_ctrl_c() as came:
        try:
            code = command()
            sys.stdout.flush()
            return code
        except KeyboardInterrupt as interrupt:
            why = signal.Signals(came[0]).name if came else "interrupted"
            _tell(f"\n{name}: {why}. {interrupt}".rstrip())
            return 128 + came[0] if came else INTERRUPTED
        except BrokenPipeError:
            # The reader of a list went away (`| head`): nothing is left to tell it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILURE
        except Exception as error:
            return _explain(name, error, debug)


def _explain(name: str, error: Exception, debug: bool) -> int:
    """Tells an error; returns the exit code."""
    text = message(error)
    first = text.partition("\n")[0][:_LINE]
    if isinstance(error, FloatingPointError):  # a network's NaN, explained by the run
        _tell(f"{name}: failed: {text}")
        return FAILURE
    if not isinstance(error, _MISTAKES):
        kept = _keep_traceback(name, error, debug)
        _tell(f"{name}: failed: {type(error).__name__}: {first} ({kept})")
        return FAILURE
    if _is_unexplained(error):
        kept = _keep_traceback(name, error, debug)
        _tell(f"{name}: error: {first} ({kept})")
    else:
        if debug:
            traceback.print_exception(error)
        _tell(f"{name}: error: {text}")
    full = isinstance(error, OSError) and error.errno in _DISK_FULL
    return FAILURE if full else MISTAKE


def _is_unexplained(error: BaseException) -> bool:
    """Whether a mistake's text was not written for the user of a command.

    What no `raise` of ours has raised comes from a library or from Python itself; but
    the operating system's errors are clear enough with the name of a file in them.
    """
    clear = isinstance(error, OSError) and (
        error.filename is not None or error.errno in _DISK_FULL
    )
    if clear or isinstance(error, flags.Error):
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    module = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0]
    raised = trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISE
    return module in _LIBRARIES or not raised


def message(error: BaseException) -> str:
    """An error's text without Python's trimmings, and where in a config it arose."""
    text = str(error)
    if isinstance(error, KeyError) and error.args:
        text = str(error.args[0])  # its text has quotes around it
    elif isinstance(error, OSError) and error.strerror:
        name = f": {error.filename}" if error.filename is not None else ""
        text = f"{error.strerror}{name}"
    text = text or type(error).__name__
    notes = getattr(error, "__notes__", [])  # jax adds others
    shown = [f" ({note})" for note in notes if note.startswith("in ")]
    return text + "".join(shown).replace("(in pipeline.", "(flag --pipeline.")


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be left to read it
        print(text, file=sys.stderr, flush=True)


def _keep_traceback(name: str, error: Exception, debug: bool) -> str:
    """Writes a traceback to a file; says where it is."""
    if not debug:
        try:
            handle, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".traceback.txt")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                traceback.print_exception(error, file=file)
            return f"traceback: {path}"
        except OSError:
            pass  # no file can be written: it is shown
    traceback.print_exception(error)
    return "traceback above"
