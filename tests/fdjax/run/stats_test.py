"""Stage times, memory, and the stats file."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from fdjax.run import stats
from fdjax.run.stats import Profiler


class SlowValue:
    """A result that takes a while."""

    def block_until_ready(self):
        time.sleep(0.02)
        return self


def test_profiler_waits_and_attributes_time_to_the_stage():
    profiler = Profiler()
    profiler.start()
    profiler.record("encode", None)
    profiler.record("diffuse", {"latent": SlowValue()})
    profiler.record("decode", jnp.zeros(3))
    time.sleep(0.03)
    profiler.skip()
    profiler.record("finalize", SlowValue())
    measured = profiler.stats()
    assert measured["diffuse_ms"] >= 20
    assert measured["finalize_ms"] == pytest.approx(20, abs=9)
    assert measured["encode_ms"] < 10
    parts = [measured[f"{stage}_ms"] for stage in stats.STAGES]
    assert measured["total_ms"] == pytest.approx(sum(parts))
    assert measured["total_ms_wo_finalize"] == pytest.approx(sum(parts[:3]))


def test_profiler_refuses_a_stage_twice_and_starts_again():
    profiler = Profiler()
    profiler.record("decode", None)
    with pytest.raises(ValueError, match="'decode' was recorded twice"):
        profiler.record("decode", None)
    profiler.start()
    profiler.record("decode", None)
    assert profiler.stats()["encode_ms"] == 0


class FakeDevice:
    def __init__(self, reported):
        self.reported = reported

    def memory_stats(self):
        return self.reported


def test_memory_stats_where_the_backend_reports_them():
    reported = {"bytes_in_use": 2**30, "peak_bytes_in_use": 3 * 2**29, "x": 1}
    assert stats.memory_stats(FakeDevice(reported)) == {
        "mem_alloc_gib": 1.0,
        "mem_peak_gib": 1.5,
    }
    reported["pool_bytes"] = 2**31
    assert stats.memory_stats(FakeDevice(reported))["mem_reserved_gib"] == 2.0
    assert stats.memory_stats(FakeDevice(None)) == {}
    assert isinstance(stats.memory_stats(jax.devices("cpu")[0]), dict)


def test_stats_file_is_a_list_of_chunks(tmp_path):
    chunks = [{"autoregressive_index": 0, "frames": 3, "wall_ms": 1.5}]
    stats.write_stats(tmp_path / "stats_x.json", chunks)
    text = (tmp_path / "stats_x.json").read_text()
    assert json.loads(text) == chunks
    assert text.startswith('[\n  {\n    "autoregressive_index": 0')


def test_summary_leaves_compilation_out():
    chunks = [{"frames": 1, "wall_ms": 9e9}] * 2 + [{"frames": 4, "wall_ms": 100.0}] * 3
    assert stats.summary(chunks) == "14 frames, 40.0 frames/s after warm-up"
    assert stats.summary(chunks[:2]) == "2 frames"
