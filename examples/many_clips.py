"""Makes a clip for every line of a file of prompts, in as many processes as there are.

python examples/many_clips.py prompts.txt clips --processes 2

Clips are independent, so that nothing need be sent between devices: of all ways to use
several of them this has the highest throughput. Process i of n makes the lines i,
i + n, i + 2 n, ... Under a scheduler each process is told which one it is: SLURM's job
arrays do so by their variables (`many_clips.sbatch`), others by `--task` and
`--num_tasks`.

A clip depends on its prompt and its line alone, not on who makes it. It appears whole
or not at all, and one that is there is not made again: a job that was interrupted is
simply started again.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

import imageio.v3 as iio
import jax
import numpy as np

import fdjax
from fdjax.run.media import to_uint8

NUM_CHUNKS = 4


def main() -> None:
    """Makes this process's clips, or starts processes that make all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("prompts", type=pathlib.Path, help="one prompt a line")
    parser.add_argument("folder", type=pathlib.Path, help="where the clips go")
    task, count = (
        int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("ID", 0), ("COUNT", 1))
    )
    parser.add_argument("--task", type=int, default=task, help="from 0")
    parser.add_argument("--num_tasks", type=int, default=count)
    parser.add_argument("--processes", type=int, help="start so many on this machine")
    given = parser.parse_args()
    if not given.prompts.is_file():
        parser.error(f"there is no file {given.prompts}")
    if given.processes is not None:
        sys.exit(start(given.prompts, given.folder, given.processes))
    if not 0 <= given.task < given.num_tasks:
        parser.error(f"--task must be from 0 to {given.num_tasks - 1}")
    lines = given.prompts.read_text(encoding="utf-8").splitlines()
    own = list(enumerate(lines))[given.task :: given.num_tasks]
    make_clips([(line, text) for line, text in own if text.strip()], given.folder)


def make_clips(prompts: list[tuple[int, str]], folder: pathlib.Path) -> None:
    """Makes those clips of a list of (line, prompt) that are not there."""
    missing = [
        (line, text) for line, text in prompts if not (folder / name(line)).exists()
    ]
    print(f"to make: {len(missing)}, there: {len(prompts) - len(missing)}", flush=True)
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Weights and compiled programs serve all clips of the process.
    pipeline = fdjax.runner_configs()["maze-world"].pipeline.setup()
    params = pipeline.load_params()
    for line, text in missing:
        cache = pipeline.initialize_cache(
            params,
            text=[text.strip()],
            pixel_height=96,
            pixel_width=160,
            key=jax.random.key(line),
        )
        frames = []
        for _ in range(NUM_CHUNKS):
            cache, video = pipeline.generate(params, cache, donate=True)
            frames.append(np.asarray(to_uint8(video[0])))
            cache = pipeline.finalize(params, cache, donate=True)
        unfinished = folder / f".{os.getpid()}.{name(line)}"
        video = np.concatenate(frames)
        iio.imwrite(unfinished, video, fps=12, plugin="pyav", codec="libx264")
        unfinished.replace(folder / name(line))
        print(f"line {line}: {folder / name(line)}", flush=True)


def name(line: int) -> str:
    """The file of a line."""
    return f"{line:05d}.mp4"


def start(prompts: pathlib.Path, folder: pathlib.Path, count: int) -> int:
    """Starts `count` processes and waits; the first that fails ends all."""
    running = []
    for task in range(count):
        # Each process sees a GPU of its own; a machine without any does not mind.
        gpu = {"CUDA_VISIBLE_DEVICES": str(task)}
        command = [sys.executable, __file__, str(prompts), str(folder)]
        command += ["--task", str(task), "--num_tasks", str(count)]
        running.append(subprocess.Popen(command, env=gpu | os.environ))
    try:
        while (codes := [process.poll() for process in running]).count(None):
            if any(codes):
                break
            time.sleep(0.1)
    finally:
        for process in running:
            process.terminate()
    failed = [task for task, code in enumerate(codes) if code]
    if failed:
        print(f"process {failed[0]} failed; start again to go on.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    main()
