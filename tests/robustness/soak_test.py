"""Long sessions and many runs in one process: nothing grows.

A few hundred chunks by default; `--robustness-chunks N` streams N.
"""

import gc
import os
import pathlib
import sys
import threading

import jax
import jax.numpy as jnp
import pytest

from fdjax.config import derive_config
from fdjax.contract.conditioner import Conditions
from fdjax.run import media
from fdjax.run.outputs import OutputWriter
from tests import tiny, tiny_runner

QUICK = 400
_ALLOCATOR = 24 << 20  # bytes that come and go with it, however long a session is
_WAITING = 4  # arrays that the writer has not taken yet, now and then

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.timeout(0),  # of the long round
]


@pytest.fixture
def num_chunks(request):
    return request.config.getoption("--robustness-chunks") or QUICK


def resources():
    """Resident bytes, open files, threads and arrays of this process."""
    gc.collect()
    resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return {
        "bytes": resident * os.sysconf("SC_PAGE_SIZE"),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "arrays": len(jax.live_arrays()),
    }


def check_flat(before, after):
    grown = {name: after[name] - before[name] for name in before}
    print(grown)
    assert grown.pop("bytes") < _ALLOCATOR
    assert grown.pop("arrays") <= _WAITING
    assert max(grown.values()) <= 0


def test_a_long_session_with_forks_and_new_prompts(tmp_path, num_chunks):
    pipeline = tiny.CONFIG.setup()
    params = pipeline.init_params(jax.random.key(0))
    prompts = [Conditions(text=jnp.full((1, 3, 4), value)) for value in (0.1, 0.2)]
    controls = [jnp.full((1,), value) for value in (0.1, -0.1)]
    cache = pipeline.initialize_cache(
        params,
        conditions=prompts[0],
        pixel_height=6,
        pixel_width=8,
        key=jax.random.key(0),
    )
    path = tmp_path / "a.mp4"
    arrived, before = [], None
    with OutputWriter(
        path,
        arrangement="separate",
        decoded=True,
        fps=12,
        metadata={},
        on_chunk=lambda chunk: arrived.append(len(chunk)),
    ) as writer:
        for index in range(num_chunks):
            if index % 7 == 3:  # tries another control, and takes it back
                pipeline.generate(params, cache, controls[1])
            if index % 11 == 5:
                prompt = prompts[index % 2]
                cache = pipeline.update_conditions(params, cache, prompt)
            cache, video = pipeline.generate(params, cache, controls[0], donate=True)
            writer.write(video)
            cache = pipeline.finalize(params, cache, donate=True)
            writer.wait()
            if index == num_chunks // 4:
                jax.block_until_ready(cache)
                before = resources()
        jax.block_until_ready(cache)
        del video
        check_flat(before, resources())
    assert len(arrived) == num_chunks
    assert sum(arrived) == len(media.read_video(path)) == 2 * num_chunks - 1
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_many_runs_in_one_process(tmp_path, num_chunks):
    config = derive_config(tiny_runner.CONFIG, output_dir=str(tmp_path), total_blocks=3)
    before = None
    for index in range(max(5, num_chunks // 50)):
        config.setup().run()
        if index == 2:
            before = resources()
    check_flat(before, resources())
    assert not list(tmp_path.glob(".*"))
