"""A run that is killed in every way and taken up again comes to what an untouched one comes to."""

from __future__ import annotations

import os
import shutil
import signal

import pytest

from tests.integration.command import Moot, Process, RunOnDisk, check_clean, timeless

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TASKS = 80  # enough that even a very busy machine does not finish before it is interrupted
RECIPE = f"""
name: society
seed: 3
tasks: {{source: arithmetic, level: mixed10, train: {TASKS}, test: 0}}
models:
  simulated:
    backend: scripted
    conformity: 0.4
    latency_s: 0.3
    faults: {{transient: 0.05, refused: 0.03}}
    limits: {{max_concurrency: 8, backoff_s: 0.05}}
agents:
  ada: {{model: simulated}}
  bo: {{model: simulated}}
  cy: {{model: simulated}}
protocol: {{name: society, rounds: 2}}
cast: {{generator: [ada, bo, cy]}}
"""


@pytest.fixture(scope="module")
def untouched(moot: Moot) -> tuple[RunOnDisk, Process]:
    done = moot("run", "recipe.yaml", "models.simulated.latency_s=0.001", "--run-dir", "untouched", "--json")
    assert done.wait() == 0, done.stderr
    check_clean(done.stderr)
    assert done.all_gone(), "Ray's processes outlived a run"
    assert not [*moot.temp.glob("moot-ray-*"), *moot.home.glob(".ray")], "a token was left behind"
    run = RunOnDisk(moot.folder / "untouched")
    logged = [file.read_text() for file in (run.path / "logs").iterdir()]
    assert logged and not any("Ray's calls alone" in text for text in logged), "arena and host have no wire"
    return run, done


def under_way(moot: Moot, run: RunOnDisk, *args: str, more: int) -> Process:
    """Start, and return once so many more outcomes are on record than when the command's own arena was up."""
    before: dict[int, int] = {}

    def far_enough(process: Process) -> bool:
        if process.pid not in before and process.members("ray::ArenaActor"):
            before[process.pid] = len(run.outcomes("debate"))
        return process.pid in before and len(run.outcomes("debate")) >= before[process.pid] + more

    process = moot.start_until(*args, ready=far_enough)
    assert run.num_open("debate") > 0, "the run was over before it could be interrupted"
    return process


def test_a_run_interrupted_in_every_way_ends_like_an_untouched_one(
    moot: Moot, untouched: tuple[RunOnDisk, Process]
) -> None:
    run, store = RunOnDisk(moot.folder / "touched"), f"file://{moot.folder}/store"
    mirrored = (f"run.mirror={store}", "run.mirror_every_s=0.2")
    new, again = ("run", "recipe.yaml", *mirrored, "--run-dir", "touched", "--json"), ("resume", "touched", "--json")

    process = under_way(moot, run, *new, more=25)
    for second in (moot.start(*again), moot.start(*new)):
        assert second.wait() == 2
        assert len(second.stderr.splitlines()) == 1, second.stderr
        assert second.stdout == "" and "touched" in second.sentence()
    process.signal_group(signal.SIGKILL)
    process.wait()
    assert process.all_gone()
    before = len(run.outcomes("debate"))
    shutil.rmtree(run.path)  # and the disk with it: there is the copy
    assert moot("journal", "restore", f"{store}/touched", "--run-dir", "touched").wait() == 0
    assert 0 < len(run.outcomes("debate")) <= before

    process = under_way(moot, run, *again, more=25)
    process.signal(signal.SIGKILL)
    process.wait()

    process = under_way(moot, run, *again, more=25)
    process.signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.sentence().startswith("interrupted")
    assert process.all_gone(), "Ray's processes outlived an interrupted run"

    on_record = run.replies("debate")
    process = under_way(moot, run, *again, more=25)
    (arena,) = process.members("ray::ArenaActor")
    os.kill(arena, signal.SIGKILL)
    assert process.wait() == 0, process.stderr
    assert process.stderr.count("arena debate/arena-000 went down, starting it again") == 1
    check_clean(process.stderr)
    outcome = process.outcome()
    assert 0 < outcome["new_replies"] <= len(run.replies("debate")) - len(on_record), "replies were asked for again"

    asked = run.outcomes("debate")
    assert len(asked) == len(set(asked)) and set(on_record) <= set(asked)
    assert run.notes("debate") == []
    whole, done = untouched
    assert sorted(asked) == sorted(whole.outcomes("debate"))
    assert len(whole.debates("debate")) == TASKS
    assert {key: timeless(debate) for key, debate in run.debates("debate").items()} == {
        key: timeless(debate) for key, debate in whole.debates("debate").items()
    }
    changing = {"run", "report", "wall_s", "new_replies", "hosts"}
    assert {k: v for k, v in outcome.items() if k not in changing} == {
        k: v for k, v in done.outcome().items() if k not in changing
    }


def test_resuming_a_finished_run_changes_nothing(untouched: tuple[RunOnDisk, Process], moot: Moot) -> None:
    run, done = untouched
    kept = {file: file.read_bytes() for file in run.path.rglob("*") if file.suffix in (".sqlite", ".json", ".yaml")}
    again = moot.start("resume", "untouched", "--json")
    assert again.wait() == 0
    nothing = {"state": "done already", "new_replies": 0, "hosts": {}, "wall_s": 0.0}
    assert again.outcome() == done.outcome() | nothing
    assert "nothing to resume" in again.stderr
    assert {file: file.read_bytes() for file in kept} == kept
