"""Worker: flashdreams 0.1.0 on the shapes of an OmniDreams method.

That release has Cosmos-Predict2's network, pipeline, VAEs and schedules, but not the
linear layer that adds the HD map's tokens (2e-4 of a forward pass): the map is encoded
and timed, and then not looked at. The network's weights are random; nothing is
compared.
"""

import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarking import compare, measure, reference


def main(spec: dict[str, Any], report: measure.Report) -> None:
    start = time.perf_counter()
    import torch

    cuda = torch.cuda.is_available()
    if not cuda:  # its kernels need a GPU; the parity tests know how to replace them
        from tests.parity import flashdreams_cpu  # noqa: F401
    torch.set_grad_enabled(False)
    device = torch.device("cuda" if cuda else "cpu")
    pipeline = build(spec, Path(spec["share"]), device)
    report.add("import_and_build_s", round(time.perf_counter() - start, 3))
    first = spec["first_steady_chunk"] + spec["skipped_steady_chunks"]
    for number in range(spec["timed_rollouts"]):
        for row in rollout(pipeline, spec, device):
            report.append(f"rollout_{number}", row)
        rows = report.values[f"rollout_{number}"]
        report.add("steady", measure.spread_stages(rows[first:]))
    if cuda:
        report.add("mem_peak_gib", torch.cuda.max_memory_allocated() / 2**30)


def build(spec: dict[str, Any], folder: Path, device: Any) -> Any:
    """The reference's parts of the pipeline, in evaluation mode on the device."""
    import torch
    from flashdreams.infra import compile as compilation
    from flashdreams.infra.diffusion.model import DiffusionModelConfig
    from flashdreams.infra.diffusion.scheduler.fm import FlowMatchSchedulerConfig
    from flashdreams.infra.pipeline import StreamInferencePipelineConfig
    from flashdreams.recipes.cosmos import transformer as cosmos
    from flashdreams.recipes.cosmos.transformer.impl.network import (
        CosmosDiTNetworkConfig,
    )

    if spec["compile_mode"]:
        cosmos.compile_module = functools.partial(
            compilation.compile_module, mode=spec["compile_mode"]
        )
    compiled, dtype = bool(spec["compile_mode"]), getattr(torch, spec["dtype"])
    model = spec["reference"]
    network = CosmosDiTNetworkConfig(**model["network"])
    transformer = cosmos.CosmosTransformerConfig(
        network=network,
        **model["transformer"],
        dtype=dtype,
        compile_network=compiled,
        use_cuda_graph=compiled,
    )
    with device:  # random weights on a CPU would take as long as everything else
        config = StreamInferencePipelineConfig(
            name="reference",
            diffusion_model=DiffusionModelConfig(
                transformer=transformer,
                scheduler=FlowMatchSchedulerConfig(**model["scheduler"]),
                context_noise=model["context_noise"],
                seed=0,
            ),
            encoder=_encoder(folder, dtype, compiled, model["vae_base_dim"]),
            decoder=reference.decoder_config(spec["decoder"], folder, dtype, compiled),
            enable_sync_and_profile=device.type == "cuda",
        )
        return config.setup().to(device).eval()


def _encoder(folder: Path, dtype: Any, compiled: bool, base_dim: int) -> Any:
    """The HD map's encoder, shipped with CUDA graphs and without compilation."""
    from flashdreams.recipes.wan.autoencoder import vae

    # It takes its widths from the name of the file.
    named = folder / "lightvaew2_1.safetensors"
    named.unlink(missing_ok=True)
    named.symlink_to(folder / compare.WEIGHTS["encoder"])
    return vae.WanVAEEncoderConfig(
        checkpoint_path=str(named),
        base_dim=base_dim,
        dtype=dtype,
        use_cuda_graph=compiled,
        use_compile=False,
    )


def rollout(
    pipeline: Any, spec: dict[str, Any], device: Any
) -> Iterator[dict[str, Any]]:
    """Milliseconds per stage of each chunk, as the package reports them."""
    import torch

    model, dtype = spec["reference"], getattr(torch, spec["dtype"])
    height, width = spec["pixel_height"], spec["pixel_width"]
    size, len_t = (height // 8, width // 8), model["transformer"]["len_t"]
    text = torch.randn(1, *model["text_shape"], device=device, dtype=dtype)
    image = torch.randn(1, 1, 16, *size, device=device, dtype=dtype)
    cache = pipeline.initialize_cache(
        transformer_context={
            "height": size[0],
            "width": size[1],
            "text_embeddings": text,
            "image_embeddings": image,
        }
    )
    for index in range(spec["num_chunks"]):
        frames = 4 * len_t - (0 if index else 3)
        hdmap = torch.rand(1, frames, 3, height, width, device=device, dtype=dtype)
        start = time.perf_counter()
        pipeline.generate(index, cache, hdmap * 2 - 1)
        stats = pipeline.finalize(index, cache) or {}
        stats = {key: round(value, 3) for key, value in stats.items()}
        wall = 1e3 * (time.perf_counter() - start)
        yield {"chunk": index, **stats, "wall_ms": round(wall, 3)}


if __name__ == "__main__":
    measure.worker(main)
