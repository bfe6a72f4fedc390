"""Kills writers before each of their file-system operations; what is left is whole.

    python kill_points.py SCENARIO FOLDER POINTS RANDOM SEED

A process is forked for each trial, and killed with SIGKILL: before its first
operation, its second, and so on (POINTS of them, evenly spread; 0 is all), and RANDOM
times at an instant of its life. After each the destination must be the old or the new
one, and a writer that nobody kills must succeed and leave nothing else. Prints what
was counted, as JSON.
"""

import collections
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time
import traceback
import urllib.request
import warnings

import numpy as np

from fdjax import checkpoint
from fdjax.checkpoint import fetch, files, temporary

EVENTS = {
    *("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"),
    *("os.scandir", "os.listdir", "shutil.rmtree", "fcntl.flock", "test.exchange"),
}
"""Audit events that are counted: https://docs.python.org/3/library/audit_events.html"""

SIZE = 20_000


class Scenario:
    """What is written as "1" or as "2" again and again.

    Attributes:
        suffix: Of the destination's name.
    """

    suffix = ""

    def prepare(self):
        """Imports what every trial needs."""

    def write_after(self, path, content):
        """What a later process does, in whose way nothing may be."""
        self.write(path, content)

    def state(self, path, old, new):
        """Whether the old or the new one is there, whole."""
        return {old: "old", new: "new"}[self.read(path)]


class Folder(Scenario):
    """A directory of three files."""

    def write(self, path, content):
        with files.atomic_directory(path, overwrite=True) as folder:
            for name in "abc":
                (folder / name).write_text(content)

    def read(self, path):
        [content] = {(path / name).read_text() for name in "abc"}
        return content


class FolderWithoutSwap(Folder):
    """The same where two names cannot be swapped at one instant."""

    def write(self, path, content):
        temporary._exchange = lambda: lambda one, other: False
        super().write(path, content)

    def read(self, path):
        temporary.settle(path)
        return super().read(path)


class File(Scenario):
    """A text file."""

    def write(self, path, content):
        files.write_text(path, content * SIZE)

    def read(self, path):
        text = path.read_text()
        assert len(text) == SIZE
        [content] = set(text)
        return content


class Checkpoint(Scenario):
    """Parameters in fdjax's own format, a directory."""

    def prepare(self):
        import orbax.checkpoint  # noqa: F401

    def write(self, path, content):
        params = {name: np.full(SIZE, int(content), np.float32) for name in "abc"}
        checkpoint.save(path, params, overwrite=True)

    def read(self, path):
        _, params = checkpoint.open_lazily(path)
        arrays = [leaf.read() for leaf in params.values()]
        assert [array.shape for array in arrays] == [(SIZE,)] * 3
        [content] = set(np.concatenate(arrays).tolist())
        return str(int(content))


class CheckpointFile(Checkpoint):
    """The same as one file."""

    suffix = ".safetensors"


class Download(Scenario):
    """A file of a web server, /n1 or /n2; both may be kept."""

    def write(self, path, content):
        os.environ["FDJAX_CACHE_DIR"] = str(path)
        url = f"{os.environ['SERVER']}/n{content}"
        assert self.is_whole(fetch.fetch_file(url))

    def write_after(self, path, content):
        self.write(path, content)
        self.write(path, "3")

    def is_whole(self, file):
        return file.read_text() == file.name[1] * SIZE

    def state(self, path, old, new):
        kept = [file for file in path.rglob("n?") if ".fdjax-" not in str(file)]
        assert all(map(self.is_whole, kept))
        assert f"n{old}" in {file.name for file in kept}
        return "new" if f"n{new}" in {file.name for file in kept} else "old"


