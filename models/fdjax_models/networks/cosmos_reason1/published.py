"""Where the published Cosmos-Reason1 is, and what Cosmos is guided away from."""

from fdjax_models.networks.cosmos_reason1.encoder import CosmosReason1EncoderConfig

# The commit that Cosmos-Predict2.5 was trained with; the main branch has moved on.
_REPO = "hf://nvidia/Cosmos-Reason1-7B@3210bec0495fdc7a8d3dbb8d58da5711eab4b423"

COSMOS_REASON1_7B = CosmosReason1EncoderConfig(
    checkpoint_path=f"{_REPO}/model.safetensors.index.json",
    tokenizer_path=f"{_REPO}/tokenizer.json",
)
"""The text encoder of Cosmos-Predict2.5 and OmniDreams; the revision is that of
NVIDIA/flashdreams, infra/encoder/text/cosmos_reason1.py."""

NEGATIVE_PROMPT = (
    "The video captures a series of frames showing ugly scenes, static with no motion, "
    "motion blur, over-saturation, shaky footage, low resolution, grainy texture, "
    "pixelated images, poorly lit areas, underexposed and overexposed scenes, poor "
    "color balance, washed out colors, choppy sequences, jerky movements, low frame "
    "rate, artifacting, color banding, unnatural transitions, outdated special "
    "effects, fake elements, unconvincing visuals, poorly edited content, jump cuts, "
    "visual noise, and flickering. Overall, the video is of poor quality."
)
"""The standard negative prompt of Cosmos-Predict2.5; `NEGATIVE_PROMPT` of
NVIDIA/flashdreams, recipes/cosmos/transformer/constants.py."""
