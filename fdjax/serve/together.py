"""Sessions that make their chunks in one forward pass, where that is worth it."""

import logging
from collections.abc import Sequence

import jax

from fdjax.axes import PyTree
from fdjax.run import memory
from fdjax.serve import model as model_lib
from fdjax.serve.live import Live
from fdjax.serve.model import Model, Pixels
from fdjax.session.batch import SessionBatch
from fdjax.session.handle import Session

_SHARE = 0.25  # of an accelerator's memory, at most, for lanes that may stay empty
_log = logging.getLogger(__name__)


def num_lanes(wanted: int | None, max_sessions: int, session: Session) -> int:
    """How many sessions go into one forward pass; below 2 each is made alone.

    A processor gains nothing by it: one for 4 lanes takes as long as 4 for one.

    Args:
        wanted: None to let this decide.
        max_sessions: More are never needed.
        session: One as they will be.
    """
    if wanted is not None:
        return min(wanted, max_sessions)
    limit, _ = memory.device_memory()
    if jax.default_backend() == "cpu" or limit is None:
        return 1
    each = memory.num_bytes(session.cache.transformer_cache)
    return min(max_sessions, int(_SHARE * limit / max(each, 1)))


class Together:
    """The lanes of a batch, and who is in them."""

    def __init__(self, model: Model, pattern: Session, lanes: int) -> None:
        """Compiles the batch.

        Args:
            model: Of the sessions.
            pattern: A session with a chunk, which does not join.
            lanes: At least 2.
        """
        _, control = model.steering.control(model.steering.start, "")
        self._batch = SessionBatch(
            pattern, capacity=lanes, control=control, **model.undo
        )
        _log.info("Up to %d sessions make their chunks together.", lanes)

    def take_in(self, live: Live) -> bool:
        """Whether the timeline that moves is in a lane, or could be put into one."""
        wanted = live.current.session
        for timeline in live.timelines.values():
            if timeline.session is not wanted and timeline.session in self._sessions:
                self._batch.leave(timeline.session)
        if wanted in self._sessions:
            return True
        if not wanted.committed_step_id or not self._batch.num_free:
            return False
        self._batch.join(wanted)
        return True

    def make(
        self, chosen: Sequence[tuple[Live, PyTree]]
    ) -> list[Pixels | FloatingPointError | ValueError]:
        """One chunk of each; what came of it, in the same order.

        Args:
            chosen: Sessions in lanes, each with its control.
        """
        controls = {}
        refused: dict[Session, ValueError] = {}
        for live, control in chosen:
            session = live.current.session
            try:
                self._batch.check(session, control)
                controls[session] = control
            except ValueError as error:  # this one's control alone
                refused[session] = error
        made: dict[Session, Pixels | FloatingPointError | ValueError] = {**refused}
        if controls:
            output = self._batch.tick(controls)
            videos = model_lib.pixels(output.whole)
            made |= {session: videos[lane] for session, lane in output.lanes.items()}
        return [made[live.current.session] for live, _ in chosen]

    @property
    def _sessions(self) -> tuple[Session, ...]:
        return self._batch.sessions
