"""Runs that share a cache on local Ray: what one has asked, the next is not billed for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.command import RunOnDisk, run_here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

RECIPE = """
name: society
seed: 3
tasks: {source: arithmetic, level: mixed10, train: 20, test: 0}
models:
  one: {backend: scripted, price: {input: 10, output: 20}, cache: {sampled: true}}
agents:
  ada: {model: one, max_tokens: 40}
  bo: {model: one, max_tokens: 40}
protocol: {name: society, rounds: 2}
cast: {generator: [ada, bo]}
run: {num_arenas: 2}
"""


def test_a_run_that_was_held_before_needs_no_money(local_ray: Any, tmp_path: Path) -> None:
    (tmp_path / "society.yaml").write_text(RECIPE)
    cache = f"models.one.cache.path={tmp_path / 'kept'}"

    def run(name: str, *overrides: str) -> tuple[dict[str, Any], dict[str, list[str]]]:
        outcome = run_here(tmp_path / "society.yaml", tmp_path / name, cache, *overrides)
        debates = RunOnDisk(tmp_path / name).debates("debate")
        return outcome, {key: [node.reply.text for node in debate.utterances] for key, debate in debates.items()}

    paid, said = run("first")
    assert paid["cached_replies"] == 0 and paid["cost_usd"] > 0 and paid["replies"] == 80
    free, again = run("again", "run.budget.usd=0.000001")
    assert (free["cached_replies"], free["cost_usd"], free["tokens"]) == (80, 0.0, 0)
    assert free["accuracy"] == paid["accuracy"] and again == said
