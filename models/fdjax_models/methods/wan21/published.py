"""Where the published weights of the Wan family are, as parts of pipelines."""

import dataclasses

from fdjax_models.networks.clip import ClipImageEncoderConfig
from fdjax_models.networks.taehv.decoder import LIGHTTAE
from fdjax_models.networks.umt5 import Umt5TextEncoderConfig
from fdjax_models.networks.wan_vae import vae

_VAE = "hf://lightx2v/Autoencoders/Wan2.1_VAE.pth"
_LIGHTVAE = "hf://lightx2v/Autoencoders/lightvaew2_1.pth"
_T2V = "hf://Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
_I2V = "hf://Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"

UMT5_XXL = Umt5TextEncoderConfig(
    checkpoint_path=f"{_T2V}/text_encoder/model.safetensors.index.json",
    tokenizer_path=f"{_T2V}/tokenizer/tokenizer.json",
)
"""The text encoder that all Wan models share."""

CLIP_VIT_H = ClipImageEncoderConfig(
    checkpoint_path=f"{_I2V}/image_encoder/model.safetensors"
)
"""The image encoder of Wan 2.1 I2V."""

VAE_DECODER = dataclasses.replace(vae.WAN21_VAE_DECODER, checkpoint_path=_VAE)
"""Decoder of the Wan 2.1 VAE."""

VAE_ENCODER = dataclasses.replace(vae.WAN21_VAE_ENCODER, checkpoint_path=_VAE)
"""Encoder of the Wan 2.1 VAE."""

LIGHTVAE_DECODER = dataclasses.replace(vae.LIGHTVAE_DECODER, checkpoint_path=_LIGHTVAE)
"""Decoder of the pruned Wan 2.1 VAE."""

LIGHTVAE_ENCODER = dataclasses.replace(vae.LIGHTVAE_ENCODER, checkpoint_path=_LIGHTVAE)
"""Encoder of the pruned Wan 2.1 VAE."""

LIGHTTAE_DECODER = dataclasses.replace(
    LIGHTTAE, checkpoint_path="hf://lightx2v/Autoencoders/lighttaew2_1.pth"
)
"""The small decoder for latents of the Wan 2.1 VAE."""

NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，"
    "最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，"
    "画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)
"""What Wan 2.1 is guided away from; `sample_neg_prompt` of Wan-Video/Wan2.1,
wan/configs/shared_config.py."""
