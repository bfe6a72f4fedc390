"""The control encoder of camera-steered worlds: the first frame, and the rays."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdjax.axes import Array, Params, PyTree
from fdjax.contract.conditioner import Conditions
from fdjax.contract.encoder import StreamingEncoder
from fdjax_models.networks.camera import poses as camera_poses
from fdjax_models.networks.camera import rays
from fdjax_models.networks.wan_dit.control import WanControl
from fdjax_models.networks.wan_dit.i2v_encoder import (
    ImageControlCache,
    ImageControlEncoder,
    ImageControlEncoderConfig,
)
from fdjax_models.networks.wan_vae.vae import WanVaeEncoder


@flax.struct.dataclass(kw_only=True)
class CameraInput:
    """Where the camera is in each video frame of one chunk.

    The first chunk has 1 + 4 (T - 1) frames for T latent frames, later ones 4 T.

    Attributes:
        poses: Camera-to-world; x right, y down, z forward.  float32[B, F, 4, 4].
        intrinsics: (fx, fy, cx, cy) in pixels of the video.  float32[B, F, 4].
        world_scale: Length, in the poses' unit, that the network calls 1; 0, as of a
            camera that never moves, leaves lengths as they are.  float32[B].
    """

    poses: ArrayLike
    intrinsics: ArrayLike
    world_scale: ArrayLike


def camera_input(
    poses: ArrayLike, intrinsics: ArrayLike, world_scale: float = 1.0
) -> CameraInput:
    """One session's chunk, checked on the host.

    Chunk after chunk in the same world, the encoder makes of these what it makes of the
    whole path at once.

    Args:
        poses: Of the chunk's own video frames.  [F, 4, 4].
        intrinsics: Of each frame or of all, for the size of the video; see
            `poses.check_intrinsics`.
        world_scale: The same for every chunk. Of a recording it is the longest step
            between latent frames; who does not know the path yet gives the longest
            that is to come, such as the speed times four frames' time.

    Raises:
        ValueError: A pose is not rigid, a number is not finite, or a shape is wrong.
    """
    poses = camera_poses.check_poses(poses)
    lens = camera_poses.check_intrinsics(intrinsics, len(poses))
    if not 0 <= world_scale < float("inf"):
        raise ValueError(f"world_scale must be finite, 0 or more, got {world_scale}.")
    return CameraInput(
        poses=poses[None].astype(np.float32),
        intrinsics=lens[None].astype(np.float32),
        world_scale=np.array([world_scale], np.float32),
    )


@flax.struct.dataclass(kw_only=True)
class CameraCache:
    """What the encoder carries from chunk to chunk.

    Attributes:
        image: Of the first frame's encoder.
        last_pose: Pose of the last latent frame; None before the first chunk.
            float32[B, 4, 4].
    """

    image: ImageControlCache
    last_pose: Array | None


class CameraControlEncoder(StreamingEncoder):
    """Rays of each latent frame's last video frame, and the first frame's latent.

    Poses are taken relative to the latent frame before, so that a session need not
    know its future. Rays are rounded to bfloat16, as the published networks were fed.
    """

    config: "CameraControlEncoderConfig"
    architecture = ImageControlEncoder.architecture

    @functools.cached_property
    def image_encoder(self) -> ImageControlEncoder:
        """The first frame's encoder; parameters are those of its VAE."""
        config = self.config
        return ImageControlEncoderConfig(
            encoder=config.encoder, len_t=config.len_t
        ).setup()  # type: ignore[return-value]

    def init_params(self, key: jax.Array) -> Params:
        """Random parameters of the VAE's encoder."""
        return self.image_encoder.init_params(key)

    @property
    def params_owner(self) -> WanVaeEncoder:
        """The VAE's encoder."""
        return self.image_encoder.params_owner

    def initialize_cache(
        self, params: Params, conditions: Conditions, height: int, width: int
    ) -> CameraCache:
        """See `ImageControlEncoder.initialize_cache`."""
        image = self.image_encoder.initialize_cache(params, conditions, height, width)
        return CameraCache(image=image, last_pose=None)

    def encode(
        self, params: Params, cache: CameraCache, input: PyTree
    ) -> tuple[CameraCache, WanControl]:
        """The state after this chunk, and its control.

        Args:
            params: Of the VAE's encoder.
            cache: From `initialize_cache`, or from the call before.
            input: A `CameraInput`.

        Raises:
            ValueError: There is no camera, or it has not as many frames as the chunk.
        """
        first = cache.last_pose is None
        self._check(input, first, batch=len(cache.image.num_chunks))
        image_cache, image = self.image_encoder.encode(params, cache.image, None)
        height, width = image.latent.shape[2:4]
        vae = self.config.encoder
        # The first latent frame is one video frame, each later one four.
        # Of its frames the last one tells where it is.
        picked = slice(0 if first else vae.temporal_ratio - 1, None, vae.temporal_ratio)
        # [B, F, ...] -> [B, T, ...]
        poses = jnp.asarray(input.poses, jnp.float32)[:, picked]
        intrinsics = jnp.asarray(input.intrinsics, jnp.float32)[:, picked]
        # [B, 4, 4]; the very first pose is its own predecessor: no motion.
        previous = poses[:, 0] if cache.last_pose is None else cache.last_pose
        scale = jnp.asarray(input.world_scale, jnp.float32)
        relative = rays.relative_poses(poses, previous, scale)
        ratio = vae.spatial_ratio
        # [B, T, H', W', 6]
        pixels = rays.pixel_rays(relative, intrinsics, height * ratio, width * ratio)
        # [B, T, H, W, 6 * ratio**2]
        folded = rays.fold(pixels.astype(jnp.bfloat16), ratio)
        cache = CameraCache(image=image_cache, last_pose=poses[:, -1])
        return cache, WanControl(image=image, rays=folded)

    def num_frames(self, first: bool) -> int:
        """Video frames of a chunk, the first one or a later one."""
        ratio, len_t = self.config.encoder.temporal_ratio, self.config.len_t
        return ratio * len_t - (ratio - 1 if first else 0)

    def _check(self, camera: PyTree, first: bool, batch: int) -> None:
        if not isinstance(camera, CameraInput):
            raise ValueError(
                "Every chunk needs a CameraInput (poses, intrinsics, world_scale), got "
                f"{type(camera).__name__}."
            )
        frames = self.num_frames(first)
        expected = {
            "poses": (batch, frames, 4, 4),
            "intrinsics": (batch, frames, 4),
            "world_scale": (batch,),
        }
        for name, shape in expected.items():
            given = jnp.shape(getattr(camera, name))
            if given != shape:
                which = "the first" if first else "a later"
                raise ValueError(
                    f"CameraInput.{name} of {which} chunk must have shape {shape}, got "
                    f"{given}: one entry per video frame."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraControlEncoderConfig(ImageControlEncoderConfig):
    """Config of `CameraControlEncoder`."""

    _target: type = CameraControlEncoder
