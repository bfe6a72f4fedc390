"""The cameras of the car: where they look, and the ray of each pixel.

Names and fields of view: NVIDIA/flashdreams, integrations_v2/omnidreams. The recorded
lenses are f-theta polynomials, one per car; here the image height is proportional to
the angle, which is their first term. Mounting is ours, near to what the names say.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Mounting:
    """Where a camera sits, and how far it sees.

    Attributes:
        field: Degrees across the picture.
        yaw: Degrees to the left of straight ahead.
        forward: Metres before the rear axle.
        left: Metres to the left of the middle.
        height: Metres above the ground.
        pitch: Degrees above the horizon.
    """

    field: float
    yaw: float
    forward: float
    left: float
    height: float = 1.5
    pitch: float = 0.0


CAMERAS = {
    "camera_front_wide_120fov": Mounting(120, 0, 1.7, 0.0, pitch=-4),
    "camera_cross_right_120fov": Mounting(120, -64, 2.4, -0.9, height=0.9),
    "camera_rear_right_70fov": Mounting(70, -148, 2.2, -0.9, height=1.0),
    "camera_rear_tele_30fov": Mounting(30, 180, -0.4, 0.0, height=1.3),
    "camera_rear_left_70fov": Mounting(70, 148, 2.2, 0.9, height=1.0),
    "camera_cross_left_120fov": Mounting(120, 64, 2.4, 0.9, height=0.9),
    "camera_front_tele_30fov": Mounting(30, 0, 1.7, 0.0),
}
"""The cameras in the order of the network's vocabulary."""

FRONT = "camera_front_wide_120fov"


def rays(mounting: Mounting, height: int, width: int) -> np.ndarray:
    """Unit vectors of the pixels' rays: ahead, left, up of the car.

    Returns:
        float32[H, W, 3].
    """
    per_pixel = pixel_angle(mounting, width)
    # [W] to the right, [H] down, in radians from the middle
    across = (np.arange(width) + 0.5 - width / 2) * per_pixel
    down = (np.arange(height) + 0.5 - height / 2) * per_pixel
    across, down = np.meshgrid(across, down)
    angle = np.hypot(across, down)
    # sin(angle) / angle, which is 1 in the middle
    scale = np.sinc(angle / np.pi)
    ray = np.stack([np.cos(angle), -across * scale, -down * scale], axis=-1)
    ray = ray @ _turn(mounting).T
    return ray.astype(np.float32)


def pixel_angle(mounting: Mounting, width: int) -> float:
    """Radians that a pixel spans."""
    return float(np.deg2rad(mounting.field) / width)


def _turn(mounting: Mounting) -> np.ndarray:
    """Rotation from the camera's axes to the car's.  float64[3, 3]."""
    yaw, pitch = np.deg2rad(mounting.yaw), np.deg2rad(mounting.pitch)
    up = np.array(
        [
            [np.cos(pitch), 0, -np.sin(pitch)],
            [0, 1, 0],
            [np.sin(pitch), 0, np.cos(pitch)],
        ]
    )
    left = np.array(
        [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
    )
    return left @ up
