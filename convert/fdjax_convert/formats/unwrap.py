"""Finds the weights in what a file holds: which of its entries, under which keys.

A training checkpoint keeps weights beside optimizer states, counters and random states,
often twice: as they are and averaged (EMA). An entry that is entered is a *wrapper*;
what wrappers of modules put into keys is removed.
"""

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fdjax.checkpoint.errors import CheckpointError
from fdjax.checkpoint.tensors import LazyTensor
from fdjax_convert.formats.survey import Survey
from fdjax_convert.formats.values import Unreadable, brief_text

WRAPPERS = (
    "generator",
    "",
    "state_dict",
    "model_state",
    "model_state_dict",
    "model",
    "module",
    "net",
    "params",
    "weights",
)
"""Entries of a training checkpoint that hold the weights, best first.

Each may be averaged, `model_ema` or `ema_model`; "" is `ema` alone. Averaged ones come
before all others: they are what authors publish results of (Self-Forcing's
`generator_ema`, timm's `state_dict_ema`, BasicSR's `params_ema`).
"""

PREFIXES = ("model.", "net.", "module.", "diffusion_model.")
"""Prefixes of keys that say nothing about the architecture."""

INFIXES = (
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
    "_forward_module.",
    "_orig_mod.",
)
"""Names that the wrappers of torch and Lightning insert anywhere in a key."""

_EMA = re.compile(r"(?:^|_)(?:ema|averaged|avg)(?=_|$)")
_BESIDE = re.compile(
    r"(?:.*_)?(?:optim|optims|optimizers?|opt|(?:lr_)?schedulers?|(?:grad_)?scaler"
    r"|rng|random|callbacks|loops|hparams|hyper_parameters|dataloader)(?:_.*)?",
    re.IGNORECASE,
)
_LOOSE = re.compile(
    r"(?:\w+_)?(?:step|steps|iter|iters|iteration|iterations|epoch|epochs|loss|losses|lr"
    r"|seed|rng_states?|random_states?|num_updates|n_averaged|decay)",
    re.IGNORECASE,
)
_PART = re.compile(
    r"dit|unet|transformer\d?|denoiser|vae|first_stage_model|cond_stage_model"
    r"|text_encoders?|image_encoder|clip\w*|u?mt5\w*|t5\w*|encoder|decoder|tae\w*"
)
NOT_READ = ", which cannot be read"
"""How the lines of `Weights.skipped` end that are about tensors."""

