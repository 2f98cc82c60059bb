"""Evaluation against numbers worked by hand, and properties over any debates."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.results.evaluate import (
    FINAL_VOTE,
    SINGLE_AGENT,
    Evaluation,
    Figure,
    clustered_interval,
    compare,
    evaluate,
    mcnemar,
    paired,
    paired_interval,
    round_vote,
    wilson_interval,
)
from protocols.answer import Answer, grade
from protocols.graph import Debate, Edge, Utterance, Verdict
from protocols.machine import derive_seed
from protocols.message import Reply
from protocols.task import Task
from protocols.vote import majority_vote

AGENTS = ("ada", "bo", "cy", "dee")


def debate(
    task_id: str,
    rounds: Sequence[Sequence[str | None]],
    *,
    gold: tuple[str, ...] = ("1",),
    failures: int = 0,
    oracle: bool = False,
    debate_id: str = "",
) -> Debate:
    """A closed debate: ``rounds[r][a]`` is what agent a answered in round r, None for an unparsed reply."""
    task = Task(id=task_id, question="?", gold=gold)
    built = Debate(id=debate_id or f"d-{task_id}", task=task, protocol="society", seed=7, cast={"generator": AGENTS})
    for number, answers in enumerate(rounds):
        for agent, value in zip(AGENTS, answers, strict=False):
            node_id, answer = f"{number}.answer.{agent}", Answer(value)
            built.add(
                Utterance(
                    id=node_id,
                    agent=agent,
                    role="generator",
                    round=number,
                    phase="answer",
                    prompt=(),
                    reply=Reply(ask_id=node_id, text=str(value), model="m"),
                    answer=answer,
                    correct=grade(answer, task),
                ),
                (),
            )
    last = [Answer(value) for value in rounds[-1]] if rounds else []
    vote = majority_vote(last, tie_break="seeded", seed=derive_seed(7, "tie"))
    built.failures = ["ask: timeout"] * failures
    built.close(
        Verdict(
            answer=vote.answer.value,
            stop_reason="rounds",
            aggregator="majority_vote",
            tie=vote.tie,
            oracle=oracle,
            correct=grade(vote.answer, task),
        )
    )
    return built


def figure(evaluation: Evaluation, name: str) -> Figure:
    found = evaluation.figure(name)
    assert found is not None, [one.name for one in evaluation.figures]
    return found


def test_an_opening_that_was_shown_another_is_no_single_agent() -> None:
    one = debate("t1", [["1", "2", "2"]])
    one.edges.append(Edge("0.answer.ada", "0.answer.bo", "saw"))
    evaluation = evaluate([one])
    assert figure(evaluation, "single agent").num_replies == 2
    assert figure(evaluation, "single agent").accuracy == 0.5
    assert figure(evaluation, "replies, round 0").num_replies == 1
    assert evaluation.figure("bo alone") is None


def test_wilson_by_hand() -> None:
    # p = 0.8, n = 10, z^2 = 3.841459: centre (0.8 + 0.192073) / 1.384146 = 0.716740, half 0.226568
    assert wilson_interval(0.8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    # p = 0: the lower end is 0 and the upper z^2 / (n + z^2)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-6)


def test_clustered_interval_by_hand() -> None:
    # means 1, 1/2, 0, 1/2: m = 1/2, s^2 = (1/4 + 1/4) / 3 = 1/6, se = sqrt(1/24) = 0.204124, half 0.400076
    assert clustered_interval([1.0, 0.5, 0.0, 0.5]) == pytest.approx((0.099924, 0.900076), abs=1e-6)


def test_a_mean_without_spread_still_has_an_interval() -> None:
    assert clustered_interval([1.0] * 10) == wilson_interval(1.0, 10)
    assert clustered_interval([0.5]) == wilson_interval(0.5, 1)


def test_paired_interval_by_hand() -> None:
    # d = 1, 0, 0, 0, -1, 1, 0, 0: mean 1/8, squares 3 - 8/64 = 2.875, s^2 = 2.875 / 7, se = 0.226582
    low, high = paired_interval([1, 0, 0, 0, -1, 1, 0, 0])
    assert (low, high) == pytest.approx((0.125 - 0.444093, 0.125 + 0.444093), abs=1e-5)


def test_equal_differences_do_not_claim_certainty() -> None:
    # four zeros, one gained and one lost: mean 0, variance (2/6) / 6 = 1/18, se 0.235702, half 0.461968
    assert paired_interval([0.0] * 4) == pytest.approx((-0.461968, 0.461968), abs=1e-6)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    assert mcnemar(6, 1) == mcnemar(1, 6) == 2 * (1 + 7) / 2**7
    assert mcnemar(0, 5) == 2 / 32
    assert mcnemar(700, 700) == 1.0 and 0 < mcnemar(900, 700) < 1e-6  # beyond what a float holds of 2**1600


def test_votes_are_tested_by_mcnemar_and_shares_by_their_spread() -> None:
    def scored(*scores: float) -> Figure:
        return Figure(name="f", accuracy=0.5, low=0.0, high=1.0, scores={f"t{n}": one for n, one in enumerate(scores)})

    votes = paired(scored(0, 0, 0, 1, 1), scored(1, 1, 1, 1, 0))
    assert (votes.gained, votes.lost, votes.test, votes.p_value) == (3, 1, "mcnemar", mcnemar(3, 1))
    # d = 1/2, 1/2, 0, 1: mean 1/2, s^2 = (1/2) / 3 = 1/6, se = sqrt(1/24) = 0.204124, z = 2.449490
    shares = paired(scored(0, 0.5, 1, 0), scored(0.5, 1, 1, 1))
    assert (shares.gained, shares.lost, shares.test) == (3, 0, "z")
    assert shares.p_value == pytest.approx(0.014306, abs=1e-6)
    assert shares.clear and paired(scored(0.5, 0.5), scored(0.5, 0.5)).p_value == 1.0


def test_figures_by_hand() -> None:
    evaluation = evaluate(
        [
            debate("t1", [["1", "1", "2"], ["1", "1", "1"]]),
            debate("t2", [["1", None, "3"], ["3", "3", "1"]]),
        ]
    )
    names = [one.name for one in evaluation.figures]
    assert names == [
        "single agent",
        "ada alone",
        "bo alone",
        "cy alone",
        "vote, round 0",
        "replies, round 1",
        "vote, round 1",
        "final vote",
    ]
    single = figure(evaluation, SINGLE_AGENT)
    assert single.accuracy == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert single.scores == {"t1": pytest.approx(2 / 3), "t2": pytest.approx(1 / 3)}
    assert (single.num_tasks, single.num_replies, single.method) == (2, 6, "clustered")
    assert single.parsed_share == pytest.approx(5 / 6)
    assert single.accuracy_parsed == pytest.approx(3 / 5)
    # means 2/3 and 1/3: s^2 = 2 * (1/6)^2 / 1 = 1/18, se = sqrt(1/36) = 1/6
    assert single.low == pytest.approx(0.5 - 1.959964 / 6, abs=1e-6)
    assert single.high == pytest.approx(0.5 + 1.959964 / 6, abs=1e-6)
    bo = figure(evaluation, "bo alone")
    assert (bo.accuracy, bo.accuracy_parsed, bo.parsed_share, bo.method) == (0.5, 1.0, 0.5, "wilson")
    assert figure(evaluation, "replies, round 1").accuracy == pytest.approx((1 + 1 / 3) / 2)
    assert figure(evaluation, FINAL_VOTE).accuracy == 0.5


def test_consensus_ties_and_failures() -> None:
    evaluation = evaluate(
        [
            debate("t1", [["1", "1", "2"], ["1", "1", "1"]], failures=2),
            debate("t2", [["1", None, "3"], ["1", "2", None]], oracle=True),
        ]
    )
    first, second = evaluation.rounds
    assert first.consensus == pytest.approx((2 / 3 + 1 / 3) / 2)  # t2: one of three agrees with the drawn winner
    assert second.consensus == pytest.approx((1 + 1 / 3) / 2)
    assert (first.num_ties, second.num_ties, evaluation.num_ties) == (1, 1, 1)
    assert (evaluation.num_failures, evaluation.num_oracle, evaluation.num_debates) == (2, 1, 2)


def test_several_debates_of_a_task_are_one_cluster() -> None:
    runs = [debate("t1", [["1"]], debate_id="a"), debate("t1", [["2"]], debate_id="b"), debate("t2", [["1"]])]
    final = figure(evaluate(runs), FINAL_VOTE)
    assert (final.num_tasks, final.num_replies, final.method) == (2, 3, "clustered")
    assert final.accuracy == pytest.approx(0.75)  # (1/2 + 1) / 2: a task counts once


def test_nothing_to_evaluate() -> None:
    evaluation = evaluate([])
    assert evaluation == Evaluation()
    assert compare(evaluation, evaluation).differences == ()


def test_one_task() -> None:
    single = figure(evaluate([debate("t", [["1", "2"]])]), SINGLE_AGENT)
    assert single.accuracy == 0.5
    assert [single.low, single.high] == list(wilson_interval(0.5, 1))


def test_all_unparsed_is_wrong() -> None:
    evaluation = evaluate([debate("t1", [[None, None]]), debate("t2", [[None, None]])])
    for one in evaluation.figures:
        assert (one.accuracy, one.parsed_share, one.accuracy_parsed) == (0.0, 0.0, None)
        assert one.high is not None and one.high > 0
    assert evaluation.rounds[0].consensus == 0.0


def test_no_gold_means_no_accuracy() -> None:
    evaluation = evaluate([debate("t1", [["1", "1"]], gold=())])
    single = figure(evaluation, SINGLE_AGENT)
    assert (single.accuracy, single.low, single.high, single.accuracy_parsed) == (None, None, None, None)
    assert (single.num_graded, single.num_tasks, single.parsed_share) == (0, 1, 1.0)
    assert evaluation.rounds[0].consensus == 1.0
    assert compare(evaluation, evaluation).differences[0].difference is None


def test_tasks_without_gold_stay_out_of_the_accuracy() -> None:
    final = figure(evaluate([debate("t1", [["1"]]), debate("t2", [["1"]], gold=())]), FINAL_VOTE)
    assert (final.accuracy, final.num_graded, final.num_tasks) == (1.0, 1, 2)


def test_a_debate_nobody_replied_to_has_a_wrong_final_vote_and_no_rounds() -> None:
    evaluation = evaluate([debate("t1", [], failures=3)])
    assert [one.name for one in evaluation.figures] == [FINAL_VOTE]
    assert figure(evaluation, FINAL_VOTE).accuracy == 0.0
    assert evaluation.rounds == ()


def test_open_debates_are_refused() -> None:
    with pytest.raises(ValueError, match="'d' has no verdict"):
        evaluate([Debate(id="d", task=Task(id="t", question="?"), protocol="p", seed=0, cast={})])


def test_compare_pairs_over_common_tasks() -> None:
    before = evaluate([debate("t1", [["2"]]), debate("t2", [["1"]]), debate("t3", [["2"]]), debate("old", [["1"]])])
    after = evaluate([debate("t1", [["1"]]), debate("t2", [["1"]]), debate("t3", [["1"]]), debate("new", [["2"]])])
    change = compare(before, after).difference(SINGLE_AGENT)
    assert change is not None
    assert change.num_tasks == 3
    assert change.before == pytest.approx(1 / 3)
    assert change.after == 1.0
    # d = 1, 0, 1: mean 2/3, s^2 = (2 - 4/3) / 2 = 1/3, se = 1/3
    assert change.difference == pytest.approx(2 / 3)
    assert change.low == pytest.approx(2 / 3 - 1.959964 / 3, abs=1e-6)
    assert change.high == 1.0
    assert change.overlap is True
    assert change.clear


def test_intervals_that_are_apart() -> None:
    before = evaluate(debate(f"t{n}", [["2"]]) for n in range(20))
    after = evaluate(debate(f"t{n}", [["1"]]) for n in range(20))
    change = compare(before, after).difference(FINAL_VOTE)
    assert change is not None and change.overlap is False and change.clear


def test_no_common_tasks() -> None:
    change = compare(evaluate([debate("a", [["1"]])]), evaluate([debate("b", [["1"]])])).difference(FINAL_VOTE)
    assert change is not None
    assert (change.num_tasks, change.difference, change.low, change.overlap, change.clear) == (
        0,
        None,
        None,
        True,
        False,
    )


def test_importing_is_cheap() -> None:
    heavy = "{'matplotlib', 'jinja2', 'numpy', 'ray', 'torch', 'networkx'}"
    code = f"import engine.results.evaluate, engine.results.report, sys; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


answers = st.sampled_from(["1", "2", "1.0", "5", None])
rounds = st.lists(st.lists(answers, min_size=1, max_size=4), max_size=3)
golds = st.sampled_from([("1",), (), ("1", "5")])
stages = st.lists(st.tuples(st.sampled_from(["a", "b", "c", "d", "e"]), rounds, golds), max_size=8).map(
    lambda rows: [debate(task, said, gold=gold, debate_id=f"d{n}") for n, (task, said, gold) in enumerate(rows)]
)


def numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for inner in value.values() for number in numbers(inner)]
    if isinstance(value, list):
        return [number for inner in value for number in numbers(inner)]
    return [float(value)] if isinstance(value, int | float) else []


@given(stages, stages)
def test_any_stage_gives_ordered_finite_json(one: list[Debate], other: list[Debate]) -> None:
    before, after = evaluate(one), evaluate(other)
    for evaluation in (before, after):
        for found in evaluation.figures:
            if found.accuracy is not None:
                assert found.low is not None and found.high is not None
                assert 0 <= found.low <= found.accuracy <= found.high <= 1
                assert found.low < found.high
        encoded = msgspec.json.encode(evaluation)
        assert msgspec.json.decode(encoded, type=Evaluation) == evaluation
        assert all(math.isfinite(number) for number in numbers(json.loads(encoded)))
    for change in compare(before, after).differences:
        if change.difference is not None:
            assert change.low is not None and change.high is not None
            assert -1 <= change.low <= change.difference <= change.high <= 1


@given(stages, st.randoms(use_true_random=False))
def test_the_order_of_debates_does_not_matter(debates: list[Debate], shuffler: object) -> None:
    mixed = list(debates)
    shuffler.shuffle(mixed)  # type: ignore[attr-defined]
    first, second = evaluate(debates), evaluate(mixed)
    assert [one.name for one in first.figures] == [one.name for one in second.figures]
    for one, two in zip(first.figures, second.figures, strict=True):
        assert (one.accuracy, one.num_replies, one.parsed_share) == (two.accuracy, two.num_replies, two.parsed_share)
        assert (one.low, one.high) == pytest.approx((two.low, two.high))


@given(stages)
def test_a_stage_against_itself_has_not_changed(debates: list[Debate]) -> None:
    evaluation = evaluate(debates)
    for change in compare(evaluation, evaluation).differences:
        assert change.difference in (0, None)
        assert not change.clear


@given(rounds.filter(bool))
def test_the_vote_of_the_last_round_is_the_final_vote(said: list[list[str | None]]) -> None:
    one = debate("t", said)
    assert one.verdict is not None
    assert round_vote(one, len(said) - 1).answer.value == one.verdict.answer