class LiveSession(Scenario):
    """A session after one chunk, or after two."""

    suffix = ".session"

    def prepare(self):
        # A forked process has none of jax's threads: what it runs is compiled before,
        # and runs in its own.
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        from fdjax.contract.conditioner import Conditions
        from fdjax.session.handle import Session
        from tests import tiny

        pipeline = tiny.CONFIG.setup()
        conditions = Conditions(text=jax.numpy.ones((1, 4, 4)))
        live = Session(
            pipeline,
            pipeline.init_params(jax.random.key(0)),
            conditions=conditions,
            pixel_height=4,
            pixel_width=4,
        )
        self._live = {}
        for content in "12":
            live.tick(np.ones(1, np.float32))
            self._live[content] = live.fork()
            live.to_bytes()

    def write(self, path, content):
        self._live[content].save(path, overwrite=True)

    def read(self, path):
        from fdjax.session import container

        return str(container.read(str(path), path).header["session"]["num_steps"])


SCENARIOS = {
    "folder": Folder(),
    "folder without swap": FolderWithoutSwap(),
    "file": File(),
    "checkpoint": Checkpoint(),
    "checkpoint file": CheckpointFile(),
    "download": Download(),
    "session": LiveSession(),
}


def main(name, folder, points, random_trials, seed):
    scenario, counts = SCENARIOS[name], collections.Counter()
    _announce_exchanges()
    scenario.prepare()
    path = pathlib.Path(folder) / f"x{scenario.suffix}"
    assert forked(lambda: scenario.write(path, "1")) == 0
    start = time.perf_counter()
    num_operations = int(told(lambda: write(scenario, path, "2")))
    seconds = time.perf_counter() - start
    chosen = range(1, num_operations + 1)
    if points:
        chosen = np.unique(np.linspace(1, num_operations, points).astype(int)).tolist()
    rng = random.Random(seed)
    trials = [(point, None) for point in chosen]
    trials += [(0, rng.uniform(0, 1.2 * seconds)) for _ in range(random_trials)]
    for number, (point, delay) in enumerate(trials):
        old, new = "12" if number % 2 == 0 else "21"
        if path.is_dir():
            shutil.rmtree(path)
        assert forked(lambda old=old: scenario.write(path, old)) == 0
        code = forked(
            lambda new=new, point=point: write(scenario, path, new, point), delay
        )
        where = f"killed before operation {point}, after {delay} s: code {code}"
        assert code in (0, -signal.SIGKILL), where
        counts["finished" if code == 0 else "killed"] += 1
        state = told(lambda old=old, new=new: scenario.state(path, old, new))
        assert state, f"{where}: neither the old nor the new one is there"
        counts[state] += 1
        assert forked(lambda new=new: scenario.write_after(path, new)) == 0, where
        assert told(lambda old=old, new=new: scenario.state(path, old, new)) == "new"
        left = [file.name for file in path.parent.rglob(".*")]
        assert os.listdir(path.parent) == [path.name], where
        assert not left, f"{where}: {left}"
    print(json.dumps({"operations": num_operations, **counts}))


def told(work):
    """What a function returns, called in a process of its own; "" if it fails."""
    read, write_end = os.pipe()
    code = forked(lambda: os.write(write_end, str(work()).encode()))
    os.close(write_end)
    with os.fdopen(read) as file:
        text = file.read()
    return text if code == 0 else ""


def write(scenario, path, content, point=0):
    """Writes, and dies before operation `point`, counted from 1."""
    count = 0

    def hook(event, arguments):
        nonlocal count
        if event in EVENTS:
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    scenario.write(path, content)
    return count


def forked(work, delay=None):
    """The exit code of a process that does something; negative if it was killed."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(number, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def _announce_exchanges():
    """Makes the swap of two names an event, before and after: C code has none."""
    exchange = temporary._exchange()

    def announced(one, other):
        sys.audit("test.exchange")
        done = exchange(one, other)
        sys.audit("test.exchange")
        return done

    temporary._exchange = lambda: announced


if __name__ == "__main__":
    urllib.request.getproxies = dict  # the server is on this machine
    name, folder, *numbers = sys.argv[1:]
    main(name, folder, *map(int, numbers))