_MAX_KEY = 1000  # letters of a key with all its levels; real ones have less than 200


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a file.

    Attributes:
        tensors: Tensors by key, wrappers and prefixes removed.
        origins: What each key was before its prefixes were removed.
        wrapper: Entries that were entered, outermost first.
        alternatives: Other sets of the same weights beside the one that was taken.
        skipped: Entries beside the weights, and values that are no tensors.
    """

    tensors: Mapping[str, LazyTensor]
    origins: Mapping[str, str]
    wrapper: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()


def find_weights(path: Path, content: Any, wrapper: str | None = None) -> Weights:
    """Finds the weights in the content of a file.

    Args:
        path: The file, for the messages.
        content: What it holds: nested dicts with `LazyTensor`s.
        wrapper: The entry to take, dots between levels; None looks for the usual ones.

    Raises:
        CheckpointError: There are none, or several and no usual one.
    """
    if isinstance(content, LazyTensor):
        content = {"tensor": content}  # saved on its own, without a key
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, must hold tensors by key"
        )
    survey = Survey(path, content)
    entry = _Entry(path, survey, content)
    if wrapper:
        tensors = _drop_loose(entry.take(wrapper), entry.skipped)
    else:
        entry.descend()
        tensors = entry.choose_flat(_drop_loose(entry.flatten(), entry.skipped))
    stripped, origins = _strip_prefixes(path, tensors)
    return Weights(
        stripped,
        origins,
        tuple(entry.entered),
        tuple(entry.alternatives),
        tuple(brief_text(one, 200) for one in entry.skipped),
    )


def rank(name: str) -> tuple[bool, int] | None:
    """How good an entry of this name is, least first; None if it says nothing."""
    stem = _EMA.sub("", name).strip("_")
    if stem not in WRAPPERS or not name:
        return None
    return _EMA.search(name) is None, WRAPPERS.index(stem)


def best_name(names: Iterable[str]) -> str | None:
    """The best of some names; None if none of them is known."""
    known = [(found, name) for name in names if (found := rank(name)) is not None]
    return min(known)[1] if known else None


@dataclasses.dataclass
class _Entry:
    """The entry of a file at which the search has arrived."""

    path: Path
    survey: Survey
    content: dict
    entered: list[str] = dataclasses.field(default_factory=list)
    alternatives: list[str] = dataclasses.field(default_factory=list)
    skipped: list[str] = dataclasses.field(default_factory=list)

    def _inner(self) -> list[Any]:
        """Names of the entries with weights in them."""
        return [
            name
            for name, value in self.content.items()
            if isinstance(value, dict)
            and self.survey.num_tensors(value)
            and not _BESIDE.fullmatch(str(name))
            and "param_groups" not in value
        ]

    def _enter(self, name: Any) -> None:
        self.entered.append(str(name))
        self.skipped += [str(other) for other in self.content if other != name]
        self.content = self.content[name]

    def take(self, wrapper: str) -> dict[str, LazyTensor]:
        """The tensors of the entry that was asked for."""
        rest = wrapper
        while rest:
            parts = rest.split(".")
            heads = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            name = next((h for h in heads if isinstance(self._value(h), dict)), None)
            if name is None:
                break
            self._enter(name)
            rest = rest[len(name) + 1 :]
        if not rest:
            self.descend()
        tensors = self.flatten()
        if rest:  # levels that were joined by dots
            members = [key for key in tensors if key.startswith(f"{rest}.")]
            if not members:
                inner = [*map(str, self._inner()), *sorted(_segments(tensors))]
                listed = ", ".join(brief_text(name) for name in inner[:12]) or "none"
                raise CheckpointError(
                    f"{self.path} has no entry {wrapper!r}; the entries with weights "
                    f"are: {listed}"
                )
            self._keep(tensors, rest, members)
            tensors = {key.removeprefix(f"{rest}."): tensors[key] for key in members}
        return tensors

    def _value(self, name: str) -> Any:
        return self.content.get(name)

    def _keep(
        self, tensors: Mapping[str, Any], name: str, members: Collection[str]
    ) -> None:
        """Notes that of joined levels one is entered."""
        kept = set(members)
        self.skipped += [key for key in tensors if key not in kept]
        self.entered.append(name)

    def descend(self) -> None:
        """Enters wrappers until the weights are reached."""
        while inner := self._inner():
            direct = [
                name
                for name, value in self.content.items()
                if isinstance(value, LazyTensor) and not _LOOSE.fullmatch(str(name))
            ]
            name = best_name(map(str, inner))
            if name not in self.content:
                name = None
            if name is None and len(inner) == 1 and not direct:
                name = inner[0]
            others = [other for other in inner if other != name]
            if name is not None and any(_PART.fullmatch(str(one)) for one in others):
                return  # components, one beside the other
            if name is None:
                if not direct:
                    self._refuse_alternatives(inner)
                return
            if self.survey.num_tensors(self.content[name]) < len(direct):
                return
            self.alternatives += [
                str(other)
                for other in others
                if _overlap(self.content[name], self.content[other])
            ]
            self._enter(name)

    def _refuse_alternatives(self, inner: list[Any]) -> None:
        for index, name in enumerate(inner):
            for other in inner[index + 1 :]:
                if _overlap(self.content[name], self.content[other]):
                    listed = ", ".join(brief_text(str(one)) for one in inner[:12])
                    raise CheckpointError(
                        f"{self.path} holds several sets of weights, choose one with "
                        f"--wrapper: {listed}"
                    )

    def flatten(self) -> dict[str, LazyTensor]:
        """The tensors below, by keys with dots between levels."""
        self.survey.check_entries(self.content)
        tensors: dict[str, LazyTensor] = {}
        for key, value in self._leaves(self.content, ""):
            if isinstance(value, LazyTensor):
                tensors[key] = value
            else:
                kind = type(value).__name__
                if isinstance(value, Unreadable):
                    kind = value.what + NOT_READ
                self.skipped.append(f"{key}: {kind}")
        if not tensors:
            raise CheckpointError(f"{self.path} holds no tensors")
        return tensors

    def _leaves(self, content: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        """Yields (dotted key, value) of nested dicts and lists."""
        if len(prefix) > _MAX_KEY:
            raise CheckpointError(
                f"{self.path} has a key of {len(prefix)} letters: {brief_text(prefix)}"
            )
        if isinstance(content, dict):
            items: Iterable[tuple[Any, Any]] = content.items()
        elif isinstance(content, list | tuple) and self.survey.num_tensors(content):
            items = enumerate(content)
        else:
            yield prefix, content
            return
        for name, value in items:
            text = name if isinstance(name, str) else _key_text(name)
            if isinstance(value, dict) and not prefix and _BESIDE.fullmatch(text):
                yield text, value
                continue
            key = f"{prefix}.{text}" if prefix else text
            if isinstance(value, LazyTensor) and len(key) <= _MAX_KEY:
                yield key, value  # most are; it need not be asked what is in it
            else:
                yield from self._leaves(value, key)

    def choose_flat(self, tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Of sets whose names are the first part of keys, the best."""
        segments = _segments(tensors)
        name = best_name(segments)
        if name is None:
            return tensors
        averaged = _EMA.search(name) is not None
        stem = _EMA.sub("", name).strip("_")
        if stem != "generator" and not averaged:
            return tensors  # what is below may be one component of several
        members = segments[name]
        if averaged and all("." not in key[len(name) + 1 :] for key in members):
            # Latent Diffusion's: names without their dots, which belong to no layout.
            self.skipped += members
            dropped = set(members)
            return {key: t for key, t in tensors.items() if key not in dropped}
        inside = {_strip(key.removeprefix(f"{name}.")) for key in members}
        if stem == "generator":
            rest = [
                key
                for key in tensors
                if not key.startswith(f"{name}.")
                and not _PART.fullmatch(key.partition(".")[0])
            ]
        else:
            rest = [
                key
                for key in tensors
                if not key.startswith(f"{name}.") and _twin(key, inside)
            ]
            if not rest and len(members) < len(tensors):
                return tensors  # one component of several
        self.alternatives += sorted(
            {key.partition(".")[0] for key in rest if _twin(key, inside)}
        )
        dropped = set(rest)
        self._keep(tensors, name, [key for key in tensors if key not in dropped])
        return {
            key.removeprefix(f"{name}."): tensor
            for key, tensor in tensors.items()
            if key not in dropped
        }


