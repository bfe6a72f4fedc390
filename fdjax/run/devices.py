"""Which devices the parts of a run live on: `--mesh` and `--place`."""

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from fdjax import sharding
from fdjax.axes import PyTree
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.run import memory


@dataclasses.dataclass(frozen=True)
class Devices:
    """Where the parts of a pipeline live.

    What streams is on the mesh, if there is one. Encoders of conditions, which run
    once, are on jax's default device. `place` moves any part.

    Attributes:
        mesh: The mesh, or None.
        placed: Numbers of devices by the names of the parts that were placed.
    """

    mesh: Mesh | None
    placed: Mapping[str, int]

    @property
    def several(self) -> bool:
        """Whether anything was asked for."""
        return self.mesh is not None or bool(self.placed)

    @property
    def sizes(self) -> dict[str, int]:
        """Axes of the mesh."""
        return {} if self.mesh is None else dict(self.mesh.shape)

    def placement(self, streaming: Iterable[str]) -> Any:
        """As `load_params(sharding=)` takes it; None: jax's default device for all.

        Args:
            streaming: Names of the parts that run for every chunk.
        """
        every: dict[str, Any] = {}
        if self.mesh is not None:
            every = dict.fromkeys(streaming, self.mesh)
        devices = jax.devices()
        for name, index in self.placed.items():
            every[name] = SingleDeviceSharding(devices[index])
        return every or None

    def check_sessions(self, count: int) -> None:
        """Refuses a mesh that does not divide the sessions of a run.

        Raises:
            ValueError: With both numbers.
        """
        parts = self.sizes.get("data", 1)
        if count % parts:
            raise ValueError(
                f"--mesh data={parts} must divide the sessions of the run, {count}: "
                "for more videos at once start more runs, one on each device."
            )

    def num_bytes(self, tree: PyTree, table: sharding.Table) -> int:
        """Bytes of a tree on each device of the mesh; see `memory.num_bytes`."""
        if self.mesh is None:
            return memory.num_bytes(tree)
        places = sharding.shardings(self.mesh, tree, table)
        sizes = jax.tree.map(
            lambda leaf, place: (
                math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            ),
            tree,
            places,
        )
        return sum(jax.tree.leaves(sizes))

    def __str__(self) -> str:
        """What a run tells about it; "" on one device."""
        told = []
        if self.mesh is not None:
            kind = self.mesh.devices.flat[0].device_kind
            axes = ", ".join(f"{name} over {n}" for name, n in self.sizes.items())
            count = "1 device" if self.mesh.size == 1 else f"{self.mesh.size} devices"
            told.append(f"{count} ({kind}): {axes}")
        told += [f"{name} on device {index}" for name, index in self.placed.items()]
        return "; ".join(told)


def parse_place(text: str) -> dict[str, int]:
    """Devices by part from "decoder=1" or "decoder=1,text_encoder=1".

    Raises:
        ValueError: It is no such text.
    """
    placed: dict[str, int] = {}
    for part in text.split(","):
        name, _, index = (piece.strip() for piece in part.partition("="))
        if not name or name in placed or not (index.isascii() and index.isdigit()):
            raise ValueError(
                "place must name parts and numbers of devices, each part once, e.g. "
                f"decoder=1 or decoder=1,text_encoder=1; got {text!r}."
            )
        placed[name] = int(index)
    return placed


def check_texts(mesh: str | None, place: str | None) -> None:
    """Refuses what stands for no devices, without asking for any.

    Raises:
        ValueError: Names the field and what it must be.
    """
    if place is not None:
        parse_place(place)
    if mesh is not None:
        with _named("mesh"):
            sharding.parse_sizes(mesh)


def find(
    mesh: str | None, place: str | None, pipeline: StreamInferencePipeline
) -> Devices:
    """The devices that a run asks for.

    Raises:
        ValueError: There are too few, they differ, or the network cannot be cut so.
    """
    found = None
    if mesh is not None:
        sizes = sharding.parse_sizes(mesh)
        with _named("mesh"):
            pipeline.diffusion_model.transformer.check_mesh(sizes)
            found = sharding.make_mesh(sizes)
    placed = {} if place is None else parse_place(place)
    names = list(pipeline.components)
    count = len(jax.devices())
    for name, index in placed.items():
        if name not in names:
            raise ValueError(
                f"place: there is no part {name!r}; this method has {', '.join(names)}."
            )
        if index >= count:
            raise ValueError(
                f"place: {name}={index} must be the number of a device, from 0 to "
                f"{count - 1} ({jax.devices()[0].device_kind})."
            )
        if name == "transformer" and found is not None:
            raise ValueError(
                "place: the transformer is on the mesh; leave it out, or leave --mesh "
                "out."
            )
    return Devices(found, placed)


@contextlib.contextmanager
def _named(field: str) -> Iterator[None]:
    """Puts a field's name in front of the message of a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None
