"""Every row once an epoch, whatever the page sizes, the step size, and wherever training was interrupted."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import TrainerError
from trainers.record.feed import FeedPage, Row, hash_rows
from trainers.selection.example import Example
from trainers.tuning.stream import Cursor, RowStream, Step, check_trainable
from trainers.tuning.tokenise import TokenRow

MakeExample = Callable[..., Example]


class LiveSource:
    """A feed that grows by some rows each time it is read; 0 stands for a wait that was in vain."""

    def __init__(self, examples: list[Example], growth: list[int]) -> None:
        self._examples, self._growth, self._there = examples, list(growth), 0

    def read(self, offset: int, limit: int) -> FeedPage:
        self._there += self._growth.pop(0) if self._growth else len(self._examples)
        self._there = min(self._there, len(self._examples))
        total = len(self._examples)
        rows = [Row(self._examples[at], (at + 1) / total) for at in range(offset, min(self._there, offset + limit))]
        return FeedPage(rows=tuple(rows), done=self._there == total, progress=self._there / max(total, 1))


def _tokens(example: Example) -> TokenRow:
    """The debate's number as the prompt; as many completion tokens."""
    number = int(example.debate_id[1:])
    return TokenRow(array("i", [number]), array("i", [1] * number))


def _stream(source: LiveSource, *, start: Cursor | None = None, **changes: Any) -> RowStream:
    settings: dict[str, Any] = {"epochs": 3, "rows_per_step": 2, "max_length": 100, "seed": 5} | changes
    return RowStream(source, _tokens, start=start or Cursor(), **settings)


def _numbers(step: Step) -> list[int]:
    return [row.prompt_ids[0] for row in step.rows]


def test_the_first_epoch_keeps_the_order_and_no_step_spans_two_epochs(make_example: MakeExample) -> None:
    source = LiveSource([make_example(index) for index in range(5)], [1, 0, 2])
    steps = list(_stream(source, epochs=2))
    assert [_numbers(step) for step in steps[:3]] == [[0, 1], [2, 3], [4]]
    assert [len(step.rows) for step in steps] == [2, 2, 1, 2, 2, 1]
    assert sorted(number for step in steps[3:] for number in _numbers(step)) == [0, 1, 2, 3, 4]
    assert [step.progress for step in steps] == pytest.approx([0.2, 0.4, 0.5, 0.7, 0.9, 1.0])
    assert [step.cursor for step in steps[1:4]] == [Cursor(0, 4), Cursor(0, 5), Cursor(1, 2)]


def test_a_step_is_handed_out_as_soon_as_its_rows_are_there(make_example: MakeExample) -> None:
    source = LiveSource([make_example(index) for index in range(5)], [2, 1, 1])
    stream = iter(_stream(source))
    assert _numbers(next(stream)) == [0, 1]
    assert source._there == 2


@given(
    count=st.integers(0, 12),
    growth=st.lists(st.integers(0, 3), max_size=12),
    rows_per_step=st.integers(1, 5),
    epochs=st.integers(1, 3),
    max_length=st.integers(1, 13),
    stop_after=st.integers(0, 40),
)
def test_an_interrupted_stream_goes_on_as_if_it_had_not_been(
    make_example: MakeExample,
    count: int,
    growth: list[int],
    rows_per_step: int,
    epochs: int,
    max_length: int,
    stop_after: int,
) -> None:
    examples = [make_example(index) for index in range(count)]
    options: dict[str, Any] = {"rows_per_step": rows_per_step, "epochs": epochs, "max_length": max_length}
    whole_stream = _stream(LiveSource(examples, growth), **options)
    whole = list(whole_stream)
    kept = [index for index in range(count) if index + 1 <= max_length]  # one prompt token, index completion tokens
    for epoch in range(epochs):
        seen = Counter(number for step in whole if step.cursor.epoch == epoch for number in _numbers(step))
        assert seen == Counter(kept)
    assert (whole_stream.num_kept, whole_stream.num_refused) == (len(kept), count - len(kept))
    assert whole_stream.data_hash == hash_rows(examples)
    progress = [step.progress for step in whole]
    assert progress == sorted(progress)

    before = whole[:stop_after]
    resumed_stream = _stream(LiveSource(examples, []), start=before[-1].cursor if before else Cursor(), **options)
    resumed = list(resumed_stream)
    assert [(_numbers(step), step.cursor, step.progress) for step in before + resumed] == [
        (_numbers(step), step.cursor, step.progress) for step in whole
    ]
    assert (resumed_stream.num_kept, resumed_stream.data_hash) == (whole_stream.num_kept, whole_stream.data_hash)


def test_seeds_shuffle_differently_and_epochs_too(make_example: MakeExample) -> None:
    examples = [make_example(index) for index in range(20)]
    orders = [
        tuple(number for step in _stream(LiveSource(examples, []), seed=seed) for number in _numbers(step))
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][20:40] != orders[0][40:]


def test_nothing_to_train_on_is_said_with_its_reason(make_example: MakeExample) -> None:
    stream = _stream(LiveSource([], []))
    assert list(stream) == []
    with pytest.raises(
        TrainerError, match=r"^no debate gave a row for 'ada' to train on: none .*; lower train.min_support, "
    ):
        check_trainable(stream, agent="ada", max_length=100)
    stream = _stream(LiveSource([make_example(3), make_example(4)], []), max_length=2)
    assert list(stream) == []
    with pytest.raises(TrainerError, match=r"^all 2 rows of 'ada' are longer than sft.max_length=2 tokens; raise"):
        check_trainable(stream, agent="ada", max_length=2)
