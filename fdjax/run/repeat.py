"""Makes the run of a replay file again, and says where it differs."""

import logging
import pathlib
import tempfile

from fdjax.run.replay import Replay
from fdjax.run.runner import RunnerConfig

_log = logging.getLogger(__name__)


def run(config: RunnerConfig, expected: Replay) -> int:
    """Runs a config and compares what it makes.

    Args:
        config: That of the file, or one that flags have changed.
        expected: The file.

    Returns:
        0 if every chunk is the same, bit for bit; else 1, and the first that differs
        is told.

    Raises:
        ValueError: An input or the weights are not those of the run.
    """
    expected.warn_of_differences()
    with tempfile.TemporaryDirectory(prefix="fdjax-replay-") as folder:
        config = expected.with_inputs(config, pathlib.Path(folder))
        result = config.setup().run(expected)
    made, wanted = result.chunk_hashes, tuple(expected.chunks)
    if made == wanted:
        _log.info("The same, bit for bit: %d chunks.", len(made))
        return 0
    pairs = zip(made, wanted, strict=False)
    first = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
    if first is None:
        _log.warning(
            "All chunks are the same, but there are %d; the file has %d.",
            *(len(made), len(wanted)),
        )
    else:
        _log.warning("Chunk %d of the run is the first that differs.", first)
    return 1
