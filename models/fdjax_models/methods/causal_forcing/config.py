"""Causal-Forcing as values: Self-Forcing's four-step causal model, trained otherwise.

Sizes, schedule and files: NVIDIA/flashdreams, integrations_v2/causal_forcing; weights
of zhuhz22/Causal-Forcing. Its shift is 5, where Self-Forcing's is 8. Steps of
Causal-Forcing++ (arXiv:2605.15141): thu-ml/Causal-Forcing,
configs/causal_forcing_dmd_framewise_{2,1}step.yaml and pipeline/causal_inference.py,
as its copy kw7243/Causal-Forcing has them.
"""

from fdjax.config import derive_config
from fdjax_models.methods.causal_forcing.runner import (
    CausalForcingImageRunnerConfig,
    CausalForcingRunnerConfig,
)
from fdjax_models.methods.self_forcing import config as self_forcing
from fdjax_models.methods.wan21 import published
from fdjax_models.networks.wan_dit.i2v_encoder import ImageControlEncoderConfig
from fdjax_models.networks.wan_dit.image_conditioning import Stamp

CHUNKWISE = derive_config(
    self_forcing.T2V_1_3B,
    name="causal-forcing-wan2.1-t2v-1.3b-chunkwise",
    diffusion_model={
        "transformer": {
            "checkpoint_path": "hf://zhuhz22/Causal-Forcing/chunkwise/causal_forcing.pt"
        },
        "scheduler": {"shift": 5.0},
    },
)
"""Chunks of three latent frames that see the last 21."""

FRAMEWISE = derive_config(
    CHUNKWISE,
    name="causal-forcing-wan2.1-t2v-1.3b-framewise",
    diffusion_model={
        "transformer": {
            "checkpoint_path": "hf://zhuhz22/Causal-Forcing/framewise/causal_forcing.pt",
            "len_t": 1,
        }
    },
)
"""One latent frame at a time: the shortest way from a control to a picture."""

FRAMEWISE_IMAGE = derive_config(
    FRAMEWISE,
    name="causal-forcing-wan2.1-i2v-1.3b-framewise",
    diffusion_model={"transformer": {"image_conditioning": (Stamp(),)}},
    encoder=ImageControlEncoderConfig(encoder=published.VAE_ENCODER, len_t=1),
)
"""The same weights; the image's latent is the first frame."""

FRAMEWISE_2STEP = derive_config(
    FRAMEWISE,
    name="causal-forcing-wan2.1-t2v-1.3b-framewise-2step",
    diffusion_model={
        "transformer": {
            "checkpoint_path": (
                "hf://zhuhz22/Causal-Forcing/causal-forcing++/framewise-2step.pt"
            )
        },
        "scheduler": {"num_inference_steps": 2, "denoising_timesteps": (1000, 500)},
        # `denoising_step_list_first_chunk` of its configs.
        "first_scheduler": FRAMEWISE.diffusion_model.scheduler,
    },
)
"""Causal-Forcing++ in two steps a latent frame; the first, which has nothing to go on,
takes four."""

FRAMEWISE_1STEP = derive_config(
    FRAMEWISE,
    name="causal-forcing-wan2.1-t2v-1.3b-framewise-1step",
    diffusion_model={
        "transformer": {
            "checkpoint_path": (
                "hf://zhuhz22/Causal-Forcing/causal-forcing++/framewise-1step.pt"
            )
        },
        "scheduler": {"num_inference_steps": 1, "denoising_timesteps": (1000,)},
        "first_scheduler": FRAMEWISE.diffusion_model.scheduler,
    },
)
"""Causal-Forcing++ in one step a latent frame, but for the first."""

_PROMPT = (
    "A heron stands in a shallow river at first light. Mist lies on the water, the "
    "bird turns its head and takes a slow step, and rings run out from its legs. The "
    "camera holds still, low above the surface."
)

RUNNER_CONFIGS = {
    config.name: runner(
        runner_name=config.name,
        description=description,
        pipeline=config,
        prompt=_PROMPT,
    )
    for config, runner, description in (
        (
            CHUNKWISE,
            CausalForcingRunnerConfig,
            "Causal-Forcing on Wan 2.1 1.3B: streaming text to video, by chunks.",
        ),
        (
            FRAMEWISE,
            CausalForcingRunnerConfig,
            "Causal-Forcing, one latent frame (four video frames) at a time.",
        ),
        (
            FRAMEWISE_IMAGE,
            CausalForcingImageRunnerConfig,
            "Causal-Forcing from a first frame, one latent frame at a time.",
        ),
        (
            FRAMEWISE_2STEP,
            CausalForcingRunnerConfig,
            "Causal-Forcing++, a latent frame at a time, in two steps.",
        ),
        (
            FRAMEWISE_1STEP,
            CausalForcingRunnerConfig,
            "Causal-Forcing++ in one step: the quickest to answer.",
        ),
    )
}
