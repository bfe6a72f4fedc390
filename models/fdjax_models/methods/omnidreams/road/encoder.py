"""An encoder in front of the HD-map encoder: steering and throttle in, map inside."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.contract.encoder import EncoderConfig
from fdjax_models.methods.omnidreams.road import vehicle
from fdjax_models.methods.omnidreams.road.camera import CAMERAS, FRONT
from fdjax_models.methods.omnidreams.road.rendering import render_frames
from fdjax_models.methods.omnidreams.road.world import make_world, start
from fdjax_models.networks.hdmap.video import PIXELS_PER_LATENT, num_frames
from fdjax_models.networks.hdmap.wrapper import HdmapWrapper


@flax.struct.dataclass(kw_only=True)
class DriveCache:
    """What the encoder carries from chunk to chunk.

    Attributes:
        ego: The car of each session.
        hdmap: State of the HD-map encoder.
        started: Zeros after the first chunk, int32[B]; None before it.
        size: Height and width of the latents, of all views side by side.
    """

    ego: vehicle.Ego
    hdmap: PyTree
    started: Array | None
    size: tuple[int, int] = flax.struct.field(pytree_node=False)


class DriveEncoder(HdmapWrapper):
    """Drives a car through a procedural world, and encodes the maps that it sees.

    The car is in the cache: a session that is forked or undone has its own. The
    parameters are those of the HD-map encoder.
    """

    config: "DriveEncoderConfig"

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> DriveCache:
        """The state before the first chunk, for latents of `height` x `width`.

        The width is that of all views side by side.
        """
        world = make_world(self.config.world_seed)
        return DriveCache(
            ego=start(world, conditions.batch_size),
            hdmap=self.hdmap.initialize_cache(params, conditions, height, width),
            started=None,
            size=(height, width),
        )

    def encode(
        self, params: Params, cache: DriveCache, input: PyTree
    ) -> tuple[DriveCache, PyTree]:
        """The state after this chunk, and what the HD-map encoder makes of it.

        Args:
            params: Weights.
            cache: From `initialize_cache`, or from the call before.
            input: (steering, throttle) of each frame, in [-1, 1]: to the left, and
                ahead. float[B, T', 2] or float[T', 2]; None: hands off. T' is
                1 + 4 (T - 1) in the first chunk, then 4 T.

        Raises:
            ValueError: The input has another shape.
        """
        first = cache.started is None
        ego, maps = self.look(cache, input)
        hdmap, control = self.hdmap.encode(params, cache.hdmap, maps)
        started = jnp.zeros_like(ego.frame) if first else cache.started
        cache = DriveCache(ego=ego, hdmap=hdmap, started=started, size=cache.size)
        return cache, control

    def look(self, cache: DriveCache, input: PyTree) -> tuple[vehicle.Ego, Array]:
        """The car after this chunk, and the maps that it saw.

        Args:
            cache: As for `encode`.
            input: As for `encode`.

        Returns:
            The car, and float32[B, T', H', W', 3] in [-1, 1], of several cameras
            float32[B, V, T', H', W', 3].
        """
        batch = len(cache.ego.x)
        length = num_frames(self.config.len_t, first=cache.started is None)
        shape = (batch, length, 2)
        controls = jnp.zeros(shape) if input is None else jnp.asarray(input)
        if controls.shape not in (shape, shape[1:]):
            raise ValueError(
                f"The controls of this chunk must have shape {shape} or {shape[1:]}, "
                f"(steering, throttle) for each frame, got {controls.shape}."
            )
        controls = jnp.broadcast_to(controls, shape)
        ego, states = vehicle.drive(cache.ego, controls)
        side = PIXELS_PER_LATENT
        world = make_world(self.config.world_seed)

        def see(states: vehicle.Ego) -> Array:
            return render_frames(
                world,
                states,
                cameras=self.config.cameras,
                height=cache.size[0] * side,
                width=cache.size[1] * side // len(self.config.cameras),
            )

        # [B, V, T, H, W, 3]
        maps = jax.lax.map(see, states)
        return ego, maps if len(self.config.cameras) > 1 else maps[:, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriveEncoderConfig(EncoderConfig):
    """Config of `DriveEncoder`."""

    _target: type = DriveEncoder

    hdmap: EncoderConfig
    """Encodes the maps."""

    len_t: int = 2
    """Latent frames in a chunk; must equal the transformer's."""

    world_seed: int = 0
    """Names the world."""

    cameras: tuple[str, ...] = (FRONT,)
    """Cameras of the car, one per view."""

    def __post_init__(self) -> None:
        if self.len_t < 1:
            raise ValueError(f"len_t must be >= 1, got {self.len_t}.")
        unknown = [name for name in self.cameras if name not in CAMERAS]
        if unknown or not self.cameras:
            raise ValueError(
                f"cameras must be some of {', '.join(CAMERAS)}; got "
                f"{', '.join(unknown) or 'none'}."
            )
