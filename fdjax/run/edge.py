"""The edge of a command line: what its user sees when something goes wrong."""

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

from absl import flags

FAILURE = 1
"""Exit code where neither the command nor its inputs are wrong: a full disk, a bug."""

MISTAKE = 2
"""Exit code of a user's mistake, told in one message."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

_MISTAKES = (ValueError, KeyError, OSError, flags.Error)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def guard(name: str, command: Callable[[], int], *, debug: bool = False) -> int:
    """Runs a command and tells what stopped it in one message; returns the exit code.

    A `ValueError`, `KeyError` or `OSError` is taken for a mistake in what was given,
    which its text explains. Any other exception is a bug or a failure of the machine:
    its traceback goes to a file that the message names.

    Args:
        name: Program, as its messages begin.
        command: Returns an exit code.
        debug: Show every traceback.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        _tell(f"\n{name}: interrupted. {interrupt}".rstrip())
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a list went away (`| head`): nothing is left to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except _MISTAKES as error:
        if debug:
            traceback.print_exception(error)
        _tell(f"{name}: error: {message(error)}")
        full = isinstance(error, OSError) and error.errno in _DISK_FULL
        return FAILURE if full else MISTAKE
    except FloatingPointError as error:  # a network's NaN: what was good is kept
        _tell(f"{name}: failed: {message(error)}")
        return FAILURE
    except Exception as error:
        kind = type(error).__name__
        first = message(error).partition("\n")[0]
        _tell(
            f"{name}: failed: {kind}: {first} ({_keep_traceback(name, error, debug)})"
        )
        return FAILURE


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
    return text + "".join(f" ({note})" for note in notes if note.startswith("in "))


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


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
