"""Rows in the order they are trained on: the live feed first, the same rows shuffled after. Pure: no torch, no Ray.

Where training stands is one ``Cursor``. Everything else follows from it and the feed, so a resumed stream hands out
what the lost one would have: no row twice in an epoch, none left out.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Protocol

import msgspec

from protocols.errors import TrainerError
from trainers.record.feed import FeedPage, update_hash
from trainers.selection.example import Example
from trainers.tuning.tokenise import TokenRow

PAGE_ROWS = 256


class RowSource(Protocol):
    """Where rows come from: a feed on disk, or a feed actor."""

    def read(self, offset: int, limit: int) -> FeedPage:
        """Rows from an offset on. May wait a bounded time while there are none and come back empty."""
        ...


class Cursor(msgspec.Struct, frozen=True):
    """``position`` rows of epoch ``epoch`` have been handed out, refused ones not counted."""

    epoch: int = 0
    position: int = 0


START = Cursor()


class Step(msgspec.Struct, frozen=True):
    """The rows of one optimiser step, and where the stream stands after it."""

    rows: tuple[TokenRow, ...]
    cursor: Cursor
    progress: float  # 0..1 of the whole training


class RowStream:
    """All steps of one training, from a cursor on.

    The first epoch takes the rows in feed order as they come; later ones shuffle them, each with a seed of its own. An
    epoch's last step holds what is left, so no step spans two epochs.

    Args:
        epochs: passes over the rows.
        rows_per_step: rows of one optimiser step; the last of an epoch may have fewer.
        max_length: longer rows are refused and counted, never cut: a cut prompt is not what was asked.
        start: where to go on.
    """

    def __init__(
        self,
        source: RowSource,
        tokenise: Callable[[Example], TokenRow],
        *,
        epochs: int,
        rows_per_step: int,
        max_length: int,
        seed: int,
        start: Cursor = START,
    ) -> None:
        self._source, self._tokenise = source, tokenise
        self._epochs, self._rows_per_step, self._max_length, self._seed = epochs, rows_per_step, max_length, seed
        self._start = start
        self._kept: list[TokenRow] = []
        self._digest = hashlib.sha256()
        self.num_read = 0  # rows of the feed looked at, refused ones included
        self.num_refused = 0  # of those, longer than max_length

    @property
    def data_hash(self) -> str:
        """Hash of the rows read so far, as the feed would give it."""
        return self._digest.hexdigest()

    @property
    def num_kept(self) -> int:
        return self.num_read - self.num_refused

    def __iter__(self) -> Iterator[Step]:
        """Raises: TrainerError: a row that cannot be trained on."""
        if self._start.epoch > 0:
            for _ in self._live():
                pass  # fills the buffer that later epochs draw from
        for epoch in range(self._start.epoch, self._epochs):
            rows = self._live() if epoch == 0 else self._shuffled(epoch)
            position = self._start.position if epoch == self._start.epoch else 0
            rows = islice(rows, position, None)
            while batch := tuple(islice(rows, self._rows_per_step)):
                position += len(batch)
                progress = (epoch + batch[-1][1]) / self._epochs
                yield Step(tuple(row for row, _ in batch), Cursor(epoch, position), progress)

    def _live(self) -> Iterator[tuple[TokenRow, float]]:
        """Rows as the feed gives them, each with the share of the epoch that is over with it.

        The share is the one written beside the row, not the time it was read at: training that lags behind a feed, or
        resumes on a finished one, goes through the same schedule.
        """
        done = False
        while not done:
            page = self._source.read(self.num_read, PAGE_ROWS)
            done = page.done
            for row in page.rows:
                self.num_read += 1
                update_hash(self._digest, row.example)
                tokens = self._checked(row.example)
                if tokens is not None:
                    yield tokens, row.progress

    def _checked(self, example: Example) -> TokenRow | None:
        row = self._tokenise(example)
        if row.num_tokens > self._max_length:
            self.num_refused += 1
            return None
        if self._epochs > 1:
            self._kept.append(row)
        return row

    def _shuffled(self, epoch: int) -> Iterator[tuple[TokenRow, float]]:
        order = list(range(len(self._kept)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        for place, index in enumerate(order, 1):
            yield self._kept[index], place / len(order)


def check_trainable(stream: RowStream, *, agent: str, max_length: int) -> None:
    """Raises: TrainerError: the stream has ended without a row to train on."""
    if stream.num_kept:
        return
    if stream.num_read:
        raise TrainerError(
            f"all {stream.num_read} rows of {agent!r} are longer than sft.max_length={max_length} tokens; "
            "raise sft.max_length or ask for shorter replies"
        )
    raise TrainerError(
        f"no debate gave a row for {agent!r} to train on: none of its replies was right, or too few agreed; lower "
        "train.min_support, debate more tasks, or leave it out of train.agents"
    )
