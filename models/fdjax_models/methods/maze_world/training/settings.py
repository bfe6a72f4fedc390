"""What a training run depends on besides its starting weights."""

import dataclasses
from typing import Any, Literal

from fdjax.config import derive_config
from fdjax_models.methods.maze_world import config, sizes
from fdjax_models.methods.maze_world.training.denoiser import Denoiser
from fdjax_models.methods.maze_world.training.distillation import Distiller
from fdjax_models.networks.taehv.decoder import TaehvDecoder
from fdjax_models.networks.taehv.encoder import TaehvEncoder
from fdjax_models.networks.wan_dit.config import WanDiTConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a run depends on besides its starting weights.

    Attributes:
        seed: Seed of weights and data; held-out clips use `seed + 1`.
        dtype: Computation dtype; weights and optimiser are float32.
        attention: Implementation of `jax.nn.dot_product_attention`: "cudnn" or "xla".
        autoencoder_minutes: Time for the autoencoder, compilation not counted.
        denoiser_minutes: Time for the base model, compilation not counted.
        autoencoder_rate: Peak learning rate.
        denoiser_rate: Peak learning rate.
        autoencoder_batch: Clips in a step, on each device.
        autoencoder_chunks: Latent frames of a clip.
        denoiser_batch: Clips in a step, on each device.
        denoiser_chunks: Latent frames of a clip.
        steps_per_dispatch: Steps that run without the host.
        pool_clips: Encoded clips kept on each device.
        fresh_clips: Clips renewed on each device before each dispatch.
        distillation_minutes: Time for the few-step model, compilation not counted.
        distillation_rate: Learning rate of the few-step model; it does not fall.
        critic_rate: Learning rate of its critic.
        critic_updates: Steps of the critic for each of the model.
        distillation_batch: Pieces of rollouts in a step, on each device.
        distillation_steps: Steps between new rollouts.
        rollouts: Rollouts made at once, on each device.
        rollout_chunks: Latent frames of a rollout.
        own_share: Share of the base model's context that are its own predictions.
        own_from: Share of its time after which `own_share` holds; 0 before it.
        write_sheets: Whether a contact sheet follows each stage.
        network: Changes to `sizes.NETWORK`.
    """

    seed: int = 0
    dtype: str = "bfloat16"
    attention: Literal["cudnn", "xla"] = "cudnn"
    autoencoder_minutes: float = 2.1
    denoiser_minutes: float = 9.1
    autoencoder_rate: float = 2e-3
    denoiser_rate: float = 1.5e-3
    autoencoder_batch: int = 32
    autoencoder_chunks: int = 5
    denoiser_batch: int = 16
    denoiser_chunks: int = 24
    steps_per_dispatch: int = 64
    pool_clips: int = 2048
    fresh_clips: int = 64
    distillation_minutes: float = 3.0
    distillation_rate: float = 3e-4
    critic_rate: float = 8e-4
    critic_updates: int = 3
    distillation_batch: int = 8
    distillation_steps: int = 16
    rollouts: int = 64
    rollout_chunks: int = 72
    own_share: float = 0.8
    own_from: float = 0.5
    write_sheets: bool = True
    network: tuple[tuple[str, Any], ...] = ()

    def encoder(self) -> TaehvEncoder:
        """The autoencoder's first half, in the training dtype."""
        return dataclasses.replace(sizes.ENCODER, dtype=self.dtype).setup()

    def decoder(self) -> TaehvDecoder:
        """The autoencoder's second half, in the training dtype."""
        return TaehvDecoder(dataclasses.replace(sizes.DECODER, dtype=self.dtype))

    def network_config(self, dtype: str = "float32") -> WanDiTConfig:
        """The transformer's sizes."""
        changes = dict(self.network) | {"dtype": dtype}
        return dataclasses.replace(sizes.NETWORK, **changes)

    def denoiser(self) -> Denoiser:
        """The transformer, in the training dtype."""
        return Denoiser(
            config=self.network_config(self.dtype),
            height=sizes.LATENT_HEIGHT,
            width=sizes.LATENT_WIDTH,
            window=sizes.WINDOW_CHUNKS,
            attention=self.attention,
        )

    def seconds(self, stage: str) -> float:
        """Time for a stage."""
        return 60 * getattr(self, f"{stage}_minutes")

    def distiller(self) -> Distiller:
        """The few-step model, streaming with the solver that ships."""
        model = derive_config(
            config.PIPELINE.diffusion_model,
            transformer={"network": self.network_config(self.dtype)},
        )
        return Distiller(denoiser=self.denoiser(), model=model.setup())
