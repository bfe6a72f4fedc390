"""A live session as a file that its player keeps: what is played, and what is known.

The file comes back from anywhere: it is msgpack with a table of what may be in it, and
the session inside is read by `Session.load`, which executes nothing.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from fdjax.run import memory
from fdjax.serve.model import Model
from fdjax.serve.pictures import Picture
from fdjax.serve.timeline import Chunk, Timeline
from fdjax.session.handle import Session

_FORMAT = "fdjax-live-session"
_VERSION = 1
_WAY_BACK = 16  # chunks that can be undone after loading; each takes a chunk's keys
_FIELDS = {
    "format": str,
    "version": int,
    "method": str,
    "prompt": str,
    "seed": int,
    "blended": bool,
    "chunks": list,
    "undone": list,
    "picture": bytes,
    "session": bytes,
}
_MOST_CHUNKS = 10**6
_MOST_TEXT = 4000


def to_bytes(timeline: Timeline) -> bytes:
    """A timeline as a file.

    Raises:
        ValueError: It has no chunk yet, or the session holds what no file can.
    """
    last = timeline.last
    if last is None:
        raise ValueError("There is no chunk to save yet.")
    return msgpack.packb(
        {
            "format": _FORMAT,
            "version": _VERSION,
            "method": timeline.model.name,
            "prompt": timeline.prompt,
            "seed": timeline.seed,
            "blended": timeline.is_blended,
            "chunks": _listed(timeline.chunks),
            "undone": _listed(timeline.undone),
            "picture": _png(last.pixels),
            "session": timeline.session.to_bytes(way_back=_WAY_BACK),
        }
    )


def from_bytes(data: bytes, model: Model) -> Timeline:
    """The timeline of a file.

    Args:
        data: From anyone.
        model: That the session must be of.

    Raises:
        ValueError: It is no such file, damaged, or of another method or other weights:
            says in what.
    """
    found = _read(data)
    if found["method"] != model.name:
        raise ValueError(
            f"The file is a session of {found['method'][:60]!r}, this server runs "
            f"{model.name!r}."
        )
    chunks, undone = _checked(found["chunks"], model), _checked(found["undone"], model)
    session = Session.load(
        found["session"], model.runner.pipeline, model.params, **model.undo
    )
    try:
        _check_size(session, model)
        told = len(chunks), len(undone)
        if told != (session.committed_step_id, session.redo_limit):
            raise ValueError(
                f"The file tells of {told[0]} chunks and {told[1]} undone ones, its "
                f"session has {session.committed_step_id} and {session.redo_limit}."
            )
        timeline = Timeline(model, session, found["prompt"], found["seed"])
        timeline.is_blended = found["blended"]
        picture = Picture(_pixels(found["picture"], model))
        timeline.restore(chunks, undone, picture)
    except BaseException:
        session.close()
        raise
    return timeline


def _read(data: bytes) -> dict[str, Any]:
    try:
        found = msgpack.unpackb(data, raw=False, max_ext_len=0)
    except Exception:  # the library's errors have no common base
        found = None
    if not isinstance(found, Mapping) or found.get("format") != _FORMAT:
        raise ValueError(
            "The file is no session that this page saved, or it is cut off."
        )
    if found.get("version") != _VERSION:
        version = f"{found.get('version')!r:.20}"
        raise ValueError(f"The file is of version {version}, not of {_VERSION}.")
    for name, kind in _FIELDS.items():
        if not isinstance(found.get(name), kind):
            raise ValueError(f"The file is damaged: {name} is missing or wrong.")
    if len(found["prompt"]) > _MOST_TEXT or not 0 <= found["seed"] < 2**31:
        raise ValueError(
            "The file is damaged: its prompt is too long, or its seed too large."
        )
    return dict(found)


def _listed(chunks: Sequence[Chunk]) -> list[list[str]]:
    return [[chunk.keys, chunk.prompt, chunk.hash] for chunk in chunks]


def _checked(chunks: Sequence[Any], model: Model) -> list[tuple[str, str, str]]:
    """(keys, prompt, hash) of each chunk."""
    known = model.steering.actions.keys()
    if len(chunks) > _MOST_CHUNKS:
        raise ValueError("The file is damaged: it has too many chunks.")
    for chunk in chunks:
        if (
            not isinstance(chunk, list)
            or [type(part) for part in chunk] != [str] * 3
            or not set(chunk[0]) <= known
            or max(map(len, chunk)) > _MOST_TEXT
        ):
            raise ValueError(f"The file is damaged: {chunk!r:.60} is no chunk.")
    return [(keys, prompt, digest) for keys, prompt, digest in chunks]


def _check_size(session: Session, model: Model) -> None:
    """Refuses a session that would take more memory than those of this server.

    Raises:
        ValueError: It is of another size.
    """
    given = memory.num_bytes(session.cache)
    own = memory.num_bytes(model.pattern)
    if session.pixel_size != model.pixel_size or given > 2 * own:
        height, width = session.pixel_size
        raise ValueError(
            f"The session is of {height} x {width} pixels, those of this server are of "
            f"{model.pixel_size[0]} x {model.pixel_size[1]}."
        )


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _pixels(data: bytes, model: Model) -> np.ndarray:
    """The picture of a file, whose size is known before any of it is decoded."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != model.shown_size[::-1] or image.mode != "RGB":
                raise ValueError
            return np.asarray(image)
    except Exception:  # Pillow's errors have no common base
        raise ValueError("The file is damaged: its picture cannot be read.") from None
