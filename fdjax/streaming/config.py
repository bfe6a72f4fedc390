"""What the config of every streamed diffusion transformer has."""

import dataclasses
from typing import Any

from fdjax.attention.rope import Rope3D
from fdjax.config import DTypeName
from fdjax.contract.transformer import TransformerConfig
from fdjax.streaming.layout import StreamLayout


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamingDiTConfig(TransformerConfig):
    """Base of the configs of `StreamingDiT`s; `_t` counts latent frames."""

    checkpoint_path: str | None = None
    """Published or converted checkpoint: a path, a URL, or a Hugging Face file."""

    len_t: int = 21
    """Latent frames of one chunk."""

    window_size_t: int = 21
    """Newest latent frames that self-attention sees, the current chunk included."""

    sink_size_t: int = 0
    """First latent frames that self-attention sees for ever, besides the window."""

    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 is off, above 1 needs a negative prompt."""

    apply_rope_before_kvcache: bool = True
    """True: keys are cached at their absolute time. False: cache-relative time, keys
    are cached unrotated and turned once per chunk, so that no position exceeds
    `sink_size_t + window_size_t`."""

    h_extrapolation_ratio: float = 1.0
    """NTK ratio of the rotary embedding over rows."""

    w_extrapolation_ratio: float = 1.0
    """NTK ratio of the rotary embedding over columns."""

    slot_multiple: int | None = None
    """The key/value cache is padded to a multiple of this many tokens; None: 128 on a
    GPU, where attention gains from it, else 1."""

    kv_dtype: DTypeName | None = None
    """Dtype of the key/value cache; None: that of the network. "float8_e4m3fn" halves
    its memory, and attention runs in 8 bits, faster on a Hopper GPU."""

    def stream_layout(
        self, network: Any, *, interleaved: bool, **more: Any
    ) -> StreamLayout:
        """The sizes of streaming.

        Args:
            network: Sizes of the network: `out_dim`, `patch_size`, `num_layers`,
                `num_heads`, `head_dim` and `dtype`.
            interleaved: See `Rope3D`.
            **more: What else a family sets of the layout.

        Raises:
            ValueError: The sizes cannot work together.
        """
        ratios = 1.0, self.h_extrapolation_ratio, self.w_extrapolation_ratio
        return StreamLayout(
            channels=network.out_dim,
            patch_size=network.patch_size,
            num_layers=network.num_layers,
            num_heads=network.num_heads,
            rope=Rope3D(
                head_dim=network.head_dim,
                interleaved=interleaved,
                extrapolation=ratios,
            ),
            dtype=network.dtype,
            len_t=self.len_t,
            window_size_t=self.window_size_t,
            sink_size_t=self.sink_size_t,
            cache_relative=not self.apply_rope_before_kvcache,
            guidance_scale=self.guidance_scale,
            slot_multiple=self.slot_multiple,
            kv_dtype=self.kv_dtype,
            **more,
        )
