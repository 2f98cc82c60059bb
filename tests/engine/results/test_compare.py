"""Runs side by side, from their folders alone: paired figures by hand, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.loop import keep_statistics
from engine.record.folder import Manifest, RunFolder
from engine.results.compare import compare_runs, describe_runs
from engine.results.evaluate import evaluate, mcnemar
from engine.results.likelihoods import likelihoods_file
from protocols.graph import Debate
from tests.engine.command import done, moot, refused
from tests.engine.results.test_evaluate import debate
from trainers.tuning.likelihood import Likelihood

BEFORE = [debate("t1", [["1", "2", "2"], ["2", "2", "2"]]), debate("t2", [["1", "1", "3"], ["1", "1", "1"]])]
AFTER = [debate("t1", [["1", "1", "2"], ["1", "1", "1"]]), debate("t2", [["1", "1", "3"], ["1", "1", "1"]])]


def make_run(path: Path, stages: dict[str, Sequence[Debate]], **fields: Any) -> Path:
    """A run's folder as the loop leaves it, its journals left out."""
    made: dict[str, Any] = {"recipe": {"tasks": {"source": "arithmetic"}}, "finished_at": 2.0} | fields
    manifest = Manifest(
        id=path.name, kind="loop", name="r", fingerprint="f", num_arenas=1, recipe_path="r.yaml", **made
    )
    folder = RunFolder.create(path, manifest)
    for stage, debates in stages.items():
        keep_statistics(folder, stage, debates)
        (path / "results" / f"{stage}.json").write_bytes(msgspec.json.encode(evaluate(debates)))
        new = {"debates": len(debates), "replies": 12, "completion_tokens": 50}
        folder.mark_done(stage, {"debates": len(debates), "wall_s": 2.0, "cost_usd": 0.5, "new": new})
    folder.release()
    return path


def test_a_run_s_evaluations_are_held_against_its_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"eval-0": BEFORE, "eval-10": AFTER, "eval-2": BEFORE})
    found = done("compare", run)
    assert list(found["sides"]) == ["run:eval-0", "run:eval-2", "run:eval-10"]
    changes = {(one["after"], one["after_measure"]): one["difference"] for one in found["changes"]}
    final = changes["run:eval-10", "final vote"]
    assert (final["before"], final["after"], final["gained"], final["lost"]) == (0.5, 1.0, 1, 0)
    assert (final["test"], final["p_value"]) == ("mcnemar", mcnemar(1, 0))
    single = changes["run:eval-10", "single agent"]  # t1: 1/3 -> 2/3, t2: 2/3 both
    assert single["difference"] == pytest.approx(1 / 6) and single["test"] == "z"
    assert changes["run:eval-2", "final vote"]["difference"] == 0.0
    assert found["notes"] == []


def test_a_vote_of_the_openings_is_the_debate_s_control(tmp_path: Path) -> None:
    found = done("compare", make_run(tmp_path / "run", {"eval-0": BEFORE, "eval-1": AFTER}))
    controls = {(one["after"], one["before_measure"]): one["difference"] for one in found["controls"]}
    assert controls["run:eval-0", "vote, round 0"]["difference"] == 0.0
    assert controls["run:eval-1", "single agent"]["before"] == pytest.approx(2 / 3)
    assert controls["run:eval-1", "single agent"]["after"] == 1.0


def test_diversity_and_cost_by_hand(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"eval-0": BEFORE, "eval-1": AFTER})
    side = done("compare", run)["sides"]["run:eval-0"]
    opening = side["diversity"]["0"]  # 1 2 2 and 1 1 3: two of three pairs differ in both, one agent of three differs
    assert opening["consensus"] == pytest.approx(2 / 3)
    assert opening["pairwise_disagreement"] == pytest.approx(2 / 3)
    assert opening["wording_distance"] == pytest.approx(2 / 3)  # replies of one word: alike or nothing in common
    assert side["diversity"]["1"] == {
        "consensus": 1.0,
        "pairwise_disagreement": 0.0,
        "entropy_bits": 0.0,
        "wording_distance": 0.0,
    }
    cost = side["cost"]
    assert (cost["replies"], cost["usd"], cost["wall_s"]) == (6.0, 0.25, 2.0)
    assert (cost["completion_tokens_per_s"], cost["debates_per_s"]) == (25.0, 1.0)