def _twin(key: str, inside: Collection[str]) -> bool:
    """Whether a key is one of those inside, under the name of another set."""
    first, _, rest = key.partition(".")
    return _strip(key) in inside or (rank(first) is not None and _strip(rest) in inside)


def _key_text(name: Any) -> str:
    return (
        brief_text(str(name))
        if isinstance(name, int | float)
        else brief_text(repr(name))
    )


def _segments(tensors: Iterable[str]) -> dict[str, list[str]]:
    """Keys by what stands before their first dot."""
    found: dict[str, list[str]] = {}
    for key in tensors:
        first, dot, _ = key.partition(".")
        if dot:
            found.setdefault(first, []).append(key)
    return found


def _drop_loose(
    tensors: dict[str, LazyTensor], skipped: list[str]
) -> dict[str, LazyTensor]:
    """Leaves out counters, random states and optimizer states beside the weights."""
    loose = {
        key
        for key in tensors
        if _LOOSE.fullmatch(key)
        or ("." in key and _BESIDE.fullmatch(key.partition(".")[0]))
    }
    if len(loose) == len(tensors):
        return tensors
    skipped += sorted(loose)
    return {key: tensor for key, tensor in tensors.items() if key not in loose}


def _overlap(one: Mapping[Any, Any], other: Mapping[Any, Any]) -> bool:
    """Whether two entries hold the same weights: most of their keys are the same."""
    first, second = ({_strip(str(key)) for key in keys} for keys in (one, other))
    return 2 * len(first & second) >= min(len(first), len(second))


def _strip(key: str) -> str:
    """A key without what wrappers put into it."""
    for infix in INFIXES:
        if infix in key:
            key = key.replace(infix, "")
    while key.startswith(PREFIXES):
        key = key[key.index(".") + 1 :]
    return key


def _strip_prefixes(
    path: Path, tensors: Mapping[str, LazyTensor]
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Removes the names that wrappers put into keys; they must stay distinct."""
    stripped: dict[str, LazyTensor] = {}
    origins: dict[str, str] = {}
    for key, tensor in tensors.items():
        name = _strip(key)
        if name in stripped:
            raise CheckpointError(
                f"{path}: {brief_text(origins[name])} and {brief_text(key)} are the "
                f"same key, {brief_text(name)}, without the prefixes of their wrappers"
            )
        stripped[name], origins[name] = tensor, key
    return stripped, origins
