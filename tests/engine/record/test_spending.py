"""Money in a run: prices and budgets in recipes, an arena that is told to stop, and what journals say was spent."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.limits.prices import Price
from engine.config.recipe_file import build_recipe, read_yaml
from engine.live.arena_stats import ArenaStats
from engine.record.folder import Manifest, RunFolder
from engine.record.spending import money, spent_so_far
from protocols.errors import ConfigError
from protocols.message import Ask, Attempt, Failure, Outcome, Reply, Stopped, Usage
from tests.engine.helpers import Host, assignment, make_arena, make_tasks, run_arena

RECIPE = Path(__file__).parents[3] / "recipes" / "scripted.yaml"
API: dict[str, Any] = {"backend": "openai", "model": "gpt-4o-mini", "api_key_env": "KEY"}


def built(model: dict[str, Any], **more: Any) -> Any:
    return build_recipe({**read_yaml(RECIPE), "models": {"simulated": model}, **more}, where="r.yaml")


def test_the_users_price_comes_before_the_list_and_changes_no_fingerprint() -> None:
    listed = built(API)
    own = built(API, prices={"gpt-4o-mini": {"input": 1, "output": 2}}, run={"budget": {"usd": 3}})
    nearest = built({**API, "price": {"input": 5, "output": 6}}, prices={"gpt-4o-mini": {"input": 1, "output": 2}})
    assert listed.price_of("simulated").input == 0.15
    assert own.price_of("simulated") == Price(input=1, output=2)
    assert nearest.price_of("simulated") == Price(input=5, output=6)
    assert listed.fingerprint == own.fingerprint == nearest.fingerprint
    assert build_recipe(read_yaml(RECIPE), where="r").price_of("simulated") is None  # a simulation is free


@pytest.mark.parametrize(
    ("model", "budget", "said"),
    [
        ({**API, "model": "unheard-of"}, {"usd": 5}, "the price of models.simulated ('unheard-of') is not in the list"),
        ({**API, "omit": ["max_tokens"]}, {"usd": 5}, "leave max_tokens out of them"),
        ({**API, "extra_body": {"max_completion_tokens": 9}}, {"tokens": 5}, "leave max_tokens out of them"),
        (API, {"usd": -5}, "run.budget.usd=-5 must be a number from 0 up"),
        (API, {"euro": 5}, "euro"),
        ({**API, "price": {"input": 1}}, {}, "models.simulated.price.output is missing"),
    ],
)
def test_a_budget_that_could_not_be_kept_is_refused(model: dict[str, Any], budget: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        built(model, run={"budget": budget})
    assert said in str(error.value)


def test_a_price_of_nothing_and_a_budget_of_tokens_need_no_list() -> None:
    free = built({**API, "model": "mine", "price": {"input": 0, "output": 0}}, run={"budget": {"usd": 5}})
    assert free.price_of("simulated") == Price(input=0, output=0)
    assert built({**API, "model": "mine"}, run={"budget": {"tokens": 5}}).run.budget.tokens == 5


@pytest.mark.asyncio
async def test_an_arena_that_is_told_to_stop_says_so_and_loses_nothing(tmp_path: Path) -> None:
    host = Host()
    arena = make_arena(tmp_path / "a.sqlite", host)
    await arena.recover()
    arena.open([assignment(task) for task in make_tasks(8)])
    async with asyncio.timeout(10):
        while not host.asked:
            await arena.collect(0.01)
    arena.deliver(msgspec.msgpack.encode([Stopped("h", "paused: enough"), Stopped("g", "later")]))
    stats = ArenaStats()
    async with asyncio.timeout(10):
        while not stats.paused:
            _, stats = await arena.collect(5.0)
        assert (stats.paused, stats.error) == ("paused: enough", "")
        host._left = 0  # nothing more comes
        await arena.settle()
    await arena.close()
    finished, _ = await run_arena(tmp_path / "a.sqlite", make_tasks(8), Host())
    untouched, _ = await run_arena(tmp_path / "b.sqlite", make_tasks(8), Host())
    assert {key: bool(item.set_aside) for key, item in finished.items()} == {
        key: bool(item.set_aside) for key, item in untouched.items()
    }


def priced(ask: Ask) -> Outcome:
    """Every ask costs 0.25 for the reply and 1.0 for a try before it; cy fails after one try that may be billed."""
    attempts = (Attempt("timeout", "slow", 1.0, 1.0, 100),)
    if ask.agent == "cy":
        return Failure(ask_id=ask.id, kind="timeout", reason="slow", attempts=attempts)
    return Reply(
        ask_id=ask.id, text=r"\boxed{1}", model="m", usage=Usage(6, 4), attempts=attempts, tries=2, cost_usd=0.25
    )


@pytest.mark.asyncio
async def test_journals_tell_what_was_spent_failed_tries_and_all(tmp_path: Path) -> None:
    manifest = Manifest(id="r", kind="run", name="r", fingerprint="f", num_arenas=1, recipe={}, recipe_path="")
    folder = RunFolder.create(tmp_path / "run", manifest)
    (path,) = folder.journals("debate")
    path.parent.mkdir(parents=True)
    assert spent_so_far(folder) == (0.0, 0)
    host = Host(priced)
    await run_arena(path, make_tasks(3), host)
    by_agent = {name: sum(count for ask, count in host.asked.items() if ask.endswith(f".{name}")) for name in "012"}
    replied, failed = by_agent["0"] + by_agent["1"], by_agent["2"]
    assert replied > 0 and failed > 0
    assert spent_so_far(folder) == (replied * 1.25 + failed * 1.0, replied * 110 + failed * 100)
    found = money(folder, {"ada": "api.example", "bo": "api.example", "cy": "vllm"})
    assert found["cost_usd"] == pytest.approx(replied * 1.25 + failed)
    share = {"cost_usd": by_agent["0"] * 1.25, "tokens": by_agent["0"] * 110, "replies": by_agent["0"]}
    assert found["spending"]["by_agent"] == {"ada": share, "bo": share}
    assert found["spending"]["by_model"]["m"]["replies"] == replied
    both = {key: 2 * value for key, value in share.items()}
    assert found["spending"]["by_provider"] == {"api.example": both}  # what failed is in the totals alone
    mean, dearest = found["spending"]["by_debate"].values()
    assert mean == {"cost_usd": replied * 1.25 / 3, "tokens": replied * 110 / 3, "replies": replied / 3}
    assert dearest["replies"] == replied // 3
    folder.release()
