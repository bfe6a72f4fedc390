"""Hostile files end quickly, in little memory, with one of the documented errors."""

import json
import os
import subprocess
import sys

import pytest

from fdjax.checkpoint.errors import CheckpointError
from fdjax_convert.formats import readers
from tests.convert import hostile_files, torch_files
from tests.convert.torch_files import Call, Global, dumps

_SECONDS = 1.0  # of the processor, beyond start-up
_MEGABYTES = 500
_JAX = 300  # MB that a process takes which has loaded jax for a CPU

_INSPECT = """
import json, pathlib, resource, sys, time
from fdjax.checkpoint.errors import CheckpointError
from fdjax_convert import inspect
resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
inspect.inspect(pathlib.Path(sys.argv[1]))  # what is loaded and compiled once
for path in sys.argv[1:]:
    start = time.process_time()
    try:
        text = inspect.inspect(pathlib.Path(path))
    except (ValueError, FileNotFoundError) as error:
        text = f"{type(error).__name__}: {error}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([path, time.process_time() - start, peak, text]), flush=True)
"""


def inspect_all(plain, paths):
    """(name, processor seconds, MB, text) of `--inspect` of files, in one process."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _INSPECT, plain, *paths],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_inspection_is_quick_and_small_whatever_the_file_is(tmp_path):
    (tmp_path / "plain").mkdir()
    plain = torch_files.save(tmp_path / "plain" / "a.pt", {"w": hostile_files.X})
    paths = hostile_files.write_all(tmp_path)
    assert all(path.stat().st_size < 1_000_000 for path in paths)
    (_, _, base, _), *reports = inspect_all(plain, paths)
    assert len(reports) == len(paths) > 50
    # A machine that is busy with other things takes twice as long for the same.
    slow = [(name, s) for name, s, _, _ in reports if s > 3 * _SECONDS]
    assert not slow
    assert sorted(s for _, s, _, _ in reports)[-4] < 2 * _SECONDS
    # A jax with libraries for GPUs takes a gigabyte before it has read a file.
    allowed = _MEGABYTES + max(0, base - _JAX)
    assert max(peak for _, _, peak, _ in reports) < allowed
    assert max(len(text) for _, _, _, text in reports) < 20_000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dag of lists in a dict", "more than 100000 entries"),
        ("wide shared dict", "more than 100000 entries"),
        ("dag of empty dicts", "nested in more than 64 levels"),
        ("dag as persistent id", "refers to a list of 2, which is no"),
        ("dag as a name", "calls a tuple of 2"),
        ("dag as a key", "tuple of tuples"),
        ("deep tuple as a key", "tuple of tuples"),
        ("bytes of 2**62", "ends in the middle of 4611686018427387904 bytes"),
        ("bytearray by length", "makes a bytearray of a tuple of 1"),
        ("equal hashes", "more than 64 bits as key"),
        ("copies of a list", "makes more than it holds"),
        ("copies of a text", "makes more than it holds"),
        ("many rebuilds", "makes more than it holds"),
        ("long keys", "has a key of 60000 letters"),
        ("huge shape", "1099511627776 elements in a storage of 96 bytes"),
        ("memo index", "holds a int, must hold tensors by key"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, name, message):
    data = hostile_files.pickles()[name]
    path = torch_files.write(tmp_path / "a.pt", data, {"0": hostile_files.X})
    with pytest.raises(CheckpointError) as error:
        readers.open_checkpoint(path)
    assert message in str(error.value)
    assert len(str(error.value)) < 1000


def _tensor(shape=(4, 6)):
    return torch_files.tensor(torch_files.storage("0", hostile_files.X), shape)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"w": x}])
def test_a_tensor_gets_no_state(tmp_path, wrap):
    class Built:
        def __reduce__(self):
            function, arguments = _tensor().__reduce__()
            return function, arguments, {"load": Global("builtins", "set")}

    path = torch_files.write(
        tmp_path / "a.pt", dumps(wrap(Built())), {"0": hostile_files.X}
    )
    with pytest.raises(CheckpointError, match="sets the state of a LazyTensor"):
        readers.open_checkpoint(path)


def test_a_dict_may_have_a_state_that_is_not_kept(tmp_path):
    class Built:
        def __reduce__(self):
            state = {"_metadata": 1, "items": 2, "__class__": 3}
            return Global("collections", "OrderedDict"), ([("w", _tensor())],), state

    path = torch_files.write(tmp_path / "a.pt", dumps(Built()), {"0": hostile_files.X})
    assert list(readers.open_checkpoint(path).tensors) == ["w"]


def test_an_entry_that_stands_twice_in_the_archive_is_refused(tmp_path):
    path = torch_files.save(tmp_path / "a.pt", {"w": hostile_files.X})
    data = path.read_bytes()
    # The name of one entry becomes that of another, in both its headers.
    path.write_bytes(data.replace(b"archive/version", b"archive/data/0\0"))
    with pytest.raises(CheckpointError, match="names an entry twice"):
        readers.open_checkpoint(path)


def test_a_name_in_a_message_is_short_and_plain(tmp_path):
    name = Global("evil", "\x1b[2J" + "x" * 100_000)
    path = torch_files.write(tmp_path / "a.pt", dumps({"a": Call(name)}))
    with pytest.raises(CheckpointError, match=r"asks for evil\.\?\[2Jx") as error:
        readers.open_checkpoint(path)
    assert len(str(error.value)) < 500
