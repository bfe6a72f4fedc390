"""Tiny models in files of the published layouts, and the reference reading them.

`UMT5`, `CLIP` and `VAE` are the config fields that make ours the same size.
"""

from unittest import mock

import numpy as np
import torch
import transformers

from tests.parity import flashdreams_cpu  # isort: split

from flashdreams.infra.encoder.image import clip as reference_clip
from flashdreams.infra.encoder.text.umt5 import UMT5TextEncoderConfig
from flashdreams.recipes.wan.autoencoder import vae as reference_vae

from fdjax_models.networks.clip.preprocess import MEAN, STD
from tests.networks.umt5 import tiny as tiny_umt5

del flashdreams_cpu  # imported for its effect

UMT5 = {
    name: getattr(tiny_umt5.CONFIG, name)
    for name in (
        *("vocab_size", "width", "mlp_dim", "num_layers", "num_heads", "head_dim"),
        "dtype",
    )
}
VAE = {"widths": (8, 16, 32, 32), "dtype": "float32"}
CLIP = {
    "image_size": 28,
    "width": 1280,  # the reference's network takes no other
    "mlp_dim": 64,
    "num_layers": 2,
    "output_layer": 1,
    "dtype": "float32",
}


def write_vae(path):
    """A VAE in the official layout, and the reference's class that has read it."""

    def build():
        return reference_vae.WanVAE(
            vae_path=str(path), use_cuda_graph=False, use_compile=False, base_dim=8
        )

    torch.save({}, path)
    shapes = {k: v.shape for k, v in build().state_dict().items() if "_call." not in k}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        scale = 0.1 if len(shape) == 1 else noise[0].numel() ** -0.5
        state[key] = 1 + 0.1 * noise if key.endswith("gamma") else scale * noise
    # The video stays inside [-1, 1], where it is not clamped.
    state["decoder.head.2.weight"] *= 0.3
    torch.save(state, path)
    return build()


def rows_first(tensors):
    """The Wan 2.2 VAE for the package, which takes the pixels of a square otherwise.

    Version 0.1.0 folds them into channels row by row. The official code and diffusers
    go column by column, and so does NVIDIA/flashdreams now: there the weights of the
    layers that see these channels need no exchange.
    """
    # (colour, column, row) -> (colour, row, column)
    order = np.arange(12).reshape(3, 2, 2).swapaxes(1, 2).ravel()
    first, last = "encoder.conv_in.weight", "decoder.conv_out"
    return tensors | {
        first: tensors[first][:, order],
        f"{last}.weight": tensors[f"{last}.weight"][order],
        f"{last}.bias": tensors[f"{last}.bias"][order],
    }


def write_text_encoder(folder):
    """Folders `text_encoder` and `tokenizer`, and the reference's class on them."""
    torch.manual_seed(0)
    config = tiny_umt5.CONFIG
    model = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=config.vocab_size,
            d_model=config.width,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            feed_forward_proj="gated-gelu",
        )
    )
    model.save_pretrained(folder / "text_encoder")
    transformers.T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
        + [(word, -float(i)) for i, word in enumerate(tiny_umt5.WORDS, 1)],
        extra_ids=4,
    ).save_pretrained(folder / "tokenizer")
    return UMT5TextEncoderConfig(
        model_id_or_local_path=str(folder), dtype=torch.float32
    ).setup()


def write_image_encoder(folder):
    """A folder `image_encoder`, and the reference's class on it."""
    torch.manual_seed(0)
    model = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=CLIP["width"],
            intermediate_size=CLIP["mlp_dim"],
            num_hidden_layers=CLIP["num_layers"],
            num_attention_heads=16,
            image_size=CLIP["image_size"],
            patch_size=14,
            hidden_act="gelu",
        )
    )
    model.save_pretrained(folder / "image_encoder")
    with mock.patch.object(reference_clip, "CLIPImageProcessor", TorchProcessor):
        return reference_clip.CLIPImageEncoderConfig(
            model_id_or_local_path=str(folder), dtype=torch.float32
        ).setup()


class TorchProcessor:
    """The steps of `CLIPImageProcessor` on tensors, which needs torchvision to run."""

    size = CLIP["image_size"]

    @classmethod
    def from_pretrained(cls, *_, **__):
        return cls()

    def __call__(self, images, return_tensors, do_rescale):
        assert (return_tensors, do_rescale, images.dtype) == (
            "pt",
            False,
            torch.float32,
        )
        size = self.size
        short = min(images.shape[-2:])
        shape = [int(size * side / short) for side in images.shape[-2:]]
        resized = torch.nn.functional.interpolate(
            images, shape, mode="bicubic", align_corners=False, antialias=True
        )
        top, left = ((side - size) // 2 for side in shape)
        cropped = resized[..., top : top + size, left : left + size]
        mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
        return transformers.BatchFeature({"pixel_values": (cropped - mean) / std})
