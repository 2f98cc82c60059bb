"""Whose model a loop may start again with other weights, and why not: said before anything starts."""

from __future__ import annotations

import copy

import pytest

from engine.config.recipe import Recipe
from engine.config.recipe_file import apply_override, build_recipe
from engine.config.servable import check_servable
from engine.debates.colocate import lane_of
from protocols.errors import ConfigError
from tests.engine.config.test_recipe import GOOD, Data

OWN: Data = {
    "models": {"own": {"backend": "transformers", "model": "m"}, "other": {"backend": "scripted"}},
    "agents": {"ada": {"model": "own"}, "bo": {"model": "other"}},
    "train": {"agents": ["ada"]},
    "sft": {"method": "full"},
}


def built(*overrides: str) -> Recipe:
    data = copy.deepcopy(GOOD | OWN)
    for override in overrides:
        apply_override(data, override)
    return build_recipe(data, where="r.yaml")


def test_an_agent_with_a_model_of_its_own_may_have_all_of_its_weights() -> None:
    check_servable(built())
    check_servable(built("run.colocate=release"))
    check_servable(built("sft.method=lora", "agents.bo.model=own", "models.own.max_adapters=1"))
    two = built("models.second={backend: transformers, model: m}", "agents.bo.model=second", "train.agents=[ada, bo]")
    check_servable(two)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "agents.bo.model=own",
            r"cannot each have .* and ada shares models\.own with bo; set sft\.method: lora, or give",
        ),
        (
            "train.agents=[bo]",
            r"models\.other \(scripted\) cannot be started with the weights that bo learned; give it",
        ),
        ("loop.preferences=true", r"preferences are learned on top of an adapter; set loop\.preferences: false"),
    ],
)
def test_where_it_cannot_be_it_is_said(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_servable(built(override))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            (),
            r"models\.own \(transformers\) serves no adapters, and ada learns through it; set models\.own\.max_ad.*=1$",
        ),
        (
            ("models.own.max_adapters=1", "agents.bo.model=own", "train.agents=[ada, bo]"),
            r"serves at most 1 adapters, and ada, bo learn through it; set models\.own\.max_adapters=2$",
        ),
        (("models.own={backend: vllm, model: m}",), r"models\.own \(vllm\) serves no adapters"),
        (
            ("models.own={backend: vllm, model: m, max_adapters: 1}", "sft.rank=64"),
            r"sft\.rank=64 is above models\.own\.max_rank=16, .*; set models\.own\.max_rank=64$",
        ),
        (
            ("models.own={backend: openai, model: m}",),
            r"\(openai\) serves no adapters, .*models\.own\.finetune, or set lora",
        ),
        (
            ("models.own={backend: human}",),
            r"\(human\) serves no adapters, .* a model of backend vllm or transformers$",
        ),
    ],
)
def test_adapters_that_could_not_be_served_are_not_trained(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_servable(built("sft.method=lora", *overrides))


def test_a_server_of_ones_own_is_not_told_to_train() -> None:
    own = "models.own={backend: openai, model: m, base_url: 'http://localhost:8000/v1'}"
    says = r"set lora: true for a vLLM server, with train.base_model: ./FOLDER, or train what is on record afterwards"
    with pytest.raises(ConfigError, match=says):
        check_servable(built("sft.method=lora", own, "agents.bo.model=own", "train.agents=[bo]"))


def test_a_service_that_takes_no_adapters_is_not_told_of_servers() -> None:
    own = "models.own={backend: anthropic, model: m}"
    with pytest.raises(
        ConfigError, match=r"serves no adapters, .*; give them a model of backend vllm or transformers$"
    ):
        check_servable(built("sft.method=lora", own, "agents.bo.model=own", "train.agents=[bo]"))


def test_what_a_model_takes_is_trained() -> None:
    check_servable(built("sft.method=lora", "train.agents=[bo]"))  # simulated
    for model in (
        "{backend: vllm, model: m, max_adapters: 1}",
        "{backend: openai, model: m, lora: true, base_url: 'http://h/v1'}",
    ):
        check_servable(built("sft.method=lora", f"models.own={model}", "agents.bo.model=own", "train.agents=[ada, bo]"))


def test_a_model_that_only_sleeps_keeps_its_weights() -> None:
    asleep = ["models.own={backend: vllm, model: m, num_gpus: 1}", "train.gpus_per_lane=1", "run.colocate=sleep"]
    with pytest.raises(
        ConfigError, match=r"a model that sleeps wakes up with the weights it had; set run\.colocate: rel"
    ):
        check_servable(built(*asleep))


def test_a_lane_takes_all_of_its_gpus() -> None:
    for gpus in (0, 1, 4):
        lane = lane_of(built(f"train.gpus_per_lane={gpus}"), [])
        assert lane is not None and lane.gpus == gpus
