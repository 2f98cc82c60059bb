"""A run with a budget on local Ray: it pauses in time, goes on with more, and pays for nothing twice."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from actors.tries import spent
from protocols.machine import AgentFailed, Replied
from tests.integration.command import Moot, RunOnDisk, moot_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

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


@pytest.fixture(scope="module")
def moot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moot]:
    folder = tmp_path_factory.mktemp("budget")
    (folder / "society.yaml").write_text(RECIPE)
    with moot_in(folder) as moot:
        yield moot


def on_record(run: RunOnDisk) -> float:
    events = run.events("debate")
    replies = [spent(event.reply).usd for event in events if isinstance(event, Replied)]
    return sum(replies) + sum(spent(event.failure).usd for event in events if isinstance(event, AgentFailed))


def test_a_budget_pauses_the_run_and_more_of_it_goes_on(moot: Moot) -> None:
    run, cap = RunOnDisk(moot.folder / "r"), 0.1
    paused = moot("run", "society.yaml", f"run.budget.usd={cap}", "--run-dir", "r", "--json")
    assert paused.wait() == 3, paused.stderr
    assert paused.stdout == "" and "paused: budget of $0.1 spent" in paused.sentence()
    assert "go on with `moot resume r --budget usd=Y`" in paused.sentence()
    assert cap - 0.03 < on_record(run) <= cap  # not passed, and used but for less than two asks' most
    asked = set(run.outcomes("debate"))
    assert 0 < len(asked) < 360

    again = moot("resume", "r", "--json")  # no more money: nothing is asked
    assert again.wait() == 3 and on_record(run) <= cap
    done = moot("resume", "r", "--budget", "usd=50", "--json")
    assert done.wait() == 0, done.stderr
    outcome = done.outcome()
    outcomes = run.outcomes("debate")
    assert len(outcomes) == len(set(outcomes)) >= len(asked) and asked <= set(outcomes)
    assert outcome["cost_usd"] == pytest.approx(on_record(run), abs=1e-5)
    assert outcome["cost_usd"] > cap and set(outcome["spending"]["by_agent"]) == {"ada", "bo", "cy"}


def test_an_account_that_refuses_pauses_the_run_and_fails_nothing(moot: Moot) -> None:
    run = RunOnDisk(moot.folder / "locked")
    paused = moot("run", "society.yaml", "agents.cy.model=locked", "--run-dir", "locked", "--json")
    assert paused.wait() == 3, paused.stderr
    assert "model 'locked' was refused (authentication)" in paused.sentence()
    assert "go on with `moot resume locked`" in paused.sentence()
    assert not [event for event in run.events("debate") if isinstance(event, AgentFailed)]
