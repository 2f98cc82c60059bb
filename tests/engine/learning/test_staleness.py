"""How far behind the speakers of an iteration's debates were, counted by hand."""

from __future__ import annotations

from engine.learning.staleness import Staleness, staleness_of, turns_of
from protocols.answer import Answer
from protocols.graph import Debate, Utterance
from protocols.message import Reply
from protocols.task import Task
from trainers.record.registry import AdapterRecord


def record(agent: str, version: int, iteration: int) -> AdapterRecord:
    return AdapterRecord(
        name=f"{agent}@r-v{version}",
        agent=agent,
        version=version,
        path="",
        base_model="b",
        rule="generator",
        rows=1,
        created_at=0.0,
        metrics={"iteration": iteration},
        checksum="",
        base_hash="",
        data_hash="",
        recipe_hash="",
    )


def test_turns_of_learners_are_counted_by_who_spoke_with_which_version() -> None:
    debate = Debate(id="d", task=Task(id="t", question="?"), protocol="society", seed=0, cast={})
    for number, (agent, adapter) in enumerate((("ada", ""), ("ada", "ada@r-v1"), ("ada", ""), ("teacher", ""))):
        reply = Reply(ask_id=f"d#{number}", text="1", model="m", adapter=adapter)
        node = Utterance(
            id=str(number), agent=agent, role="r", round=0, phase="p", prompt=(), reply=reply, answer=Answer("1")
        )
        debate.add(node, [])
    assert turns_of([debate, debate], ("ada",)) == {("ada", ""): 4, ("ada", "ada@r-v1"): 2}


def test_older_than_the_newest_of_the_iterations_before_is_stale() -> None:
    records = [record("ada", 1, 1), record("bo", 1, 1), record("ada", 2, 2)]
    fresh = {("ada", "ada@r-v2"): 6, ("bo", "bo@r-v1"): 6}  # bo could not be trained in iteration 2
    assert staleness_of(fresh, records, 3) == Staleness(stale_share=0.0, most_behind=0)
    behind = {("ada", "ada@r-v1"): 6, ("bo", "bo@r-v1"): 6}
    assert staleness_of(behind, records, 3) == Staleness(stale_share=0.5, most_behind=1)
    base = {("ada", ""): 3, ("bo", ""): 1}
    assert staleness_of(base, records, 3) == Staleness(stale_share=1.0, most_behind=2)
    assert staleness_of(base, records, 2) == Staleness(stale_share=1.0, most_behind=1)
    assert staleness_of(base, records, 1) == Staleness(stale_share=0.0, most_behind=0)


def test_both_versions_of_an_iteration_with_preferences_count_once() -> None:
    records = [record("ada", 1, 1), record("ada", 2, 1), record("ada", 3, 2), record("ada", 4, 2)]
    assert staleness_of({("ada", "ada@r-v2"): 5}, records, 3) == Staleness(stale_share=1.0, most_behind=1)


def test_debates_that_came_to_nothing_are_not_stale() -> None:
    assert staleness_of({}, [record("ada", 1, 1)], 2) == Staleness(stale_share=0.0, most_behind=0)
