"""A recipe with batches: what does not go together is said before anything starts, and prices are those of batches."""

from __future__ import annotations

import json
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from actors.limits.prices import Price
from engine.check import recipe_schema
from engine.config.recipe import Recipe
from engine.config.recipe_file import apply_override, build_recipe
from protocols.errors import ConfigError
from protocols.message import Usage

DATA: dict[str, Any] = {
    "name": "try-it",
    "tasks": {"source": "arithmetic", "level": "add30", "train": 4, "test": 4},
    "models": {"gpt": {"backend": "openai", "model": "gpt-4o-mini", "batch": {}}},
    "agents": {"ada": {"model": "gpt"}},
    "protocol": {"name": "society", "rounds": 2, "deadline_s": 100_000},
    "cast": {"generator": ["ada", "ada"]},
}


def built(*overrides: str) -> Recipe:
    data = json.loads(json.dumps(DATA))
    for override in overrides:
        apply_override(data, override)
    return build_recipe(data, where="r.yaml")


def test_batches_have_time() -> None:
    recipe = built()
    assert recipe.models["gpt"].limits.timeout_s == 86_400 + 7_200
    assert recipe.models["gpt"].limits.max_tries == 4
    assert built("models.gpt.batch.max_wait_s=3600").models["gpt"].limits.timeout_s == 3_600 + 7_200
    assert built("models.gpt={backend: openai, model: gpt-4o-mini}").models["gpt"].limits.timeout_s == 300
    jsonschema.validate(DATA, recipe_schema())


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "protocol.deadline_s=600",
            "ends a phase before a batch of models.gpt may end (limits.timeout_s=93600); set protocol.deadline_s >=",
        ),
        ("models.gpt.limits.hedge_after_s=5", "models.gpt.limits.hedge_after_s=5 is for asks that are sent one by one"),
        ("models.gpt.limits.tokens_per_minute=5", "models.gpt.limits.tokens_per_minute=5 is for asks that are sent"),
        ("models.gpt.limits.timeout_s=5", "models.gpt.limits.timeout_s=5 ends a try before its batch may end; set it"),
        ("models.gpt.batch.max_requests=50001", "batch.max_requests=50001 must be at most 50000"),
        ("models.gpt.batch.poll=5", "models.gpt.batch.poll=5 is not known; did you mean 'poll_s'?"),
        ("models.gpt.batch.max_open=0", "models.gpt.batch.max_open=0 must be a number from 1 to 10,000"),
        (
            "models.gpt.batch=yes",
            "models.gpt.batch=true must be a mapping of keys to values; its keys: max_requests, linger_s",
        ),
        ("models.gpt.replicas=2", "models.gpt.replicas=2: what is asked in batches has one ledger"),
        ("models.gpt.lora=true", "lora is for vLLM servers, which have no batches"),
        (
            "models.gpt={backend: azure, endpoint: 'https://r.openai.azure.com', deployment: d, batch: {}}",
            "batch is not for backend azure; use backend openai with base_url ENDPOINT/openai/v1",
        ),
        (
            "models.gpt={backend: anthropic, model: claude-haiku-4-5, batch: {max_requests: 100001}}",
            "batch.max_requests=100001 must be at most 100000",
        ),
        ("models.gpt={backend: scripted, batch: {}}", "models.gpt.batch={} is not known"),
    ],
)
def test_what_does_not_go_with_batches_is_one_sentence(override: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        built(override)
    assert told in str(caught.value)


def test_a_model_that_nobody_speaks_through_is_not_waited_for() -> None:
    built("models.other={backend: scripted}", "agents.ada.model=other", "protocol.deadline_s=600")


def test_batches_cost_what_the_list_says_of_them() -> None:
    price = built().price_of("gpt")
    alone = built("models.gpt={backend: openai, model: gpt-4o-mini}").price_of("gpt")
    assert price is not None and alone is not None
    assert (price.input, price.output) == (0.075, 0.3)  # half of 0.15 and 0.6 US dollars a million tokens
    assert price.cost_usd(Usage(1_000_000, 1_000_000, cached_tokens=400_000)) == pytest.approx(0.375)
    assert price.most_usd(1_000_000, 0) == pytest.approx(alone.most_usd(1_000_000, 0) / 2)


def test_a_price_of_one_s_own_has_the_discount_that_it_names() -> None:
    assert built("models.gpt.price={input: 2, output: 4}").price_of("gpt") == Price(input=2, output=4)
    own = built("models.gpt.price={input: 2, output: 4, long_input: 8, batch_discount: 0.25}").price_of("gpt")
    assert own == Price(input=1.5, output=3, long_input=6)
