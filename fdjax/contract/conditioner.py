"""What a rollout is conditioned on, and the component that computes it, once."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fdjax.axes import Array, Params, PyTree
from fdjax.config import Component, InstantiateConfig
from fdjax.contract.component import ParametricComponent


@flax.struct.dataclass(kw_only=True)
class Conditions:
    """Everything that stays the same over a rollout; can be saved and used again.

    A method with more of it (several views, pooled vectors, embeddings made elsewhere)
    adds fields in a subclass, which is a `flax.struct.dataclass(kw_only=True)` too. In
    every array B, the sessions, comes first.

    Attributes:
        text: Encoded prompts.  [B, P, C].
        negative_text: Encoded negative prompts, for classifier-free guidance.
            [B, P, C].
        image_embedding: Encoded first frame, for image cross-attention.  [B, P, C].
        image: The first frame, in [-1, 1].  [B, H, W, 3], pixels.
    """

    text: Array | None = None
    negative_text: Array | None = None
    image_embedding: Array | None = None
    image: Array | None = None

    @property
    def batch_size(self) -> int:
        """Number of sessions B, read from every array; 1 if there is none.

        Raises:
            ValueError: The arrays disagree, or one has no axes.
        """
        sizes = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(self):
            name = jax.tree_util.keystr(path).removeprefix(".")
            if not jnp.ndim(leaf):
                raise ValueError(
                    "Every array of conditions must have B, the sessions, as its first "
                    f"axis; {name} has no axes."
                )
            sizes[name] = leaf.shape[0]
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"All conditions must have one batch size, got {sizes}; give as many "
                "prompts as images."
            )
        return next(iter(sizes.values()), 1)


class ConditionEncoder(ParametricComponent):
    """A part of a conditioner: B inputs in, their embeddings out, once per rollout."""

    @abc.abstractmethod
    def encode(self, params: Params, inputs: Any, /) -> PyTree:
        """Embeddings of the inputs: an array with B first, or a dict of such arrays.

        Row n depends on input n alone, so that each can be kept and used again.

        Args:
            params: Weights.
            inputs: B texts, or an array with B first.
        """


class TextEncoder(ConditionEncoder):
    """Turns prompts into embeddings."""

    @abc.abstractmethod
    def tokenize(self, text: Sequence[str]) -> Any:
        """The host's part: prompts to arrays of token ids and lengths."""

    @abc.abstractmethod
    def encode(self, params: Params, text: Sequence[str], /) -> PyTree:
        """Embeddings of the prompts.  [B, P, C]."""


class ImageEncoder(ConditionEncoder):
    """Turns first frames into embeddings."""

    @abc.abstractmethod
    def encode(self, params: Params, image: Array, /) -> PyTree:
        """Embeddings of images `[B, H, W, 3]` in [-1, 1].  [B, P, C]."""


RunPart = Callable[[ConditionEncoder, Callable[[], Params], Any], PyTree]
"""`(part, load, inputs) -> embeddings`; `load()` gives the part's weights."""


def run_directly(
    part: ConditionEncoder, load: Callable[[], Params], inputs: Any
) -> PyTree:
    """Encodes with the weights: the `RunPart` of a conditioner without a store."""
    return part.encode(load(), inputs)


@dataclasses.dataclass(frozen=True)
class Conditioner(Component, abc.ABC):
    """Turns what a user gives, prompts and pictures, into `Conditions`, once.

    It owns all rules about them: how many, of what shape and range, what guidance
    steers away from. Its networks are named parts. `encode` reaches them through
    `encode_part`, so that a store can stand in for them without its knowing:

        dataclasses.replace(conditioner, run_part=from_disk).encode(params, text=...)

    Attributes:
        config: The frozen config it was built from.
        run_part: What `encode_part` calls.
    """

    run_part: RunPart = run_directly

    @property
    @abc.abstractmethod
    def parts(self) -> Mapping[str, ConditionEncoder]:
        """Parts that own parameters, by their key in the pipeline's params."""

    @property
    def takes_text(self) -> bool:
        """Whether it reads prompts: if a part encodes text, unless overridden."""
        return any(isinstance(part, TextEncoder) for part in self.parts.values())

    @abc.abstractmethod
    def encode(
        self,
        params: Mapping[str, Params],
        *,
        text: Sequence[str] | None = None,
        image: ArrayLike | None = None,
        **more: Any,
    ) -> Conditions:
        """What a rollout is conditioned on.

        Args:
            params: Weights by the name of the part; those of the parts that run.
            text: One prompt per session.
            image: First frames in [-1, 1], float[B, H, W, 3], pixels.
            **more: What else the conditioner takes.

        Raises:
            ValueError: An input is not as it must be, nothing takes it, or parameters
                are missing.
        """

    def from_published(
        self, embeddings: Mapping[str, Any], size: tuple[int, int]
    ) -> Conditions:
        """Conditions from embeddings that the method's own program has written.

        Args:
            embeddings: Arrays, or None, by the names that it gives them.
            size: Rows and columns of the video, of which a first frame must be.

        Raises:
            ValueError: They do not fit; or no such files are known, as here.
        """
        del size
        raise ValueError(
            f"{type(self).__name__} knows no embeddings of another program, got "
            f"{', '.join(sorted(embeddings)) or 'none'}; --save_embeddings_path writes "
            "those that it takes."
        )

    def encode_part(
        self, params: Mapping[str, Params], name: str, inputs: Any
    ) -> PyTree:
        """Embeddings of the inputs by the part of this name.

        Args:
            params: Weights by the name of the part.
            name: Key of `parts`.
            inputs: As the part's `encode` takes them.

        Raises:
            ValueError: The part's parameters are missing.
        """
        self.require_params(params, [name])
        load = functools.partial(params.__getitem__, name)
        return self.run_part(self.parts[name], load, inputs)

    def require_params(
        self, params: Mapping[str, Params], names: Iterable[str]
    ) -> None:
        """Raises a `ValueError` that names the parts whose parameters are missing."""
        if missing := [name for name in names if name not in params]:
            raise ValueError(
                f"params hold {sorted(params)} but not {missing}; load them with "
                f"load_params(only={missing}), or pass conditions=."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderConfig(InstantiateConfig[TextEncoder]):
    """Base of every text encoder's config."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig(InstantiateConfig[ImageEncoder]):
    """Base of every image encoder's config."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditionerConfig(InstantiateConfig[Conditioner]):
    """Base of every conditioner's config."""
