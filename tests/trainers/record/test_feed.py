"""The feed is durable, idempotent, and gives a row the same offset for ever."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import TrainerError
from trainers.record.feed import LOG_NAME, Addition, Feed, FeedActor, decode_page, hash_rows
from trainers.selection.example import Example

MakeExample = Callable[..., Example]


def _ids(feed: Feed, agent: str, offset: int = 0, limit: int = 100) -> list[str]:
    return [row.example.debate_id for row in feed.read(agent, offset, limit).rows]


def test_rows_come_back_in_order_with_the_progress_they_came_at(tmp_path: Path, make_example: MakeExample) -> None:
    feed = Feed(tmp_path)
    assert feed.add("d0", {"ada": [make_example(0)], "bo": [make_example(0, agent="bo")]}, 0.25)
    assert feed.add("d1", {}, 0.5)  # taught nobody anything, and counts as closed
    assert feed.add("d2", {"ada": [make_example(2)]}, 0.4)  # reported late: progress never goes back
    page = feed.read("ada", 0, 10)
    assert [(row.example, row.progress) for row in page.rows] == [(make_example(0), 0.25), (make_example(2), 0.5)]
    assert (page.done, page.progress) == (False, 0.5)
    feed.finish()
    assert (feed.read("ada", 0, 10).done, feed.read("ada", 0, 1).done, feed.read("ada", 1, 1).done) == (
        True,
        False,
        True,
    )
    assert (feed.read("nobody", 0, 10).done, feed.progress) == (True, 1.0)
    assert feed.counts() == {"ada": 2, "bo": 1}
    feed.close()


def test_a_debate_is_taken_once_also_after_a_restart(tmp_path: Path, make_example: MakeExample) -> None:
    feed = Feed(tmp_path)
    assert feed.add("d0", {"ada": [make_example(0)]}, 0.5)
    assert not feed.add("d0", {"ada": [make_example(9)]}, 0.5)
    feed.close()
    again = Feed(tmp_path)
    assert not again.add("d0", {"ada": [make_example(9)]}, 0.5)
    assert (
        again.add_many([Addition(debate_id=id, examples={"ada": [make_example(1)]}, progress=1.0) for id in "xx"]) == 1
    )
    assert _ids(again, "ada") == ["d0", "d1"]
    again.finish()
    again.finish()
    assert not again.add("d0", {}, 1.0)  # said again, harmless
    with pytest.raises(TrainerError, match="is finished and cannot take debate 'd7'"):
        again.add("d7", {}, 1.0)
    again.close()
    reopened = Feed(tmp_path)
    assert (reopened.finished, reopened.progress) == (True, 1.0)
    reopened.close()


@given(data=st.data())
def test_whatever_a_crash_leaves_debates_are_there_wholly_or_not_at_all(
    tmp_path_factory: pytest.TempPathFactory, make_example: MakeExample, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("feed")
    feed = Feed(folder)
    ends = [(folder / LOG_NAME).stat().st_size]
    for index in range(4):
        both = {agent: [make_example(index, agent=agent)] for agent in ("ada", "bo")}
        feed.add(f"d{index}", both, (index + 1) / 4)
        ends.append((folder / LOG_NAME).stat().st_size)
    feed.close()
    written = (folder / LOG_NAME).read_bytes()
    cut = data.draw(st.integers(0, ends[-1]))
    fill = data.draw(st.sampled_from([b"", b"\0" * 40, b"\xff" * 3]))
    with open(folder / LOG_NAME, "r+b") as log:
        log.truncate(cut)
        log.seek(0, 2)
        log.write(fill if cut >= ends[0] else b"")
    left = (folder / LOG_NAME).read_bytes()  # zeros may be just what was cut off
    whole = [f"d{index}" for index in range(4) if left[: ends[index + 1]] == written[: ends[index + 1]]]
    feed = Feed(folder)
    assert _ids(feed, "ada") == _ids(feed, "bo") == whole
    for index in range(4):  # the driver says everything again
        both = {agent: [make_example(index, agent=agent)] for agent in ("ada", "bo")}
        feed.add(f"d{index}", both, (index + 1) / 4)
    assert _ids(feed, "ada") == _ids(feed, "bo") == ["d0", "d1", "d2", "d3"]
    feed.close()


def test_damage_before_the_end_is_reported_not_cut(tmp_path: Path, make_example: MakeExample) -> None:
    feed = Feed(tmp_path)
    feed.add("d0", {"ada": [make_example(0)]}, 0.5)
    at = (tmp_path / LOG_NAME).stat().st_size - 3
    feed.add("d1", {"ada": [make_example(1)]}, 1.0)
    feed.close()
    with open(tmp_path / LOG_NAME, "r+b") as log:
        log.seek(at)
        log.write(b"\xff")
    with pytest.raises(TrainerError, match=r"rows.log is damaged at byte \d+; restore it or select the rows again"):
        Feed(tmp_path)


def test_a_foreign_file_and_a_second_holder_are_refused(tmp_path: Path, make_example: MakeExample) -> None:
    (tmp_path / LOG_NAME).write_text("something else altogether")
    with pytest.raises(TrainerError, match="is not a log of training rows"):
        Feed(tmp_path)
    feed = Feed(tmp_path / "mine")
    with pytest.raises(TrainerError, match="is open in another process"):
        Feed(tmp_path / "mine")
    with pytest.raises(TrainerError, match=r"debate 'd' came with progress=1.5; give 0 to 1"):
        feed.add("d", {"ada": [make_example(0)]}, 1.5)
    assert feed.counts() == {}
    feed.close()


def test_the_hash_tells_rows_and_order_and_nothing_else(tmp_path: Path, make_example: MakeExample) -> None:
    rows = [make_example(0), make_example(1)]
    sent = pickle.loads(pickle.dumps(rows))  # as through Ray
    feed = Feed(tmp_path)
    feed.add("d0", {"ada": sent[:1]}, 0.1)
    feed.add("d1", {"ada": sent[1:]}, 1.0)
    assert feed.data_hash("ada") == hash_rows(rows) == hash_rows(sent)
    assert hash_rows(rows) != hash_rows(rows[::-1])
    assert feed.data_hash("nobody") == hash_rows([])
    feed.close()


def test_the_actor_holds_a_read_until_rows_come_or_the_wait_is_over(tmp_path: Path, make_example: MakeExample) -> None:
    async def scenario() -> None:
        actor = FeedActor(str(tmp_path))
        assert decode_page(await actor.read("ada", 0, 10, wait_s=0.01)).rows == ()
        reading = asyncio.create_task(actor.read("ada", 0, 10, wait_s=20))
        await asyncio.sleep(0)
        assert await actor.add("d0", {"bo": [make_example(0, agent="bo")]}, 0.5)
        await asyncio.sleep(0)
        assert not reading.done()  # another agent's row
        assert await actor.add("d1", {"ada": [make_example(1)]}, 0.6)
        page = decode_page(await asyncio.wait_for(reading, 5))
        assert ([row.example for row in page.rows], page.done) == ([make_example(1)], False)
        ending = asyncio.create_task(actor.read("ada", 1, 10, wait_s=20))
        await asyncio.sleep(0)
        await actor.finish()
        assert decode_page(await asyncio.wait_for(ending, 5)).done
        assert await actor.counts() == {"bo": 1, "ada": 1}
        actor._feed.close()

    asyncio.run(scenario())
