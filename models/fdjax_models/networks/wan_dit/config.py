"""Sizes of a Wan DiT, and those of the published networks."""

import dataclasses
import math

from fdjax.config import DTypeName


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanDiTConfig:
    """Sizes of a Wan DiT; the defaults are those of Wan 2.1 T2V 1.3B."""

    dim: int = 1536
    """Model width M."""

    ffn_dim: int = 8960
    """MLP width F."""

    num_heads: int = 12
    """Attention heads N."""

    num_layers: int = 30
    """Transformer blocks."""

    in_dim: int = 16
    """Channels of the network's input: the latent and what is concatenated to it."""

    out_dim: int = 16
    """Channels of the latent."""

    text_dim: int = 4096
    """Width of the text encoder's output; 0 builds a network without text."""

    text_len: int = 512
    """Prompt tokens P, padding included."""

    image_dim: int = 0
    """Width of the image encoder's output (1280 for CLIP ViT-H); 0: no such branch."""

    control_dim: int = 0
    """Channels of the camera rays (384: 6 per pixel, 8 x 8 pixels); 0: no branch."""

    token_feature_dim: int = 0
    """Channels of `WanControl.token_features`; 0: the network takes none."""

    vector_feature_dim: int = 0
    """Width of `WanControl.vector_features`; 0: the network takes none."""

    freq_dim: int = 256
    """Sinusoidal features of the timestep."""

    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns of one token."""

    eps: float = 1e-6
    """Epsilon of the norms, except those of the image embedding."""

    dtype: DTypeName = "bfloat16"
    """Dtype of activations and of the key/value cache. Norm statistics, modulation,
    rotary embedding and softmax are float32."""

    param_dtype: DTypeName = "bfloat16"
    """Dtype of the weights."""

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ValueError(
                "dim must be num_heads times an even head width, got "
                f"dim={self.dim} with num_heads={self.num_heads}."
            )
        # The rotary embedding gives rows and columns D // 6 pairs each, time the rest.
        if self.head_dim < 6:
            raise ValueError(
                "The head width dim / num_heads must be at least 6, two for each of "
                f"time, row and column, got {self.head_dim}."
            )
        if not 1 <= self.num_layers <= 1000:
            raise ValueError(f"num_layers must be 1 to 1000, got {self.num_layers}.")
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim must be even, got {self.freq_dim}.")
        if self.image_dim and not self.text_dim:
            raise ValueError(
                f"image_dim={self.image_dim} needs the cross-attention that text_dim=0 "
                "leaves out; set text_dim."
            )

    @property
    def head_dim(self) -> int:
        """Head width D."""
        return self.dim // self.num_heads

    @property
    def patch_volume(self) -> int:
        """Latent positions per token."""
        return math.prod(self.patch_size)


# Sizes: wan/configs of Wan-Video/Wan2.1 and Wan-Video/Wan2.2.
# 1,418,996,800 parameters.
WAN_1_3B = WanDiTConfig()
"""Wan 2.1 T2V 1.3B; Self-Forcing and Causal-Forcing keep its sizes."""

# 14,288,491,584 parameters.
WAN_14B_T2V = WanDiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
"""Wan 2.1 T2V 14B, and each half of the Wan 2.2 A14B pair."""

# in_dim: noisy latent 16, mask 4, image latent 16.  16,394,878,784 parameters.
WAN_14B_I2V = dataclasses.replace(WAN_14B_T2V, in_dim=36, image_dim=1280)
"""Wan 2.1 I2V 14B: mask and image latent as channels, CLIP cross-attention."""

# 4,999,787,712 parameters.
WAN_TI2V_5B = WanDiTConfig(
    dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_dim=48, out_dim=48
)
"""Wan 2.2 TI2V 5B, on the latents of the Wan 2.2 VAE."""

# 18,544,332,864 parameters. Without CLIP: the image comes in as channels only.
LINGBOT_WORLD_14B = dataclasses.replace(WAN_14B_T2V, in_dim=36, control_dim=384)
"""LingBot-World 14B: mask and image latent as channels, camera branch."""

# 1,709,502,016 parameters.
LINGBOT_WORLD_1_3B = dataclasses.replace(WAN_1_3B, in_dim=36, control_dim=384)
"""LingBot-World v2 1.3B: the same additions to the small network."""
