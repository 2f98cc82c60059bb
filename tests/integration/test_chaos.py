"""Twenty kills at seeded moments: whatever dies, runs come to the same, and nothing on record is asked again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.integration.chaos import accounts, chaos_in
from tests.integration.chaos_account import POINTS_A_RUN, WEIGHTS, Figures, Point, Strike, plan, table, tally

SEED, POINTS = 1, 20


def struck(at: float, over: float, *, resubmissions: int = 0) -> Strike:
    return Strike(Point("node", 60, 0.5), at, over, {}, resubmissions)


def test_a_seed_is_a_plan_and_every_kind_of_process_is_in_it() -> None:
    drawn = plan(SEED, POINTS)
    assert drawn == plan(SEED, POINTS) != plan(SEED + 1, POINTS)
    assert [len(points) for points in drawn] == [POINTS_A_RUN] * (POINTS // POINTS_A_RUN)
    assert Counter(point.kind for points in drawn for point in points) == WEIGHTS


def test_what_was_in_flight_at_a_kill_may_be_asked_again_once() -> None:
    tries = {"done": [1.0], "held": [2.0, 12.0], "kept": [3.0], "next": [11.0]}
    recorded = {"done": 1.5, "held": 12.5, "kept": 10.5, "next": 11.5}
    account = tally("r", tries, recorded, [struck(10.0, 10.2)])
    assert account.faults == []
    (figures,) = account.figures
    assert (figures.in_flight, figures.asked_again, figures.recovery_s) == (2, 1, 2.5)  # held and kept


def test_of_a_run_that_ended_what_was_recorded_until_then_is_not_asked_again() -> None:
    tries, recorded = {"a": [1.0, 12.0]}, {"a": 12.5}
    assert tally("r", tries, recorded, [struck(10.0, 10.2, resubmissions=1)]).faults == []
    recorded = {"a": 10.1}  # between the kill and the end of the last process
    assert tally("r", tries, recorded, [struck(10.0, 10.2)]).faults == []
    assert len(tally("r", tries, recorded, [struck(10.0, 10.2, resubmissions=1)]).faults) == 1


def test_whatever_else_is_asked_again_is_a_fault() -> None:
    strikes = [struck(10.0, 10.2)]
    on_record = tally("r", {"a": [1.0, 12.0]}, {"a": 1.5}, strikes)
    without_a_kill = tally("r", {"a": [1.0, 2.0]}, {"a": 2.5}, strikes)
    begun_after_it = tally("r", {"a": [11.0, 12.0]}, {"a": 12.5}, strikes)
    twice = tally("r", {"a": [1.0, 12.0, 13.0]}, {"a": 13.5}, [struck(10.0, 14.0)])
    for account, told in ((on_record, "no kill"), (without_a_kill, "no kill"), (begun_after_it, "no kill")):
        (fault,) = account.faults
        assert told in fault
    assert len(twice.faults) == 1 and "twice after one kill" in twice.faults[0]
    assert len(tally("r", {}, {"a": 1.0}, strikes).faults) == len(tally("r", {"a": [1.0]}, {}, strikes).faults) == 1


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(1500)
def test_whatever_is_killed_runs_end_like_an_untouched_one(tmp_path: Path) -> None:
    figures: list[Figures] = []
    with chaos_in(tmp_path) as chaos:
        for account in accounts(chaos.run, plan(SEED, POINTS)):
            assert not account.faults, account.faults
            figures += account.figures
    print(table(figures))
    assert len(figures) == POINTS
    assert all(item.asked_again <= item.in_flight for item in figures)
