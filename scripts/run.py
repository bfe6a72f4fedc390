"""`fdjax-run` for a clone that is not installed.

    python scripts/run.py --help
    python scripts/run.py template-autoregressive

Prints the methods; writes `outputs/template-autoregressive-random-weights.mp4`.
"""

import pathlib
import sys

_ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "models"), str(_ROOT / "convert")]

from fdjax.run import cli  # noqa: E402, needs the paths above

if __name__ == "__main__":
    sys.exit(cli.run())
