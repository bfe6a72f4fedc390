"""The parts of a benchmark, each a worker in a process of its own."""

import concurrent.futures
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarking import compare

_PACKAGES = (
    *("jax", "jaxlib", "flax", "jax-cuda13-plugin", "jax-cuda12-plugin"),
    *("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"),
    *("torch", "triton", "flashdreams", "transformers", "numpy"),
)
_ROOT = Path(__file__).parents[2]


class Plan:
    """Runs parts one after the other and gathers what they measured.

    Attributes:
        folder: Where `benchmark.json` goes, after every part.
        spec: What all parts are told.
    """

    def __init__(self, folder: Path, spec: dict[str, Any], limit_s: float) -> None:
        self.folder, self.spec = folder, spec
        self._deadline = time.time() + limit_s
        self._scratch = tempfile.TemporaryDirectory(prefix="benchmark-")
        self._lock = threading.Lock()
        self._results: dict[str, Any] = {
            "command": shlex.join(["python", *sys.argv]),
            "spec": spec,
            "environment": environment(),
        }
        self._compilation_cache = {
            "JAX_COMPILATION_CACHE_DIR": f"{self._scratch.name}/executables"
        }

    def rollout(self, *, share: bool, keep_executables: bool) -> None:
        """Our own timings.

        Args:
            share: Also leave what the other parts read.
            keep_executables: Fill a compilation cache, for `cached_start`.
        """
        self._run(
            "rollout",
            "rollout",
            env=self._compilation_cache if keep_executables else None,
            share=self._scratch.name if share else None,
        )

    def share(self) -> None:
        """What the other parts read, without timings of our own."""
        self._run("share", "compare", write_weights=True)

    def cached_start(self) -> None:
        """Another cold start, which finds its executables in the compilation cache."""
        self._run(
            "cached_start",
            "rollout",
            env=self._compilation_cache,
            share=None,
            cold_only=True,
        )

    def sessions(self) -> None:
        """Many sessions in one batch."""
        self._run("sessions", "sessions")

    def component(self, name: str, method: str) -> None:
        """The text encoder, or one forward pass of a network."""
        self._run(name, "components", component=name, method=method)

    def reference_eager(self, *, timed: bool) -> None:
        """The reference without compilation: compared, and timed once warm."""
        self._run_reference(
            "reference_eager",
            compare=bool(self.spec["compared_chunks"]),
            timed_rollouts=int(timed),
            skipped_steady_chunks=1,
        )

    def float32(self) -> None:
        """Both implementations in float32, side by side since neither is timed.

        Ours multiplies matrices in full float32, and takes memory as it needs it.
        """
        env = {
            "JAX_DEFAULT_MATMUL_PRECISION": "highest",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        }
        theirs = functools.partial(
            self._run_reference,
            "reference_float32",
            dtype="float32",
            compare=True,
            compared_chunks=min(compare.SOME_CHUNKS, self.spec["compared_chunks"]),
        )
        with concurrent.futures.ThreadPoolExecutor() as pool:
            waiting = pool.submit(theirs)
            self._run("float32", "compare", env=env, dtype="float32")
            waiting.result()

    def reference_compiled(self, mode: str) -> None:
        """The reference as it ships, compiled and with CUDA graphs.

        Its first rollout compiles. In every rollout the first steady chunk warms the
        network's graph up and captures it, and is left out.
        """
        self._run_reference(
            "reference_compiled",
            compile_mode=mode,
            timed_rollouts=2,
            skipped_steady_chunks=1,
        )

    def errors(self) -> None:
        """What the rollouts differ by, chunk by chunk."""
        half, full = "bfloat16", "float32"
        pairs = [
            (f"fdjax_{half}", f"reference_{half}"),
            (f"fdjax_{half}", f"fdjax_{full}"),
            (f"reference_{half}", f"fdjax_{full}"),
            (f"fdjax_{full}", f"reference_{full}"),
            (f"fdjax_{half}_rounded_schedule", f"reference_{half}"),
        ]
        self._results["errors"] = compare.errors(Path(self._scratch.name), pairs)
        self._write()

    @property
    def failed(self) -> list[str]:
        """Names of the parts that did not finish."""
        return [
            name
            for name, part in self._results.items()
            if isinstance(part, dict) and "error" in part
        ]

    def finish(self) -> dict[str, Any]:
        """All results."""
        self._write()
        self._scratch.cleanup()
        return self._results

    def _run_reference(self, name: str, **changes: Any) -> None:
        spec = {
            "compile_mode": None,
            "compare": False,
            "timed_rollouts": 0,
            "skipped_steady_chunks": 0,
        }
        path = Path(self._scratch.name) / "reference.json"
        if not path.exists():
            self._results[name] = {"error": "the rollout left no weights"}
            return
        found = json.loads(path.read_text())
        self._run(name, found.pop("reference_worker"), **found, **spec | changes)

    def _run(
        self,
        name: str,
        module: str,
        *,
        env: dict[str, str] | None = None,
        **changes: Any,
    ) -> None:
        """Runs one worker; what it measured until it failed or was stopped counts."""
        print(f"== {name}", flush=True)
        scratch, began = Path(self._scratch.name), time.time()
        result, path = scratch / f"{name}.json", scratch / f"{name}.spec.json"
        spec = {"share": self._scratch.name} | self.spec | changes
        path.write_text(json.dumps(spec | {"spawned": began}, indent=2))
        problem = _run_process(
            [sys.executable, "-m", f"benchmarking.{module}", path, result],
            os.environ | _search_path() | (env or {}),
            limit_s=self._deadline - began,
        )
        values = json.loads(result.read_text()) if result.exists() else {}
        values["seconds"] = round(time.time() - began, 1)
        if problem:
            values["error"] = problem
            print(f"== {name}: {problem}", flush=True)
        with self._lock:
            self._results[name] = values
            self._write()

    def _write(self) -> None:
        text = json.dumps(self._results, indent=2) + "\n"
        (self.folder / "benchmark.json").write_text(text)


def _run_process(command: list[Any], env: dict[str, str], limit_s: float) -> str | None:
    """Runs a worker, and ends it with its children at the limit; what went wrong."""
    if limit_s <= 0:
        return "skipped, no time left"
    process = subprocess.Popen(command, env=env, process_group=0)
    try:
        code = process.wait(limit_s)
        return f"exit status {code}" if code else None
    except subprocess.TimeoutExpired:
        return f"stopped after {limit_s:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _search_path() -> dict[str, str]:
    """`PYTHONPATH` for a worker, also in a clone where nothing is installed."""
    folders = [_ROOT / "scripts", _ROOT, _ROOT / "models", _ROOT / "convert"]
    inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {"PYTHONPATH": os.pathsep.join([*map(str, folders), *inherited])}


def environment() -> dict[str, Any]:
    """Device, driver, versions and flags, without starting the device."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    try:
        query = "--query-gpu=name,driver_version,memory.total"
        device = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        device = "CPU"
    return {
        "device": device,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "versions": versions,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }
