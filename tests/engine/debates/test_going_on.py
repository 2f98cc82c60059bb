"""Runs from their recipe to their results, taken up again and forked: all of a run but Ray."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from actors.models.scripted import ScriptedBackend
from engine import ctl
from engine.config.recipe import Recipe
from engine.config.recipe_file import load_recipe
from engine.debates.cluster import Cluster
from engine.fork import fork
from engine.live.progress import Progress
from engine.live.status import read_status
from engine.record.folder import RunFolder
from engine.record.journal import read_journal
from engine.run import create, evaluate_run, make_manifest, resume, start
from protocols.errors import ConfigError, PausedError, TerminatedError
from protocols.message import Ask
from tests.engine.config.test_recipe import GOOD
from tests.engine.in_process import InProcess

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    async def up(recipe: Recipe, **options: Any) -> InProcess:
        return await InProcess.up(recipe)

    monkeypatch.setattr(Cluster, "start", up)
    monkeypatch.setattr("engine.debates.shard.COLLECT_S", 0.01)
    monkeypatch.setattr("engine.debates.attendant.POLL_S", 0.005)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each ask came to the model."""
    counted: Counter[str] = Counter()
    generate = ScriptedBackend.generate

    async def counting(self: ScriptedBackend, ask: Ask, adapter: Any) -> Any:
        counted[ask.id] += 1
        return await generate(self, ask, adapter)

    monkeypatch.setattr(ScriptedBackend, "generate", counting)
    return counted


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(
        yaml.safe_dump(GOOD | {"tasks": GOOD["tasks"] | {"train": 12, "test": 0}, "run": {"sync": "normal"}})
    )
    return path


def run(recipe: Path, *overrides: str) -> tuple[Path, dict[str, Any]]:
    path = recipe.parent / "run"
    options = {"run_dir": path, "limit": None, "progress": Progress(live=False)}
    return path, start("run", recipe, overrides, **options)  # type: ignore[arg-type]  # of several kinds


def again(path: Path, *budget: str) -> dict[str, Any]:
    return resume(path, budget=budget, progress=Progress(live=False))


def debates(path: Path) -> dict[str, bytes | None]:
    return {item.debate_id: item.graph for item in read_journal(path / "journal/debate/arena-000.sqlite")}


def test_what_was_set_aside_is_debated_again_and_replaces_it_in_the_results(recipe: Path, asked: Counter[str]) -> None:
    path, first = run(recipe, "models.simulated.faults={refused: 0.75}")
    before = debates(path)
    assert first["set_aside"] > 1 and first["debates"] == 12 == len(before)
    status = read_status(path)
    assert status is not None and (status.state, status.closed, status.set_aside) == ("done", 12, first["set_aside"])
    task = status.aside[0].task
    num_asked = asked.total()

    nothing_left = {"state": "done already", "new_replies": 0, "hosts": {}, "wall_s": 0.0}
    assert again(path) == first | nothing_left and asked.total() == num_asked
    told = ctl.retry(path, ["all"])
    second = again(path)
    now = debates(path)
    assert set(now) == {*before, *told["debates"]} and all(now[name] == graph for name, graph in before.items())
    assert second["debates"] == 12 and second["set_aside"] < first["set_aside"]
    assert second["replies"] > first["replies"] and asked.total() > num_asked
    assert max(asked.values()) == 1
    for name, reason in RunFolder.open(path).manifest.done["debate"]["set_aside"]:
        assert name.startswith("debate~2/") and reason.startswith("set aside 2 times, the last time: ")
    assert f"debate~2/{task}" in now
    assert msgspec.json.decode((path / "results.json").read_bytes())["set_aside"] == second["set_aside"]


def test_a_run_that_is_told_to_end_is_resumed_and_asks_nothing_twice(recipe: Path, asked: Counter[str]) -> None:
    slow = ("models.simulated.latency_s=0.05", "models.simulated.limits={max_concurrency: 2}", "tasks.train=6")
    killer = threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGTERM))
    killer.start()
    with pytest.raises(TerminatedError, match=rf"go on with `moot resume {recipe.parent / 'run'}`"):
        run(recipe, *slow)
    path = recipe.parent / "run"
    done, status = asked.total(), read_status(path)
    assert 0 < done < 24 and status is not None and status.state == "stopped" and "SIGTERM" in status.reason
    assert ctl.set_values(path, ["simulated.concurrency=50"])["changed"]
    outcome = again(path)
    assert outcome["debates"] == 6 and asked.total() == 24 and max(asked.values()) == 1


def test_a_budget_that_is_spent_is_raised_on_resuming(recipe: Path, asked: Counter[str]) -> None:
    with pytest.raises(PausedError, match="budget of 2500 tokens spent"):
        run(recipe, "run.budget.tokens=2500")
    path = recipe.parent / "run"
    assert again(path, "tokens=9000000")["debates"] == 12 and max(asked.values()) == 1
    assert [str(change) for change in RunFolder.open(path).manifest.changes] == ["run.budget.tokens: 2500 -> 9000000"]


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("5", r"^--budget '5' must be usd=Y or tokens=N, for instance usd=10$"),
        ("usd", r"^--budget 'usd' must be usd=Y or tokens=N"),
        ("eur=5", r"^--budget 'eur=5' must be usd=Y or tokens=N"),
        ("usd=[", r"^--budget 'usd=\[': the value is not valid YAML"),
        ("usd=-5", r"^--budget: run\.budget\.usd=-5 must be a number from 0 up$"),
        ("usd=", r"^--budget: run\.budget\.usd is empty; it must be a number$"),
    ],
)
def test_a_budget_that_cannot_be_is_told_of_its_option(tmp_path: Path, budget: str, said: str) -> None:
    path = Path(__file__).parents[3] / "recipes" / "scripted.yaml"
    manifest = make_manifest("r", "run", load_recipe(path), path, None)
    create(tmp_path / "run", manifest).release()
    with pytest.raises(ConfigError, match=said):
        again(tmp_path / "run", budget)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("protocol=baseline", "override: protocol='baseline' must be a mapping of keys to values: protocol: {name:"),
        ("agents.ada.temperature=-1", "override: agents.ada.temperature=-1 must be a number from 0 to 10"),
    ],
)
def test_what_a_run_is_evaluated_or_forked_with_is_told_of_the_override(recipe: Path, override: str, said: str) -> None:
    path, _ = run(recipe, "train={rules: {generator: generator}}")
    progress = Progress(live=False)
    with pytest.raises(ConfigError, match=f"^{said}"):
        evaluate_run(path, [override], progress=progress)
    with pytest.raises(ConfigError, match=f"^{said}"):
        fork(path, [override], run_dir=recipe.parent / "new", progress=progress)


def test_an_edited_recipe_is_refused_and_forked(recipe: Path, asked: Counter[str]) -> None:
    path, first = run(recipe)
    num_asked = asked.total()
    edited = yaml.safe_load((path / "recipe.yaml").read_text()) | {"sft": {"rank": 4}}
    (path / "recipe.yaml").write_text(yaml.safe_dump(edited))
    with pytest.raises(ConfigError, match=r'\(sft: not set -> \{"rank":4\}\)'):
        again(path)
    new = recipe.parent / "new"
    outcome = fork(path, ["tasks.train=15"], run_dir=new, progress=Progress(live=False))
    assert outcome["debates"] == 15 and outcome["new_replies"] == asked.total() - num_asked == 12
    manifest = RunFolder.open(new).manifest
    assert manifest.forked_from == str(path) and manifest.recipe["sft"] == {"rank": 4}
    assert debates(path).items() <= debates(new).items() and max(asked.values()) == 1
    other = fork(path, ["protocol.rounds=3"], run_dir=recipe.parent / "other", progress=Progress(live=False))
    assert other["new_replies"] == other["replies"] == 72
    with pytest.raises(ConfigError, match="holds a run already"):
        fork(path, [], run_dir=new, progress=Progress(live=False))
    assert first["replies"] == 48
