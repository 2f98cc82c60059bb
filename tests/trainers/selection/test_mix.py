"""Mixing corrected and maintained rows: exact at any time, nothing of the scarcer pool left, nothing twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.message import user
from trainers.record.feed import Feed
from trainers.selection.example import Example, Pool
from trainers.selection.mix import Mix, Mixer

POOLS: tuple[Pool, ...] = ("corrected", "maintained")


def row(number: int, pool: Pool) -> Example:
    name = f"d{number}"
    return Example(
        id=f"{name}:1.answer.0:critic",
        agent="c",
        rule="critic",
        debate_id=name,
        node_ids=("1.answer.0",),
        prompt=(user("?"),),
        completion="!",
        pool=pool,
    )


def mixed(mix: Mix, kinds: list[Pool]) -> list[Example]:
    mixer = Mixer[Example](mix)
    rows = [row(number, pool) for number, pool in enumerate(kinds)]
    return [ready for example in rows for ready in mixer.offer(example, example)]


def pools(rows: list[Example]) -> Counter[Pool]:
    return Counter(example.pool for example in rows)


@pytest.mark.parametrize(
    ("corrected", "given_rows", "counts"),
    [
        (0.5, {"corrected": 4, "maintained": 10}, {"corrected": 4, "maintained": 4}),
        (0.25, {"corrected": 3, "maintained": 100}, {"corrected": 3, "maintained": 9}),
        (0.8, {"corrected": 100, "maintained": 5}, {"corrected": 20, "maintained": 5}),
        (1.0, {"corrected": 3, "maintained": 5}, {"corrected": 3}),
        (0.0, {"corrected": 3, "maintained": 5}, {"maintained": 5}),
    ],
)
def test_sets_counted_by_hand(corrected: float, given_rows: dict[Pool, int], counts: dict[Pool, int]) -> None:
    kinds = [pool for pool in POOLS for _ in range(given_rows[pool])]
    found = pools(mixed(Mix(corrected=corrected), kinds))
    assert abs(found["corrected"] - counts.get("corrected", 0)) <= 1
    assert abs(found["maintained"] - counts.get("maintained", 0)) <= 1


@given(
    kinds=st.lists(st.sampled_from(POOLS), max_size=60),
    corrected=st.sampled_from([0.0, 0.1, 0.25, 0.5, 2 / 3, 0.9, 1.0]),
    seed=st.integers(0, 3),
)
def test_the_share_holds_within_a_row_at_any_time(kinds: list[Pool], corrected: float, seed: int) -> None:
    mix = Mix(corrected=corrected, seed=seed)
    rows = mixed(mix, kinds)
    assert len({example.id for example in rows}) == len(rows)
    for end in range(len(rows) + 1):
        assert abs(pools(rows[:end])["corrected"] - corrected * end) <= 1 + 1e-9
    given_rows, taken = Counter(kinds), pools(rows)
    wanted = [pool for pool, share in zip(POOLS, (corrected, 1 - corrected), strict=True) if share]
    assert any(taken[pool] == given_rows[pool] for pool in wanted)  # the scarcer pool is used up
    assert rows == mixed(mix, kinds)  # a function of the rows so far


@given(kinds=st.lists(st.sampled_from(POOLS), max_size=60))
def test_the_released_coin_keeps_every_corrected_row_and_adds_one_at_heads(kinds: list[Pool]) -> None:
    taken, given_rows = pools(mixed(Mix(how="coin_flip"), kinds)), Counter(kinds)
    assert taken["corrected"] == given_rows["corrected"]
    assert taken["maintained"] <= min(given_rows["corrected"], given_rows["maintained"])


def test_the_released_coin_makes_one_and_a_half_of_each_corrected_row() -> None:
    kinds: list[Pool] = ["corrected", "maintained"] * 1000
    assert len(mixed(Mix(how="coin_flip"), kinds)) == pytest.approx(1500, abs=60)


def test_rows_of_no_pool_and_unmixed_ones_pass() -> None:
    assert len(mixed(Mix(), ["", "", ""])) == 3
    assert len(mixed(Mix(how="all"), ["corrected"] * 5)) == 5


def test_of_the_rows_that_wait_the_draw_decides_and_not_who_came_first() -> None:
    first, *others = (row(number, "maintained") for number in range(20))
    corrected = [row(number, "corrected") for number in range(100, 105)]

    def taken(waiting: list[Example], seed: int = 0) -> list[str]:
        mixer = Mixer[str](Mix(seed=seed))
        return [ready for example in (first, *waiting, *corrected) for ready in mixer.offer(example, example.id)]

    assert len(taken(others)) == 11 and taken(others) == taken(others[::-1]) != taken(others, seed=1)


def test_a_feed_that_is_opened_again_mixes_the_same(tmp_path: Path) -> None:
    maintained: list[Pool] = ["maintained"]
    corrected: list[Pool] = ["corrected"]
    kinds = maintained * 5 + corrected * 3 + maintained + corrected
    feed = Feed(tmp_path, mix=Mix(seed=3))
    for number, pool in enumerate(kinds):
        feed.add(f"d{number}", {"c": [row(number, pool)]}, (number + 1) / len(kinds))
    before = feed.read("c", 0, 100)
    assert feed.counts() == {"c": 9} and feed.waiting() == {"c": 1}
    assert pools([item.example for item in before.rows]) == {"corrected": 4, "maintained": 5}
    shares = [item.progress for item in before.rows]
    assert shares == sorted(shares)  # a row that waited comes at the time it is let go
    feed.close()
    again = Feed(tmp_path, mix=Mix(seed=3))
    assert again.read("c", 0, 100) == before and again.read("c", 5, 100).rows == before.rows[5:]
    again.finish()
    assert again.read("c", 9, 1).done  # what still waits is never read
    again.close()
