"""Times a method on this machine, and the PyTorch reference beside it.

    python scripts/benchmark.py --output_dir outputs/benchmark \
        --method self-forcing-wan2.1-t2v-1.3b --decoder taehv,wan_vae --reference

The weights are random, at the method's full size. Each part runs in a process of its
own (cold start, memory) and prints its results as they come; `benchmark.json`, written
after every part, and the table at the end hold all of them. `--reference` needs torch
and flashdreams 0.1.0.
"""

import json
import sys
from pathlib import Path

from absl import app, flags

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT), str(_ROOT / "models"), str(_ROOT / "convert")]

from benchmarking import methods, parts, table  # noqa: E402, needs the paths above

from fdjax.run import xla_flags  # noqa: E402

_OUTPUT_DIR = flags.DEFINE_string("output_dir", "outputs/benchmark", "Results.")
_METHOD = flags.DEFINE_string(
    "method",
    "self-forcing-wan2.1-t2v-1.3b",
    "Slug of a method: text to video, or steered by a camera or an HD map.",
)
_HEIGHT = flags.DEFINE_integer("pixel_height", 480, "Pixels.", lower_bound=16)
_WIDTH = flags.DEFINE_integer("pixel_width", 832, "Pixels.", lower_bound=16)
_DECODERS = flags.DEFINE_list(
    "decoder", "config", f"One or more of {', '.join(methods.DECODERS)}."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["bfloat16", "float32"], "Of weights and activations."
)
_CHUNKS = flags.DEFINE_integer("num_chunks", 14, "Chunks listed.", lower_bound=1)
_STEADY = flags.DEFINE_integer(
    "steady_chunks", 20, "Chunks of every steady-state figure.", lower_bound=2
)
_OVERRIDES = flags.DEFINE_string(
    "overrides", "{}", "JSON object of nested changes to the pipeline's config."
)
_MESH = flags.DEFINE_string("mesh", None, "Axes of a mesh, as fdjax-run has them.")
_PLACE = flags.DEFINE_string("place", None, "Parts on devices, as fdjax-run has them.")
_TRACE = flags.DEFINE_integer("trace", 0, "Chunks to profile, kernel by kernel.")
_ROLLOUT = flags.DEFINE_bool("rollout", True, "Time the method itself.")
_PURE = flags.DEFINE_bool(
    "pure", True, "Also time calls that leave their cache usable: twice the memory."
)
_CACHED_START = flags.DEFINE_bool(
    "cached_start", False, "Also time a start with a filled compilation cache."
)
_OFFLOAD = flags.DEFINE_bool(
    "offload_expert", False, "Of two experts: weights with the host, brought in turn."
)
_OFFLOAD_SHARE = flags.DEFINE_float(
    "offload_share", 1.0, "Of each expert's weights.", lower_bound=0, upper_bound=1
)
_SESSIONS = flags.DEFINE_list(
    "sessions", [], "Numbers of sessions: time batches of them, of any age."
)
_FUTURES = flags.DEFINE_list(
    "futures", [], "Numbers of chunks to make ahead: time maze-world so; 1 is none."
)
_TEXT = flags.DEFINE_bool("text_encoder", False, "Time the method's text encoder.")
_FORWARD = flags.DEFINE_string(
    "forward", None, "Slug: also time one forward pass of this method's network."
)
_REFERENCE = flags.DEFINE_bool(
    "reference", False, "Time flashdreams on the same shapes and weights."
)
_COMPARE = flags.DEFINE_integer(
    "compare_chunks", 0, "Compare so many chunks with flashdreams and with float32."
)
_COMPILE_MODE = flags.DEFINE_string(
    "reference_compile_mode",
    "max-autotune-no-cudagraphs",
    "torch.compile mode of the reference (its own default); empty: not compiled.",
)
_LIMIT = flags.DEFINE_float(
    "limit_s", 3600, "Stop what runs after this time and skip the rest.", lower_bound=1
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    unknown = set(_DECODERS.value) - set(methods.DECODERS)
    if unknown:
        raise app.UsageError(f"--decoder: unknown {sorted(unknown)}")
    xla_flags.set_defaults()
    folder = Path(_OUTPUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    spec = {
        "method": _METHOD.value,
        "decoders": _DECODERS.value,
        "decoder": _DECODERS.value[0],
        "dtype": _DTYPE.value,
        "pixel_height": _HEIGHT.value,
        "pixel_width": _WIDTH.value,
        "num_chunks": _CHUNKS.value,
        "steady_chunks": _STEADY.value,
        "overrides": json.loads(_OVERRIDES.value),
        "compared_chunks": _COMPARE.value,
        "mesh": _MESH.value,
        "place": _PLACE.value,
        "trace": _TRACE.value,
        "sessions": [int(number) for number in _SESSIONS.value],
        "futures": [int(number) for number in _FUTURES.value],
        "pure": _PURE.value,
        "offload_share": _OFFLOAD_SHARE.value if _OFFLOAD.value else 0.0,
        "folder": str(folder),
    }
    plan = parts.Plan(folder, spec, _LIMIT.value)
    shared = bool(_REFERENCE.value or _COMPARE.value)
    if _ROLLOUT.value:
        plan.rollout(share=shared, keep_executables=_CACHED_START.value)
    elif shared:
        plan.share()
    if shared:
        plan.reference_eager(timed=_REFERENCE.value)
    if _COMPARE.value:
        plan.float32()
        plan.errors()
    if _SESSIONS.value or _FUTURES.value:
        plan.sessions()
    if _TEXT.value:
        plan.component("text_encoder", _METHOD.value)
    if _FORWARD.value:
        plan.component("forward", _FORWARD.value)
    if _CACHED_START.value:
        plan.cached_start()
    if _REFERENCE.value and _COMPILE_MODE.value:
        plan.reference_compiled(_COMPILE_MODE.value)
    print(table.render(plan.finish()), flush=True)
    if plan.failed:
        sys.exit(f"not finished: {', '.join(plan.failed)}")


if __name__ == "__main__":
    if {"-h", "-help", "--help"} & set(sys.argv[1:]):
        app.usage(writeto_stdout=True, exitcode=0)  # absl's own exits with 1
    app.run(main)
