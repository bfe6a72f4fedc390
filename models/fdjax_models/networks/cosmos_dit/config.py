"""Sizes of a Cosmos DiT, and those of the published networks."""

import dataclasses
import math

from fdjax.config import DTypeName


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosmosDiTConfig:
    """Sizes of a Cosmos DiT; the defaults are those of Cosmos-Predict2.5 2B."""

    dim: int = 2048
    """Model width M."""

    ffn_dim: int = 8192
    """MLP width F."""

    num_heads: int = 16
    """Attention heads N."""

    num_layers: int = 28
    """Transformer blocks."""

    out_dim: int = 16
    """Channels of the latent. The input has one more, the mask of given frames."""

    text_dim: int = 100352
    """Width of the text encoder's output: 28 layers of Cosmos-Reason1, 3584 each."""

    text_len: int = 512
    """Prompt tokens P, padding included."""

    context_dim: int = 1024
    """Width to which text is projected; keys and values are made of it."""

    lora_dim: int = 256
    """Rank of the two-step projections of the timestep to shift, scale and gate."""

    control_dim: int = 0
    """Channels of the HD map's latent: 16 of a VAE, 192 of folded pixels; 0: none."""

    num_cameras: int = 0
    """Cameras that have an embedding (7 in OmniDreams); every block then attends
    across views. 0 builds a network for one view."""

    patch_size: tuple[int, int, int] = (1, 2, 2)
    """Latent frames, rows and columns of one token."""

    timestep_scale: float = 0.001
    """The timestep in [0, 1000] times this is what is embedded."""

    eps: float = 1e-6
    """Epsilon of every norm."""

    dtype: DTypeName = "bfloat16"
    """Dtype of activations and of the key/value cache. Norm statistics, the sums with
    modulation, rotary angles and softmax are float32."""

    param_dtype: DTypeName = "bfloat16"
    """Dtype of the weights."""

    time_dtype: DTypeName | None = None
    """Dtype of the timestep's sinusoid; None: `dtype`, as in NVIDIA/flashdreams, where
    a cast of the network rounds the table of frequencies too (4e-3 in bfloat16).
    "float32" is what its native kernels do."""

    def __post_init__(self) -> None:
        sizes = ("dim", "ffn_dim", "num_heads", "out_dim", "text_dim", "text_len")
        for name in (*sizes, "context_dim", "lora_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}.")
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ValueError(
                "dim must be num_heads times an even head width, got "
                f"dim={self.dim} with num_heads={self.num_heads}."
            )
        # Rows and columns get D // 6 pairs each; one pair cannot be extrapolated.
        if self.head_dim < 12:
            raise ValueError(
                "The head width dim / num_heads must be at least 12, four for each of "
                f"time, row and column, got {self.head_dim}."
            )
        if not 1 <= self.num_layers <= 1000:
            raise ValueError(f"num_layers must be 1 to 1000, got {self.num_layers}.")
        for name in ("control_dim", "num_cameras"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must be >= 0, 0 for none, got {getattr(self, name)}."
                )

    @property
    def head_dim(self) -> int:
        """Head width D."""
        return self.dim // self.num_heads

    @property
    def patch_volume(self) -> int:
        """Latent positions per token."""
        return math.prod(self.patch_size)

    @property
    def in_features(self) -> int:
        """Features of an input token: those of the latent, then those of the mask."""
        return (self.out_dim + 1) * self.patch_volume


# Sizes: NVIDIA/flashdreams, recipes/cosmos/transformer/impl/network.py.
# 2,059,158,528 parameters; a file has 16,384 more, see the converter's table.
COSMOS_2B = CosmosDiTConfig()
"""Cosmos-Predict2.5 2B."""

COSMOS_2B_HDMAP = dataclasses.replace(COSMOS_2B, control_dim=16)
"""OmniDreams, one view: the HD map as a VAE's latent."""

COSMOS_2B_VIEWS = dataclasses.replace(COSMOS_2B, control_dim=192, num_cameras=7)
"""OmniDreams, several views: the HD map as folded pixels."""
