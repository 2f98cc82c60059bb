"""The stream of rows between open debates and training: an append-only log on disk, read by offset.

One log holds the rows of all agents, one commit a debate: a debate is in the log wholly or not at all, however the
process died. A row can be read only after it is on the disk, and its offset never changes, so a reader that comes back
after a crash goes on where it stood. Rows that are mixed in a share (``trainers.selection.mix``) are all in the log,
and can be read once it is their turn. The Ray actor at the end adds waiting, nothing else.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from protocols.errors import TrainerError
from trainers.record.row_log import Place, RowLog
from trainers.selection.example import Example
from trainers.selection.mix import Mix, Mixer

LOG_NAME = "rows.log"
MAX_PAGE_ROWS = 1024  # keeps one answer of the actor at a few megabytes
LOCK_WAIT_S = 120.0  # a killed driver's actor holds the folder for some seconds, a dead machine on NFS for 90 or so
MAX_WAIT_S = 30.0  # a reader that asks for a longer wait would look dead to those who watch it


class Row(msgspec.Struct, frozen=True):
    """One example in the feed. ``progress``: the share of the stage's debates closed when it could first be read."""

    example: Example
    progress: float


class FeedPage(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of one agent from an offset on. ``done``: none will ever come after these. ``progress``: the feed's own."""

    rows: tuple[Row, ...]
    done: bool
    progress: float


class Addition(msgspec.Struct, frozen=True, kw_only=True):
    """What one closed debate adds: rows by agent, maybe none. ``progress``: share of the stage's debates closed."""

    debate_id: str
    examples: Mapping[str, Sequence[Example]]
    progress: float


class _RowFrame(msgspec.Struct, frozen=True, tag="row"):
    agent: str
    row: Row


class _DebateFrame(msgspec.Struct, frozen=True, tag="debate"):
    """Commits the rows before it."""

    debate_id: str
    progress: float


class _FinishFrame(msgspec.Struct, frozen=True, tag="finish"):
    """No more rows."""


_Frame = _RowFrame | _DebateFrame | _FinishFrame
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Frame)
_PAGE_DECODER = msgspec.msgpack.Decoder(FeedPage)


def hash_rows(examples: Iterable[msgspec.Struct]) -> str:
    """SHA-256 of the examples in this order: what a training saw, and in which order it first saw it."""
    digest = hashlib.sha256()
    for example in examples:
        update_hash(digest, example)
    return digest.hexdigest()


def update_hash(digest: Any, example: msgspec.Struct) -> None:
    """One more example for a digest that ``hash_rows`` would give."""
    data = _ENCODER.encode(example)
    digest.update(len(data).to_bytes(8, "big"))
    digest.update(data)


