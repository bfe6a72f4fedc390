"""Does again what a recording of a session tells, and compares."""

from collections.abc import Sequence

from fdjax.axes import Params
from fdjax.contract.conditioner import Conditions
from fdjax.engine.pipeline import StreamInferencePipeline
from fdjax.session import recording, store
from fdjax.session.handle import Session


def repeat(
    text: str | bytes,
    pipeline: StreamInferencePipeline,
    params: Params,
    *,
    conditions: Sequence[Conditions] = (),
) -> tuple[Session, int | None]:
    """A session that does what another one did, and where their pictures differ.

    Args:
        text: From `Session.replay`; it may come from anyone.
        pipeline: Of the settings that the session had.
        params: The same weights.
        conditions: Those that were too large for the recording, in its order.

    Returns:
        The session, and the first chunk whose thumbnail differs; None: there is none.

    Raises:
        ValueError: It is no recording, was edited, or is of another pipeline, other
            weights or other conditions: says in what; or a control does not fit.
    """
    told = recording.Recording(
        text,
        pipeline=pipeline,
        settings=store.pipeline_settings(pipeline),
        weights=store.weights_of(params),
        conditions=conditions,
    )
    session = Session(pipeline, params, **vars(told.start))
    for chunk in told.chunks:
        session.make_again(chunk.control, chunk.conditions, chunk.event_ids)
    hashes = [recording.image_hash(step) for step in session.timeline]
    pairs = zip(hashes, told.chunks, strict=True)
    differing = (n for n, (found, chunk) in enumerate(pairs) if found != chunk.digest)
    return session, next(differing, None)
