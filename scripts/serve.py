"""`fdjax-serve` for a clone that is not installed.

    python scripts/serve.py --help
    python scripts/serve.py maze-world

Prints the methods; serves maze-world at http://127.0.0.1:8000.
"""

import pathlib
import sys

_ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "models"), str(_ROOT / "convert")]

from fdjax.serve import cli  # noqa: E402, needs the paths above

if __name__ == "__main__":
    sys.exit(cli.run())