class Feed:
    """The rows of one training stage, opened on a folder; what is there already is read back first.

    Args:
        mix: how rows of two pools are mixed; the same whenever the folder is opened.
        lock_wait_s: how long to wait for another process to let go of the folder.
    Raises: TrainerError: another process holds the folder, or the log is damaged before its end.
    """

    def __init__(self, folder: Path, *, mix: Mix | None = None, lock_wait_s: float = 0.0) -> None:
        self._folder, self._mix = folder, mix or Mix()
        self._rows: dict[str, list[tuple[Place, float]]] = {}  # by agent, in feed order, with the progress of each
        self._mixers: dict[str, Mixer[Place]] = {}
        self._debates: set[str] = set()
        self.progress = 0.0
        self.finished = False
        self._log = RowLog(folder / LOG_NAME, lock_wait_s=lock_wait_s)
        try:
            for frame, place in self._log.recover(_DECODER.decode, lambda frame: not isinstance(frame, _RowFrame)):
                self._take(frame, place)
        except TrainerError:
            self._log.close()
            raise

    def add(self, debate_id: str, examples_by_agent: Mapping[str, Sequence[Example]], progress: float) -> bool:
        """Append what one debate gives; see ``add_many``. Returns: False: the debate is there already."""
        return self.add_many([Addition(debate_id=debate_id, examples=examples_by_agent, progress=progress)]) == 1

    def add_many(self, additions: Iterable[Addition]) -> int:
        """Append what several debates give with one flush to disk; those already there are passed over.

        Returns: how many debates were new.
        Raises: TrainerError: a progress outside 0..1, or a new debate after ``finish``.
        """
        new = list({item.debate_id: item for item in additions if item.debate_id not in self._debates}.values())
        for item in new:
            if not 0.0 <= item.progress <= 1.0:
                raise TrainerError(f"debate {item.debate_id!r} came with progress={item.progress:g}; give 0 to 1")
        if new and self.finished:
            raise TrainerError(f"the feed in {self._folder} is finished and cannot take debate {new[0].debate_id!r}")
        frames: list[_Frame] = []
        progress = self.progress
        for item in new:
            progress = max(progress, item.progress)  # debates may report out of order; the schedule must not go back
            for agent, examples in item.examples.items():
                frames.extend(_RowFrame(agent, Row(example, progress)) for example in examples)
            frames.append(_DebateFrame(item.debate_id, progress))
        self._append(frames)
        return len(new)

    def finish(self) -> None:
        """Say that every debate has been added; safe to call twice."""
        if not self.finished:
            self._append([_FinishFrame()])

    def read(self, agent: str, offset: int, limit: int) -> FeedPage:
        """Rows of an agent from ``offset`` on, at most ``limit``; an agent that nothing is known of has none."""
        places = self._rows.get(agent, [])
        found = places[offset : offset + min(limit, MAX_PAGE_ROWS)]
        rows = tuple(Row(self._example(place), progress) for place, progress in found)
        return FeedPage(rows=rows, done=self.finished and offset + len(rows) >= len(places), progress=self.progress)

    def counts(self) -> dict[str, int]:
        """Rows by agent, those that still wait to be mixed in left out."""
        return {agent: len(places) for agent, places in self._rows.items()}

    def waiting(self) -> dict[str, int]:
        """Rows by agent that wait to be mixed in, where any do."""
        return {agent: mixer.num_waiting for agent, mixer in self._mixers.items() if mixer.num_waiting}

    def examples(self, agent: str) -> list[Example]:
        """All rows of an agent that can be read."""
        return [self._example(place) for place, _ in self._rows.get(agent, [])]

    def data_hash(self, agent: str) -> str:
        """``hash_rows`` over the agent's rows in feed order."""
        return hash_rows(self._example(place) for place, _ in self._rows.get(agent, []))

    def close(self) -> None:
        self._log.close()

    def _append(self, frames: Sequence[_Frame]) -> None:
        """Rows can be read only once they are on the disk."""
        if frames:
            for frame, place in zip(
                frames, self._log.append([_ENCODER.encode(frame) for frame in frames]), strict=True
            ):
                self._take(frame, place)

    def _take(self, frame: _Frame, place: Place) -> None:
        match frame:
            case _RowFrame(agent=agent, row=row):
                mixer = self._mixers.setdefault(agent, Mixer(self._mix))
                ready = mixer.offer(row.example, place)
                self._rows.setdefault(agent, []).extend((place, row.progress) for place in ready)
            case _DebateFrame(debate_id=debate_id, progress=progress):
                self._debates.add(debate_id)
                self.progress = progress
            case _FinishFrame():
                self.finished, self.progress = True, 1.0

    def _example(self, place: Place) -> Example:
        frame = _DECODER.decode(self._log.read(place))
        assert isinstance(frame, _RowFrame)  # only rows are indexed
        return frame.row.example


class FeedActor:
    """A feed that several processes use: the same calls, and a ``read`` that waits for rows. Ray is added below."""

    def __init__(self, folder: str, mix: Mix | None = None) -> None:
        self._feed = Feed(Path(folder), mix=mix, lock_wait_s=LOCK_WAIT_S)
        self._changed = asyncio.Condition()

    async def add(self, debate_id: str, examples_by_agent: Mapping[str, Sequence[Example]], progress: float) -> bool:
        return await self.add_many([Addition(debate_id=debate_id, examples=examples_by_agent, progress=progress)]) == 1

    async def add_many(self, additions: Sequence[Addition]) -> int:
        added = self._feed.add_many(additions)
        await self._wake()
        return added

    async def finish(self) -> None:
        self._feed.finish()
        await self._wake()

    async def read(self, agent: str, offset: int, limit: int, wait_s: float = 1.0) -> bytes:
        """A page as msgpack, see ``decode_page``; waits up to ``wait_s`` while there is nothing new."""
        page = self._feed.read(agent, offset, limit)
        if not page.rows and not page.done:
            with suppress(TimeoutError):  # an empty page: the reader asks again
                async with asyncio.timeout(min(wait_s, MAX_WAIT_S)), self._changed:
                    await self._changed.wait_for(lambda: self._has_news(agent, offset))
            page = self._feed.read(agent, offset, limit)
        return _ENCODER.encode(page)

    async def counts(self) -> dict[str, int]:
        return self._feed.counts()

    async def waiting(self) -> dict[str, int]:
        return self._feed.waiting()

    async def data_hash(self, agent: str) -> str:
        return self._feed.data_hash(agent)

    def _has_news(self, agent: str, offset: int) -> bool:
        return self._feed.finished or self._feed.counts().get(agent, 0) > offset

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def decode_page(data: bytes) -> FeedPage:
    return _PAGE_DECODER.decode(data)


def make_feed_actor(folder: Path, *, mix: Mix | None = None, name: str | None = None, max_restarts: int = 3) -> Any:
    """Start a ``FeedActor`` on a folder. Returns: its Ray handle.

    A restarted actor reads its folder back, and every call may safely run twice, so calls are retried. Where the
    cluster has several nodes, the folder must be on storage that all of them share.
    """
    import ray

    actor = ray.remote(FeedActor).options(
        name=name, num_cpus=0, max_concurrency=1000, max_restarts=max_restarts, max_task_retries=max_restarts
    )
    return actor.remote(str(folder.absolute()), mix)
