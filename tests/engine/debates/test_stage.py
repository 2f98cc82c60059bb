"""What came of a stage: what was set aside is told with its reasons and is in no figure."""

from __future__ import annotations

from pathlib import Path

from engine.debates.desk import Closed
from engine.debates.stage import MIN_SHARE, StageResult, needed
from engine.results.evaluate import evaluate
from protocols.graph import Debate, Verdict
from protocols.message import Usage
from protocols.statistics import statistics
from protocols.task import Task


def closed(name: str, set_aside: str = "") -> Closed:
    debate = Debate(id=name, task=Task(id=name, question="?", gold=("1",)), protocol="society", seed=0, cast={})
    if not set_aside:
        debate.close(Verdict(answer="1", stop_reason="rounds", aggregator="majority_vote", correct=True))
    return Closed(debate, 0.0, set_aside)


def result(*items: Closed) -> StageResult:
    return StageResult(name="debate", closed=list(items), num_new=0, replies=0, usage=Usage(), wall_s=0.0)


def test_what_was_set_aside_is_in_no_figure() -> None:
    stage = result(closed("a"), closed("b", "no gold"), closed("c", "late"), closed("d", "no gold"))
    assert [debate.id for debate in stage.graded] == ["a"]
    assert len(stage.debates) == 4
    found = evaluate(stage.graded)
    assert found.num_tasks == 1 and found.figure("final vote") is not None
    assert stage.reasons() == ["2 set aside: no gold", "1 set aside: late"]


def test_a_stage_that_came_to_nothing_has_no_figures() -> None:
    stage = result(closed("a", "x"))
    assert evaluate(stage.graded).figures == ()
    assert statistics(stage.graded).num_debates == 0


def test_an_arena_is_started_for_what_it_is_worth(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.sqlite" for number in range(4)]
    for number, arenas in ((0, 1), (1, 1), (MIN_SHARE, 1), (MIN_SHARE + 1, 2), (1000, 4)):
        assert needed(paths, number) == paths[:arenas]
    paths[2].touch()  # an earlier try got so far
    assert needed(paths, 1) == [paths[0], paths[2]]
