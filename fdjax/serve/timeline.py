"""One timeline of a live session: its chunks, what steered them, and the way back."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from fdjax.axes import PyTree
from fdjax.run import replay
from fdjax.serve import model as model_lib
from fdjax.serve.model import Model, Pixels
from fdjax.serve.pictures import Picture
from fdjax.session.handle import Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """What is kept of a chunk.

    Attributes:
        keys: That were held.
        prompt: It was made with.
        hash: Of its pixels, as in a replay file.
        before: Steering's state before it.
        last: Its last frame, which is shown again after undo; None where undo does not
            reach.
    """

    keys: str
    prompt: str
    hash: str
    before: PyTree
    last: Picture | None


class Timeline:
    """A session and what the server must know about its chunks."""

    def __init__(
        self, model: Model, session: Session, prompt: str, seed: int, name: str = "a"
    ) -> None:
        """Begins where the session has no chunk.

        Args:
            model: Of the session.
            session: That makes the chunks.
            prompt: That it began with.
            seed: That its noise began with.
            name: "a" or "b".
        """
        self.model, self.session, self.name = model, session, name
        self.seed, self.is_blended = seed, False
        self.prompt = prompt
        self.epoch = 0
        self.state: PyTree = model.steering.start
        self.chunks: list[Chunk] = []
        self.undone: list[Chunk] = []

    def next_control(self, keys: str) -> PyTree:
        """What the next chunk takes.

        Args:
            keys: That are held.

        Raises:
            IndexError: The method's controls have ended.
        """
        return self.model.steering.control(self.state, keys)[1]

    def make(self, control: PyTree) -> Pixels:
        """The next chunk, made alone; `commit` it.

        Raises:
            ValueError, FloatingPointError: It could not be made.
        """
        return model_lib.only(model_lib.pixels(self.session.tick(control)))

    def commit(self, keys: str, video: Pixels) -> None:
        """Notes a chunk that the session has made.

        Args:
            keys: That were held.
            video: What it shows.
        """
        state, _ = self.model.steering.control(self.state, keys)
        self.undone.clear()
        self._keep(keys, self.prompt, state, video)

    def undo(self, num_chunks: int) -> None:
        """Goes back; what was on its way to a page is stale then.

        Raises:
            ValueError: More than are kept.
        """
        self.session.undo(num_chunks)
        for _ in range(num_chunks):
            chunk = self.chunks.pop()
            self.state, self.prompt = chunk.before, chunk.prompt
            self.undone.append(chunk)
        self.epoch += 1

    def redo(self, num_chunks: int) -> list[Pixels]:
        """Makes undone chunks again; their videos.

        Raises:
            ValueError: More than were undone.
        """
        videos = []
        for output in self.session.redo(num_chunks):
            chunk, video = self.undone.pop(), model_lib.only(model_lib.pixels(output))
            state, _ = self.model.steering.control(chunk.before, chunk.keys)
            self.prompt = chunk.prompt
            self._keep(chunk.keys, chunk.prompt, state, video)
            videos.append(video)
        return videos

    def switch_prompt(self, prompt: str, num_chunks: int, blend: str) -> list[str]:
        """Another prompt from the next chunk on; what is to be said about it.

        Raises:
            ValueError: The method does not take it.
        """
        conditions, notes = self.model.encode(prompt)
        self.session.switch_prompt(conditions, num_chunks, blend)
        self.is_blended |= num_chunks > 1
        self.undone.clear()
        self.prompt = prompt
        return list(notes)

    def fork(self, name: str, epoch: int) -> "Timeline":
        """Another timeline with the same past.

        Args:
            name: Of the new one.
            epoch: Above that of whatever had the name before.
        """
        session = self.session.fork()
        other = Timeline(self.model, session, self.prompt, self.seed, name)
        other.epoch, other.state = epoch, self.state
        other.is_blended = self.is_blended
        other.chunks, other.undone = list(self.chunks), list(self.undone)
        return other

    def restore(
        self,
        chunks: Sequence[tuple[str, str, str]],
        undone: Sequence[tuple[str, str, str]],
        last: Picture,
    ) -> None:
        """Takes up what a session that was loaded has behind it.

        Args:
            chunks: Keys, prompt and hash of each chunk.
            undone: Of those that can be made again, the next one last.
            last: What the newest chunk shows at its end.
        """
        state = self.state
        known = []
        for keys, prompt, digest in (*chunks, *reversed(undone)):
            chunk = Chunk(
                keys=keys, prompt=prompt, hash=digest, before=state, last=None
            )
            known.append(chunk)
            state, _ = self.model.steering.control(state, keys)
            if len(known) == len(chunks):
                self.state = state
        self.chunks = known[: len(chunks)]
        self.undone = known[len(chunks) :][::-1]
        self.chunks[-1] = dataclasses.replace(self.chunks[-1], last=last)

    @property
    def last(self) -> Picture | None:
        """The newest frame, if there is one."""
        return self.chunks[-1].last if self.chunks else None

    def summary(self) -> dict[str, Any]:
        """Where it stands, for the page."""
        return {
            "timeline": self.name,
            "epoch": self.epoch,
            "committed": len(self.chunks),
            "undo_limit": self.session.undo_limit,
            "redo_limit": self.session.redo_limit,
            "prompt": self.prompt,
            "state": self.session.state.value,
        }

    def _keep(self, keys: str, prompt: str, state: PyTree, video: Pixels) -> None:
        chunk = Chunk(
            keys=keys,
            prompt=prompt,
            hash=replay.chunk_hash(video),
            before=self.state,
            last=Picture(video[-1].copy()),
        )
        self.chunks.append(chunk)
        self.state = state
        # Undo reaches the chunks of the journal, and the one before shows their start.
        forgotten = len(self.chunks) - self.session.undo_limit - 2
        if forgotten >= 0 and self.chunks[forgotten].last is not None:
            old = self.chunks[forgotten]
            self.chunks[forgotten] = dataclasses.replace(old, last=None)
