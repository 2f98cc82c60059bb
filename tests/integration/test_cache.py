"""Runs that share a cache on local Ray: what one has asked, the next is not billed for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.command import Moot, RunOnDisk, moot_in

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECIPE = """
name: society
seed: 3
tasks: {source: arithmetic, level: mixed10, train: 20, test: 0}
models:
  one: {backend: scripted, price: {input: 10, output: 20}, cache: {path: kept, sampled: true}}
agents:
  ada: {model: one, max_tokens: 40}
  bo: {model: one, max_tokens: 40}
protocol: {name: society, rounds: 2}
cast: {generator: [ada, bo]}
run: {num_arenas: 2}
"""


@pytest.fixture(scope="module")
def moot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moot]:
    folder = tmp_path_factory.mktemp("cache")
    (folder / "society.yaml").write_text(RECIPE)
    with moot_in(folder) as moot:
        yield moot


def texts(moot: Moot, run: str) -> dict[str, list[str]]:
    found = RunOnDisk(moot.folder / run).debates("debate")
    return {name: [node.reply.text for node in debate.utterances] for name, debate in found.items()}


def test_a_run_that_was_held_before_needs_no_money(moot: Moot) -> None:
    first = moot("run", "society.yaml", "--run-dir", "first", "--json")
    assert first.wait() == 0, first.stderr
    paid = first.outcome()
    assert paid["cached_replies"] == 0 and paid["cost_usd"] > 0 and paid["replies"] == 80
    again = moot("run", "society.yaml", "run.budget.usd=0.000001", "--run-dir", "again", "--json")
    assert again.wait() == 0, again.stderr
    free = again.outcome()
    assert (free["cached_replies"], free["cost_usd"], free["tokens"]) == (80, 0.0, 0)
    assert free["accuracy"] == paid["accuracy"]
    assert texts(moot, "again") == texts(moot, "first")
