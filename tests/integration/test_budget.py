"""A run with a budget on local Ray: it pauses in time, goes on with more, and pays for nothing twice."""

from __future__ import annotations

from typing import Any

import pytest

from actors.limits.tries import spent
from engine.live.progress import Progress
from engine.run import resume
from protocols.errors import PausedError
from protocols.machine import AgentFailed, Replied
from tests.integration.command import Moot, RunOnDisk, run_here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

RECIPE = """
name: society
seed: 3
tasks: {source: arithmetic, level: mixed10, train: 60, test: 0}
models:
  one: {backend: scripted, latency_s: 0.02, price: {input: 10, output: 20}}
  two: {backend: scripted, latency_s: 0.02, faults: {timeout: 0.05}, price: {input: 10, output: 20}}
  locked: {backend: scripted, latency_s: 0.02, faults: {authentication: 0.05}}
agents:
  ada: {model: one, max_tokens: 40}
  bo: {model: one, max_tokens: 40}
  cy: {model: two, max_tokens: 40}
protocol: {name: society, rounds: 2}
cast: {generator: [ada, bo, cy]}
run: {num_arenas: 2}
"""


def on_record(run: RunOnDisk) -> float:
    events = run.events("debate")
    replies = [spent(event.reply).usd for event in events if isinstance(event, Replied)]
    return sum(replies) + sum(spent(event.failure).usd for event in events if isinstance(event, AgentFailed))


def test_a_budget_pauses_the_run_and_more_of_it_goes_on(moot: Moot, local_ray: Any) -> None:
    run, cap = RunOnDisk(moot.folder / "r"), 0.1
    paused = moot("run", "recipe.yaml", f"run.budget.usd={cap}", "--run-dir", "r", "--json")
    assert paused.wait() == 3, paused.stderr
    assert paused.stdout == "" and "paused: budget of $0.1 spent" in paused.sentence()
    assert "go on with `moot resume r --budget usd=Y`" in paused.sentence()
    assert cap - 0.03 < on_record(run) <= cap  # not passed, and used but for less than two asks' most
    asked = set(run.outcomes("debate"))
    assert 0 < len(asked) < 360

    with pytest.raises(PausedError, match=r"paused: budget of \$0\.1 spent"):  # no more money: nothing is asked
        resume(run.path, progress=Progress(live=False))
    assert on_record(run) <= cap
    outcome = resume(run.path, budget=["usd=50"], progress=Progress(live=False))
    outcomes = run.outcomes("debate")
    assert len(outcomes) == len(set(outcomes)) >= len(asked) and asked <= set(outcomes)
    assert outcome["cost_usd"] == pytest.approx(on_record(run), abs=1e-5)
    assert outcome["cost_usd"] > cap and set(outcome["spending"]["by_agent"]) == {"ada", "bo", "cy"}


def test_an_account_that_refuses_pauses_the_run_and_fails_nothing(moot: Moot, local_ray: Any) -> None:
    run = RunOnDisk(moot.folder / "locked")
    with pytest.raises(PausedError, match=r"model 'locked' was refused \(authentication\)") as caught:
        run_here(moot.folder / "recipe.yaml", run.path, "agents.cy.model=locked")
    assert f"go on with `moot resume {run.path}`" in str(caught.value)
    assert not [event for event in run.events("debate") if isinstance(event, AgentFailed)]
