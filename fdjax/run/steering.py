"""How keys that are held steer a live session, chunk by chunk."""

import dataclasses
from collections.abc import Callable, Mapping

from fdjax.axes import PyTree
from fdjax.run.inputs import RunnerInputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steering:
    """What a method makes of keys that are held now; pure, so that it can go back.

    Attributes:
        actions: What each key does; "." is no key. Empty: the method has no keys.
        control: `control(state, keys)` is the state behind the next chunk and what
            `generate` takes for it; `keys` are those held, in the order of `actions`.
        start: State before the first chunk.
    """

    actions: Mapping[str, str]
    control: Callable[[PyTree, str], tuple[PyTree, PyTree]]
    start: PyTree = None


def along(inputs: RunnerInputs) -> Steering:
    """No keys: each chunk takes the control that a run would give it.

    Its `control` raises `IndexError` where these end.
    """
    controls = inputs.controls

    def control(chunk: int, keys: str) -> tuple[int, PyTree]:
        del keys
        return chunk + 1, None if controls is None else controls[chunk]

    return Steering(actions={}, control=control, start=0)
