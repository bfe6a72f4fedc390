"""Worker: the PyTorch reference, flashdreams 0.1.0, on the same shapes and weights.

It reads what `compare.share` wrote. Compared rollouts draw the noise that is given;
timed ones draw their own, since a draw from the host would be timed with them.
"""

import contextlib
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarking import compare, measure


def main(spec: dict[str, Any], report: measure.Report) -> None:
    start = time.perf_counter()
    import torch

    cuda = torch.cuda.is_available()
    if not cuda:  # its kernels need a GPU; the parity tests know how to replace them
        from tests.parity import flashdreams_cpu  # noqa: F401
    if spec["dtype"] == "float32":
        _exact_float32(torch)
    torch.set_grad_enabled(False)
    folder = Path(spec["share"])
    pipeline = build(spec, folder, torch.device("cuda" if cuda else "cpu"))
    report.add("import_and_build_s", round(time.perf_counter() - start, 3))
    runs = Runs(pipeline, spec, folder)
    if spec["compare"]:
        noise = np.load(folder / "noise.npy", mmap_mode="r")
        noise = noise[: spec["compared_chunks"]]
        with draws(noise.reshape(-1, *noise.shape[2:])):
            for row in runs.chunks(len(noise), compare=True):
                report.append("compared_chunks", row)
    first = spec["first_steady_chunk"] + spec["skipped_steady_chunks"]
    for number in range(spec["timed_rollouts"]):
        for row in runs.chunks(spec["num_chunks"]):
            report.append(f"rollout_{number}", row)
        rows = report.values[f"rollout_{number}"]
        report.add("steady", measure.spread_stages(rows[first:]))
    if cuda:
        report.add("mem_peak_gib", torch.cuda.max_memory_allocated() / 2**30)


def build(spec: dict[str, Any], folder: Path, device: Any) -> Any:
    """The reference's pipeline, in evaluation mode on the device."""
    import torch
    from flashdreams.infra import compile as compilation
    from flashdreams.infra.diffusion.model import DiffusionModelConfig
    from flashdreams.infra.diffusion.scheduler.fm import FlowMatchSchedulerConfig
    from flashdreams.infra.pipeline import StreamInferencePipelineConfig
    from flashdreams.recipes.taehv import impl as taehv
    from flashdreams.recipes.wan.transformer import wan21
    from flashdreams.recipes.wan.transformer.impl.network import WanDiTNetworkConfig

    if spec["compile_mode"]:
        compile_module = functools.partial(
            compilation.compile_module, mode=spec["compile_mode"]
        )
        wan21.compile_module = taehv.compile_module = compile_module
    compiled, dtype = bool(spec["compile_mode"]), getattr(torch, spec["dtype"])
    model = spec["reference"]
    transformer = wan21.Wan21TransformerConfig(
        network=WanDiTNetworkConfig(**model["network"]),
        **model["transformer"],
        dtype=dtype,
        batch_shape=(),
        checkpoint_path=str(folder / compare.WEIGHTS["transformer"]),
        compile_network=compiled,
        use_cuda_graph=compiled,
    )
    with device:  # random weights on a CPU would take as long as everything else
        config = StreamInferencePipelineConfig(
            name="reference",
            diffusion_model=DiffusionModelConfig(
                transformer=transformer,
                scheduler=FlowMatchSchedulerConfig(**model["scheduler"]),
                seed=0,
            ),
            decoder=decoder_config(spec["decoder"], folder, dtype, compiled),
            enable_sync_and_profile=device.type == "cuda",
        )
        return config.setup().to(device).eval()


def decoder_config(name: str, folder: Path, dtype: Any, compiled: bool) -> Any:
    """The reference's decoder by its name here; weights from the folder."""
    from flashdreams.recipes.taehv import TeahvVAEDecoderConfig
    from flashdreams.recipes.wan.autoencoder.vae import WanVAEDecoderConfig

    path = folder / compare.WEIGHTS["decoder"]
    shared = {"dtype": dtype, "use_cuda_graph": compiled}
    if name == "none":
        return None
    if name == "wan_vae":  # shipped with CUDA graphs and without compilation
        return WanVAEDecoderConfig(
            checkpoint_path=str(path), use_compile=False, **shared
        )
    # It takes the scale of the latents from the name of the file.
    named = path.with_name("lighttaew2_1.safetensors")
    named.unlink(missing_ok=True)
    named.symlink_to(path)
    return TeahvVAEDecoderConfig(
        checkpoint_path=str(named), use_compile=compiled, **shared
    )


class Runs:
    """Rollouts of the reference, each from a fresh cache."""

    def __init__(self, pipeline: Any, spec: dict[str, Any], folder: Path) -> None:
        import torch

        self._pipeline, self._spec, self._folder = pipeline, spec, folder
        text = torch.from_numpy(np.load(folder / "text.npy"))
        model = pipeline.diffusion_model
        self._context = {
            "height": spec["pixel_height"] // 8,
            "width": spec["pixel_width"] // 8,
            "text_embeddings": text.to(model.device, model.dtype),
        }

    def chunks(self, count: int, *, compare: bool = False) -> Iterator[dict[str, Any]]:
        """A rollout: milliseconds per stage of each chunk, as the package reports."""
        pipeline = self._pipeline
        cache = pipeline.initialize_cache(transformer_context=dict(self._context))
        for index in range(count):
            start = time.perf_counter()
            video = pipeline.generate(index, cache)
            if compare:
                self._save(index, cache.final_state.clean, video)
            stats = pipeline.finalize(index, cache) or {}
            stats = {key: round(value, 3) for key, value in stats.items()}
            wall = 1e3 * (time.perf_counter() - start)
            yield {"chunk": index, **stats, "wall_ms": round(wall, 3)}

    def _save(self, index: int, latent: Any, video: Any) -> None:
        latent = latent.float().cpu().numpy()[None]
        if self._spec["decoder"] == "none":
            video = None
        else:  # [T, C, H, W] to [B, T, H, W, C]
            video = np.moveaxis(video.float().cpu().numpy(), -3, -1)[None]
        name = f"reference_{self._spec['dtype']}"
        compare.save_chunk(self._folder, name, index, latent, video)


@contextlib.contextmanager
def draws(arrays: np.ndarray) -> Iterator[None]:
    """Within it, the package's random draws are `arrays`, in order, without B."""
    import torch

    queue = iter(arrays)

    def draw(shape: Any, device: Any, dtype: Any) -> Any:
        array = next(queue)[0]
        assert array.shape == tuple(shape), (array.shape, tuple(shape))
        return torch.from_numpy(np.array(array)).to(device, dtype)

    def randn(shape: Any, device: Any = None, dtype: Any = None, **_: Any) -> Any:
        return draw(shape, device, dtype)

    def normal(x: Any, **_: Any) -> Any:
        return x.copy_(draw(x.shape, x.device, x.dtype))

    with (
        mock.patch("torch.randn", randn),
        mock.patch.object(torch.Tensor, "normal_", normal),
    ):
        yield


def _exact_float32(torch: Any) -> None:
    """No TF32; and torch's own attention, since cuDNN's refuses float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    from flashdreams.core.attention import cp

    def attend(query: Any, key: Any, value: Any, return_lse: bool = False) -> Any:
        del return_lse
        attention = torch.nn.functional.scaled_dot_product_attention
        return attention(query, key, value), None

    cp.torch_sdpa_cudnn = cp.torch_sdpa_flash = attend


if __name__ == "__main__":
    measure.worker(main)
