"""What streaming needs to know of a diffusion transformer, as one value."""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax

from fdjax.attention import float8
from fdjax.attention.kv_cache import KVLayout
from fdjax.attention.rope import Rope3D
from fdjax.attention.split import check_heads

_GPU_SLOTS = 128  # slots per tile of the attention kernels of Hopper GPUs


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamLayout:
    """Chunk, window, sink, patch, rotary axes, guidance; `_t` counts latent frames.

    Attributes:
        channels: Channels C of the latent that is denoised.
        patch_size: Latent frames, rows and columns of one token.
        num_layers: Layers that attend to the cache.
        num_heads: Query heads N.
        rope: Rotary embedding of (time, row, column); gives the head width D.
        dtype: Of the key/value cache and of the rotary tables.
        len_t: Latent frames of one chunk.
        window_size_t: Newest latent frames that attention sees, the current chunk
            included; one for all layers, or one per layer.
        sink_size_t: First latent frames that attention sees for ever, besides the
            window; likewise.
        num_kv_heads: Heads of keys and values, a divisor of N; None: N.
        cache_relative: False: keys are cached at their absolute time. True: they are
            cached unrotated and turned once per chunk, so that no position exceeds
            that of the cache's last slot.
        guidance_scale: Classifier-free guidance; above 1 every session has two
            branches, conditional and unconditional.
        slot_multiple: See `KVLayout`; None: 128 on a GPU, else 1.
        kv_dtype: Of the key/value cache, if not `dtype`: "float8_e4m3fn".
        num_views: Views V of one scene, side by side in the latent's width. Each is a
            row of the network with positions and a cache of its own.
        skip_finalize: False: a finished chunk is committed by one more pass over its
            clean latent. True: what the last denoising step wrote stays.

    Raises:
        ValueError: The sizes cannot work together.
    """

    channels: int
    patch_size: tuple[int, int, int]
    num_layers: int
    num_heads: int
    rope: Rope3D
    dtype: str
    len_t: int
    window_size_t: int | tuple[int, ...]
    sink_size_t: int | tuple[int, ...] = 0
    num_kv_heads: int | None = None
    cache_relative: bool = False
    guidance_scale: float = 1.0
    slot_multiple: int | None = None
    kv_dtype: str | None = None
    num_views: int = 1
    skip_finalize: bool = False

    def __post_init__(self) -> None:
        self._check_kv_dtype()
        if self.num_views < 1:
            raise ValueError(f"num_views must be >= 1, got {self.num_views}.")
        if self.num_heads % self.kv_heads:
            raise ValueError(
                "num_kv_heads must divide num_heads, got "
                f"{self.kv_heads} and {self.num_heads}."
            )
        # Made now, so that sizes that cannot work are refused here.
        _ = self.frames

    def _check_kv_dtype(self) -> None:
        if self.kv_dtype in (None, self.dtype):
            return
        if self.kv_dtype != float8.DTYPE:
            raise ValueError(
                f"kv_dtype must be {float8.DTYPE}, or None for that of the network, "
                f"got {self.kv_dtype!r}."
            )
        if self.cache_relative:
            raise ValueError(
                f"kv_dtype={self.kv_dtype} needs keys cached at their absolute time: "
                "to turn them again would round them again."
            )
        if self.kv_heads != self.num_heads:
            raise ValueError(
                f"kv_dtype={self.kv_dtype} needs as many heads of keys as of queries, "
                f"got {self.kv_heads} and {self.num_heads}."
            )

    @property
    def eight_bit(self) -> bool:
        """Whether keys and values are cached as `fdjax.attention.float8` has them."""
        return self.kv_dtype == float8.DTYPE

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def num_branches(self) -> int:
        """Branches of guidance, G."""
        # At scale 1 the unconditional flow has no weight.
        return 2 if self.guidance_scale > 1 else 1

    @property
    def num_rows(self) -> int:
        """Rows of the network per session: branches times views, G V."""
        return self.num_branches * self.num_views

    @property
    def features(self) -> int:
        """Features of a token: channels times the volume of a patch."""
        return self.channels * math.prod(self.patch_size)

    @property
    def has_memory(self) -> bool:
        """Whether a chunk sees more than itself, in any layer."""
        return any((f.sink, f.window) != (0, f.chunk) for f in self.frames)

    @functools.cached_property
    def frames(self) -> tuple[KVLayout, ...]:
        """The cache's layout in every layer, counted in frames of tokens."""
        windows = self._per_layer("window_size_t")
        sinks = self._per_layer("sink_size_t")
        return tuple(map(self._frame_layout, windows, sinks))

    def tokens(self, height: int, width: int) -> tuple[KVLayout, ...]:
        """The cache's layout in every layer, counted in tokens of one view.

        Args:
            height: Latent rows.
            width: Latent columns, of all views together.
        """
        rows, columns = self.grid(height, width)
        multiple = self.slot_multiple
        if multiple is None:
            multiple = _GPU_SLOTS if jax.default_backend() == "gpu" else 1
        if self.eight_bit:
            multiple = math.lcm(multiple, float8.SLOTS)
        return tuple(
            # A frame is rows * columns tokens that are cached and dropped together.
            KVLayout(
                sink=frames.sink * rows * columns,
                window=frames.window * rows * columns,
                chunk=frames.chunk * rows * columns,
                slot_multiple=multiple,
            )
            for frames in self.frames
        )

    def check_mesh(self, sizes: Mapping[str, int]) -> None:
        """Refuses a mesh that cannot cut this network.

        Args:
            sizes: Devices along each axis; see `fdjax.sharding`.

        Raises:
            ValueError: With what must hold.
        """
        check_heads(self.num_heads, self.kv_heads, sizes)
        parts = sizes.get("guidance", 1)
        if parts not in (1, self.num_branches):
            raise ValueError(
                f"the mesh axis guidance={parts} must be the number of branches of "
                f"guidance, {self.num_branches} at guidance_scale "
                f"{self.guidance_scale:g}; leave it out or change it."
            )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of one view.

        Raises:
            ValueError: The latent's size is no positive multiple of the patch.
        """
        _, rows, columns = self.patch_size
        columns *= self.num_views
        if min(height, width) < 1 or height % rows or width % columns:
            views = f" times {self.num_views} views" if self.num_views > 1 else ""
            raise ValueError(
                f"Latent height and width must be positive multiples of {rows} and "
                f"{columns}, the patch size{views}, got {height} x {width}."
            )
        return height // rows, width // columns

    def _per_layer(self, name: str) -> tuple[int, ...]:
        value = getattr(self, name)
        if isinstance(value, int):
            return (value,) * self.num_layers
        if len(value) != self.num_layers:
            raise ValueError(
                f"{name} must be one number or one for each of {self.num_layers} "
                f"layers, got {len(value)}."
            )
        return tuple(value)

    def _frame_layout(self, window_size_t: int, sink_size_t: int) -> KVLayout:
        sizes = {
            "len_t": self.len_t,
            "window_size_t": window_size_t,
            "sink_size_t": sink_size_t,
        }
        patch = self.patch_size[0]
        if any(size % patch for size in sizes.values()):
            raise ValueError(
                f"len_t, window_size_t and sink_size_t must be multiples of {patch}, "
                f"the patch size in time, got {sizes}."
            )
        try:
            return KVLayout(
                sink=sink_size_t // patch,
                window=window_size_t // patch,
                chunk=self.len_t // patch,
            )
        except ValueError as error:
            raise ValueError(f"{sizes} cannot work: {error}") from error
