"""Attempts: ids that no other debate has, and which of them counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.debates.arena import failure_summary
from engine.debates.desk import Closed, Desk
from engine.debates.stage import recorded
from engine.record.attempts import Attempts, debate_id, split_id
from engine.record.folder import Manifest, RunFolder
from engine.record.journal import CloseEntry, EventEntry, Journal
from protocols.errors import ConfigError
from protocols.graph import Debate, Verdict, encode_debate
from protocols.machine import Opened, derive_seed
from protocols.task import Task
from tests.engine.helpers import make_tasks


def closed(name: str, *, aside: bool = False) -> Closed:
    task = next(task for task in make_tasks(9) if task.id == split_id(name)[1])
    return closed_of(task, name.partition("/")[0], aside=aside)


def closed_of(task: Task, place: str, *, aside: bool = False, seed: int = 0) -> Closed:
    """``place``: the stage, with the attempt where it is not the first."""
    name = f"{place}/{task.id}"
    debate = Debate(id=name, task=task, protocol="society", seed=derive_seed(seed, name), cast={})
    if aside:
        debate.failures.append("0.answer.0: refused: no")
    else:
        debate.close(Verdict(answer="1", stop_reason="rounds", aggregator="majority_vote", correct=True))
    return Closed(debate, 1.0, failure_summary(debate))


def put_on_record(folder: RunFolder, stage: str, *found: Closed) -> None:
    path = folder.journals(stage)[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(path, fingerprint=folder.manifest.fingerprint)
    for item in found:
        debate = item.debate
        opened = Opened(debate_id=debate.id, task=debate.task, seed=debate.seed)
        journal.commit([EventEntry(debate.id, 0, 0.0, opened), CloseEntry(debate.id, 1.0, encode_debate(debate))])
    journal.close()


@pytest.mark.parametrize("task", ["t", "a/b", "~2/t", "a~3", "", "t#1"])
@pytest.mark.parametrize("attempt", [1, 2, 11])
def test_an_id_says_stage_task_and_attempt_whatever_the_task_is_called(task: str, attempt: int) -> None:
    assert split_id(debate_id("debate-1", task, attempt)) == ("debate-1", task, attempt)


def test_no_two_attempts_share_an_id() -> None:
    names = [debate_id("s", task, attempt) for task in ("t", "~2/t", "2/t", "t~2") for attempt in (1, 2, 3)]
    assert len(set(names)) == len(names)


def test_an_attempt_that_was_asked_for_counts_and_stays(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path)
    attempts.again(["s/t1", "s/t2", "e/t1"])
    attempts.again(["s~2/t1"])
    read = Attempts(tmp_path)
    assert [read.id("s", task) for task in ("t0", "t1", "t2")] == ["s/t0", "s~3/t1", "s~2/t2"]
    assert read.id("e", "t1") == "e~2/t1"
    assert [read.counts(name) for name in ("s/t0", "s/t1", "s~2/t1", "s~3/t1")] == [True, False, False, True]


@pytest.mark.parametrize("content", ["", "{", '{"s": {"t": "2"}}', '{"s": 1}'])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "retries.json").write_text(content)
    with pytest.raises(ConfigError, match=r"retries\.json: cannot be read"):
        Attempts(tmp_path)


def desk_of(tmp_path: Path, *found: Closed, count: int = 4) -> Desk:
    return Desk("s", make_tasks(count), 3, Attempts(tmp_path), found)


def test_a_desk_hands_out_what_is_not_on_record(tmp_path: Path) -> None:
    desk = desk_of(tmp_path, closed("s/t1"), closed("s/t2", aside=True))
    assert [given.debate_id for given in desk.waiting] == ["s/t0", "s/t3"] and desk.num_done == 2
    assert [given.seed for given in desk.waiting] == [derive_seed(3, "s/t0"), derive_seed(3, "s/t3")]
    desk.take([closed("s/t3"), closed("other/t0"), closed("s~2/t0")])  # only the first is ours
    assert [item.debate.id for item in desk.done] == ["s/t1", "s/t2", "s/t3"] and desk.num_new == 1


def test_what_was_set_aside_is_debated_again_under_another_id(tmp_path: Path) -> None:
    desk = desk_of(tmp_path, closed("s/t0", aside=True), closed("s/t1"), closed("s/t2", aside=True), closed("s/t3"))
    assert not desk.waiting
    assert desk.again(["s/t2"]) == ["s~2/t2"]
    (given,) = desk.waiting
    assert given.debate_id == "s~2/t2" and given.seed == derive_seed(3, "s~2/t2") and given.task.id == "t2"
    assert [item.debate.id for item in desk.done] == ["s/t0", "s/t1", "s/t3"]
    desk.waiting.clear()
    desk.take([closed("s/t2", aside=True)])  # of the attempt that does not count any more
    assert desk.num_done == 3
    desk.take([closed("s~2/t2", aside=True)])
    assert desk.again([]) == ["s~2/t0", "s~3/t2"]
    assert desk_of(tmp_path).waiting == desk_of(tmp_path, closed("s/t0"), closed("s~2/t2")).waiting


@pytest.mark.parametrize(
    ("name", "said"),
    [("t1", "'t1' has ended well"), ("s/t0", "'t0' is open, or waits"), ("t9", "'t9' is no task of stage s")],
)
def test_what_was_not_set_aside_is_not_debated_again(tmp_path: Path, name: str, said: str) -> None:
    desk = desk_of(tmp_path, closed("s/t1"), closed("s/t2", aside=True))
    with pytest.raises(ConfigError, match=said):
        desk.again(["t2", name])
    assert desk.num_done == 2 and not (tmp_path / "retries.json").exists()  # nothing was done by halves


def test_on_record_is_the_attempt_that_counts(tmp_path: Path) -> None:
    manifest = Manifest(id="r", kind="run", name="r", fingerprint="f", num_arenas=1, recipe={}, recipe_path="")
    folder = RunFolder.create(tmp_path / "r", manifest)
    put_on_record(
        folder, "s", closed("s/t0", aside=True), closed("s/t1"), closed("s~2/t0", aside=True), closed("s~3/t0")
    )
    attempts = Attempts(folder.path)
    assert [item.debate.id for item in recorded(folder, "s")] == ["s/t0", "s/t1"]
    attempts.again(["s/t0"])
    found = {item.debate.id: item.set_aside for item in recorded(folder, "s")}
    assert found == {"s/t1": "", "s~2/t0": "set aside 2 times, the last time: 0.answer.0: refused: no"}
    attempts.again(["s~2/t0"])
    assert [item.debate.id for item in recorded(folder, "s")] == ["s/t1", "s~3/t0"]
    folder.release()
