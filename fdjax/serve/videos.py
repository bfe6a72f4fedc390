"""Videos on demand: a prompt in, an mp4 out, in the time that players leave.

The shape of requests and answers is that of OpenAI's videos: POST /v1/videos, GET
/v1/videos/{id} and /v1/videos/{id}/content.
"""

import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, Literal

from fdjax.run import edge
from fdjax.run.keys import read_runs
from fdjax.serve import model as model_lib
from fdjax.serve.model import Model
from fdjax.serve.recording import Recording

_MOST_SECONDS = 600
_FIELDS = ("model", "prompt", "seconds", "seed", "controls")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoRequest:
    """What a video is to be.

    Attributes:
        prompt: None for that of the server.
        frames: How many, at least 1.
        seed: Of the noise.
        controls: Keys of each frame; "" where none is held.
    """

    prompt: str | None
    frames: int
    seed: int
    controls: tuple[str, ...]


def read_request(body: Any, model: Model) -> VideoRequest:
    """A request from the JSON of its body.

    Raises:
        ValueError: Names the field, what it must be, and what it is.
    """
    if not isinstance(body, Mapping):
        raise ValueError('The body must be a JSON object such as {"prompt": "..."}.')
    if unknown := sorted(body.keys() - set(_FIELDS)):
        raise ValueError(
            f"There is no field {unknown[0]!r:.40}; there are {', '.join(_FIELDS)}."
        )
    if body.get("model") not in (None, model.name):
        raise ValueError(f"model must be {model.name!r}, got {body['model']!r:.60}.")
    prompt = body.get("prompt")
    if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
        raise ValueError("prompt must be a text that is not empty.")
    if prompt is not None and not model.takes_prompt:
        raise ValueError(f"{model.name} takes no prompt; leave it out.")
    seed = body.get("seed")
    if seed is not None and not (type(seed) is int and 0 <= seed < 2**31):
        raise ValueError(
            f"seed must be a whole number in [0, 2**31), got {seed!r:.40}."
        )
    return VideoRequest(
        prompt=prompt,
        frames=max(1, round(_seconds(body.get("seconds", 4)) * model.fps)),
        seed=secrets.randbelow(2**31) if seed is None else seed,
        controls=_controls(body.get("controls", ""), model),
    )


def _seconds(value: Any) -> float:
    """Seconds, which may be a text, as in OpenAI's requests."""
    try:
        seconds = float(value) if isinstance(value, str | int | float) else 0.0
    except ValueError:
        seconds = 0.0
    if isinstance(value, bool) or not 0 < seconds <= _MOST_SECONDS:
        raise ValueError(f"seconds must be in (0, {_MOST_SECONDS}], got {value!r:.40}.")
    return seconds


def _controls(text: Any, model: Model) -> tuple[str, ...]:
    if not isinstance(text, str):
        raise ValueError(
            f"controls must be a text such as 'w*24 a*8', got {text!r:.40}."
        )
    if not text:
        return ()
    if not model.steering.actions:
        raise ValueError(f"{model.name} has no keys; leave controls out.")
    runs = read_runs(text, model.steering.actions)
    most = round(_MOST_SECONDS * model.fps)
    if sum(count for _, count in runs) > most:
        raise ValueError(f"controls must last at most {most} frames.")
    return tuple(keys for keys, count in runs for _ in range(count))


Status = Literal["queued", "in_progress", "completed", "failed"]


class Video:
    """One video while it is made; stepped on the engine's thread."""

    def __init__(self, model: Model, request: VideoRequest) -> None:
        """Makes nothing yet."""
        self.id = f"video_{secrets.token_hex(12)}"
        self.request, self.created_at = request, int(time.time())
        self.status: Status = "queued"
        self.error: str | None = None
        self.data: bytes | None = None
        self.is_cancelled = False
        self._model, self._done = model, 0
        self._work = self._make()

    def step(self) -> bool:
        """Makes one chunk; whether there is more to do."""
        try:
            if self.is_cancelled:
                self._work.close()
                return False
            self.status = "in_progress"
            return next(self._work, False)
        except Exception as error:
            _log.warning("%s failed: %s", self.id, edge.message(error), exc_info=error)
            self.status, self.error = "failed", edge.message(error)
            return False

    def answer(self) -> dict[str, Any]:
        """What is told about it."""
        return {
            "id": self.id,
            "object": "video",
            "model": self._model.name,
            "status": self.status,
            "progress": min(100, 100 * self._done // self.request.frames),
            "created_at": self.created_at,
            "seconds": f"{self.request.frames / self._model.fps:g}",
            "seed": self.request.seed,
            "error": self.error and {"code": "failed", "message": self.error},
        }

    def _make(self) -> Generator[bool, None, None]:
        session = self._model.begin(self.request.prompt, self.request.seed)
        recording = Recording(self._model.name, self._model.fps)
        try:
            state = self._model.steering.start
            shown = 0  # frames of chunks behind the first, which takes no control
            while self._done < self.request.frames:
                held = self.request.controls[shown : shown + 1]
                state, control = self._model.steering.control(state, "".join(held))
                video = model_lib.only(model_lib.pixels(session.tick(control)))
                shown += len(video) if self._done else 0
                recording.add(video[: self.request.frames - self._done])
                self._done += len(video)
                yield True
            self.data = recording.finish()
            self.status = "completed"
        finally:
            session.close()
            if self.data is None:
                recording.abort()


class Videos:
    """All videos that wait, are made, or are kept; on the event loop."""

    def __init__(self, most: int, begin: Callable[[Video], None]) -> None:
        """None yet.

        Args:
            most: That are kept or wait.
            begin: Hands a video to the engine.
        """
        self._most, self._begin = most, begin
        self._videos: dict[str, Video] = {}

    def add(self, video: Video) -> bool:
        """Takes a video; whether there was room."""
        if len(self._videos) >= self._most:
            done = (v for v in self._videos.values() if v.status in _ENDED)
            oldest = next(done, None)
            if oldest is None:
                return False
            self._videos.pop(oldest.id)
        self._videos[video.id] = video
        self._begin(video)
        return True

    def get(self, name: str) -> Video | None:
        """The video of an id."""
        return self._videos.get(name)

    def remove(self, name: str) -> bool:
        """Forgets a video and stops making it; whether there was one."""
        video = self._videos.pop(name, None)
        if video is not None:
            video.is_cancelled = True
        return video is not None

    def all(self) -> list[Video]:
        """Every video, oldest first."""
        return list(self._videos.values())


_ENDED = ("completed", "failed")
