"""`fdjax-convert` for a clone that is not installed.

    python scripts/convert_checkpoint.py --inspect self_forcing_dmd.pt
    python scripts/convert_checkpoint.py self_forcing_dmd.pt converted/self_forcing

The first prints what the file is; the second writes a directory that
`--checkpoint_path` takes, and ends with its size and the speed.
"""

import pathlib
import sys

_ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "models"), str(_ROOT / "convert")]

from fdjax_convert import cli  # noqa: E402, needs the paths above

if __name__ == "__main__":
    sys.exit(cli.run())
