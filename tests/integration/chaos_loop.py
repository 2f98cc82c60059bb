"""Loops that train while they debate, their training killed under them: what was learned from is learned from once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec

from tests.integration.chaos import Struck
from tests.integration.chaos_account import Account, Figures, Point
from tests.integration.command import Moot, RunOnDisk, timeless
from trainers.tuning.sft_settings import RESULT_NAME, SFTResult

STAGES = ("eval-0", "debate-1", "eval-1")
EPOCHS = 2
RECIPE = f"""
name: tiny
seed: 5
tasks: {{source: arithmetic, level: mixed10, train: 24, test: 3}}
models:
  simulated: {{backend: scripted, skill: 0.9, latency_s: 1.0, latency_sigma: 0.1, max_restarts: 50}}
agents:
  ada: {{model: simulated}}
  bo: {{model: simulated}}
  cy: {{model: simulated}}
protocol: {{name: society, rounds: 2}}
cast: {{generator: [ada, bo, cy]}}
train: {{base_model: BASE, min_support: 2, checkpoint_every: 1}}
sft: {{rank: 4, epochs: {EPOCHS}, batch_size: 4, max_length: 2048, learning_rate: 0.001}}
run: {{max_open: 4}}
"""


class LoopChaos:
    """See the module. Each loop is on a Ray of its own.

    Args:
        base_model: the folder of what is tuned.
    """

    def __init__(self, moot: Moot, base_model: Path) -> None:
        self._moot = moot
        (moot.folder / "tiny.yaml").write_text(RECIPE.replace("BASE", str(base_model)))
        self._whole: dict[str, Any] = {}

    def untouched(self) -> None:
        """The loop that all others must come to."""
        self._whole = _what_came_of(self._start("untouched-loop"))

    def run(self, name: str, points: Sequence[Point]) -> Account:
        """A loop that is struck at these points, to its end: on a fast machine it may come before the last of them.

        Its model counts no asks, so none are told; recovered is what has a living process of the killed kind again.
        """
        one = self._start(name)
        seconds: list[float] = []
        for point in takewhile(one.strike, points):
            one.until_up(point)
            seconds.append(time.time() - one.strikes[-1].at)
        found = _what_came_of(one)
        faults = [
            f"{name}: {key} is not as in the untouched loop"
            for key in found.keys() | self._whole.keys()
            if found.get(key) != self._whole.get(key)
        ]
        figures = [
            Figures(
                kind=strike.point.kind,
                run=name,
                in_flight=0,
                asked_again=0,
                resubmissions=strike.resubmissions,
                recovery_s=recovery_s,
            )
            for strike, recovery_s in zip(one.strikes, seconds, strict=True)
        ]
        return Account(figures, faults, missed=points[len(figures) :])

    def _start(self, name: str) -> Struck:
        # Adapters are named after the run's folder, which therefore has the same name each time.
        return Struck(self._moot, RunOnDisk(self._moot.folder / name / "loop"), ("loop", "tiny.yaml"), "debate-1")


def _what_came_of(one: Struck) -> dict[str, Any]:
    """Of a loop, once it is done: graphs, asks, adapters, and rows with how many of them were learned from."""
    assert one.end().outcome()["warnings"] == []
    found: dict[str, Any] = {"adapters": sorted(record["name"] for record in one.run.json("adapters/registry.json"))}
    for stage in STAGES:
        found[f"{stage}'s asks"] = sorted(one.run.outcomes(stage))
        found[f"{stage}'s notes"] = one.run.notes(stage)
        found[f"{stage}'s graphs"] = {key: timeless(debate) for key, debate in one.run.debates(stage).items()}
    for file in sorted(one.run.path.glob(f"adapters/*/v1/{RESULT_NAME}")):
        result = msgspec.json.decode(file.read_bytes(), type=SFTResult)
        assert result.rows > 0 and result.rows_seen == EPOCHS * result.rows, file
        found[f"the rows of {file.parts[-3]}"] = (result.rows, result.rows_seen, result.refused, result.steps)
    return found