def test_the_tables_tell_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"eval-0": BEFORE, "eval-1": AFTER})
    likely = Likelihood(speaker="ada v1", reader="base", nll=1.25, kl=0.5, tokens=1234)
    likelihoods_file(run, "eval-1").parent.mkdir()
    likelihoods_file(run, "eval-1").write_bytes(msgspec.json.encode([likely]))
    text = moot("compare", run).stdout
    rows = [line.split("  ") for line in text.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["final vote", "50.0% [9.5, 90.5]", "100.0% [34.2, 100.0]", "+50.0 [−48.0, +100.0] p=1 of 2"] in cells
    assert ["vote, round 0", "run:eval-1", "100.0%", "100.0%", "0.0 [−69.3, +69.3] p=1 of 2"] in cells
    assert ["run:eval-0", "0", "66.7%", "66.7%", "0.92", "0.67"] in cells
    assert ["run:eval-1", "ada v1", "base", "1.250", "0.500", "1,234"] in cells
    assert "nan" not in text.lower()


def test_other_tasks_are_told_and_none_in_common_refused(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", {"eval-0": BEFORE})
    other = make_run(
        tmp_path / "other", {"eval-0": [*AFTER, debate("t3", [["1"]])]}, recipe={"tasks": {"source": "file"}}
    )
    notes = done("compare", one, other)["notes"]
    assert notes[0] == ("one:eval-0 graded 2 tasks and other:eval-0 3; changes are over the 2 that both have")
    assert "describe their tasks differently" in notes[1] and "replies a task differ: " in notes[2]
    third = make_run(tmp_path / "third", {"eval-0": [debate("t9", [["1"]])]})
    assert "one:eval-0 and third:eval-0 have no graded task in common (2 and 1 of their own)" in refused(
        "compare", one, third
    )


def test_one_evaluation_can_be_described_by_itself(tmp_path: Path) -> None:
    alone = describe_runs([str(make_run(tmp_path / "run", {"eval-0": BEFORE}))])
    both = compare_runs([str(make_run(tmp_path / "two", {"eval-0": BEFORE, "eval-1": AFTER}))])
    (side,), (before, _) = alone.sides, both.sides
    assert side.evaluation.figures == before.evaluation.figures and alone.changes == ()
    assert 0 < len(alone.controls) < len(both.controls)


def test_what_cannot_be_compared_says_why(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"eval-0": BEFORE})
    assert "run:eval-0 is the only evaluation of" in refused("compare", run)
    assert "holds no evaluation 'eval-7'; there is: eval-0" in refused("compare", run, f"{run}:eval-7")
    assert "nowhere is not a run's folder" in refused("compare", run, tmp_path / "nowhere")
    assert "holds no evaluation yet; finish it with `moot resume" in refused("compare", make_run(tmp_path / "new", {}))
    assert "run:eval-0 is named 2 times" in refused("compare", run, f"{run}:eval-0")


def test_runs_of_one_name_go_by_their_paths(tmp_path: Path) -> None:
    here, there = (make_run(tmp_path / place / "run", {"eval-0": BEFORE}) for place in ("here", "there"))
    assert list(done("compare", here, there)["sides"]) == [f"{here}:eval-0", f"{there}:eval-0"]


def test_runs_from_before_statistics_were_kept_still_compare(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"eval-0": BEFORE, "eval-1": AFTER})
    for file in (run / "results").glob("*-statistics.json"):
        file.unlink()
    side = done("compare", run)["sides"]["run:eval-1"]
    assert side["diversity"] == {} and side["cost"]["replies"] is None
    assert "diversity" not in moot("compare", run).stdout
