"""The dry run, and a schema that agrees with what the recipe itself accepts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from engine.check import check_recipe, recipe_schema
from engine.config.recipe_file import build_recipe
from engine.config.refusals import _ELSEWHERE
from protocols.errors import ConfigError
from tests.engine.config.test_recipe import GOOD

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = recipe_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(json.loads(json.dumps(schema)))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_schema_takes_every_recipe_that_we_ship(validator: Any, path: Path) -> None:
    validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("", "colour", "red"),
        ("", "seed", 1.5),
        ("tasks", "trian", 5),
        ("tasks", "source", "files"),
        ("protocol", "rounds", "two"),
        ("protocol", "name", "societies"),
        ("loop", "init_from", "scratch"),
        ("cast", "generator", "ada"),
        ("sft", "schedule", "cosin"),
        ("run", "sync", "never"),
    ],
)
def test_the_schema_and_the_recipe_refuse_the_same(validator: Any, section: str, key: str, value: object) -> None:
    data = json.loads(json.dumps(GOOD))
    validator.validate(data)
    (data.setdefault(section, {}) if section else data)[key] = value
    assert not validator.is_valid(data)
    with pytest.raises(ConfigError):
        build_recipe(data, where="r")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_schema_takes_every_example(validator: Any, path: Path) -> None:
    validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["api-openai", "mixed"])
def test_examples_that_pay_want_nothing_but_their_keys(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(variable, "a-key")
    assert check_recipe(ROOT / "examples" / f"{name}.yaml", [], limit=1)["agents"] == 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("agents.ada.max_tokens=2048", r"agents\.ada\.max_tokens=2048 leaves no room .*max_model_len=2048"),
        ("train.base_model=/nowhere", r"train\.base_model='/nowhere': there is no such folder"),
        ("sft.method=half", r"sft\.method='half' is not known; use one of: full, lora, qlora"),
        ("train.gpus_per_lane=2", r"train\.gpus_per_lane=2: an adapter is trained on one GPU, and sft\.method: full"),
        ("sft.batching=paked", r"sft\.batching='paked' is not known"),
    ],
)
def test_what_could_never_work_is_found_before_it_starts(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_recipe(ROOT / "recipes" / "society.yaml", [override], limit=None)


def test_keys_that_errors_send_people_to_are_there() -> None:
    schema = recipe_schema()
    for place in _ELSEWHERE.values():
        section, key = place.split(".")
        found = schema["properties"][section]
        kinds = found["oneOf"] if "oneOf" in found else [schema["$defs"][found["$ref"].rpartition("/")[2]]]
        assert any(key in kind.get("properties", {}) for kind in kinds), place


def test_a_check_says_what_a_run_would_do(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    found = check_recipe(path, ["protocol.rounds=3", "loop.iterations=2"], limit=3)
    assert (found["train"], found["test"], found["agents"], found["adapters"]) == (3, 3, 2, 4)
    assert found["calls"] == {"debating": 2 * 3 * 3, "evaluating": 2 * 3 * 3}
    assert found["loop"].startswith("train.agents speak through")  # simulated, so there is nothing to train
    assert check_recipe(path, ["train.base_model=embedded"], limit=3)["loop"] == "ready"
    summed = check_recipe(path, ["protocol.rounds=3", "protocol.summarize=true", "cast.summariser=[ada]"], limit=1)
    assert summed["calls"]["debating"] == 2 * 3 + 2 * 2  # a summary for each agent before each later round


def test_a_model_folder_that_is_not_there_is_found_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(GOOD | {"models": {"simulated": {"backend": "vllm", "model": "./none"}}}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(ConfigError, match=r"models.simulated.model='./none': there is no such folder"):
        check_recipe(path, [], None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"models.simulated needs vLLM, which is not installed; install moot with"):
        check_recipe(path, [], None)


def test_a_base_in_four_bits_needs_a_gpu_and_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["sft.method=qlora", "sft.precision=bfloat16"]
    with pytest.raises(ConfigError, match=r"override: sft\.method=qlora trains on a GPU, and train\.gpus_per_lane=0"):
        check_recipe(ROOT / "recipes" / "society.yaml", wanted, limit=None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    with pytest.raises(
        ConfigError, match=r"needs bitsandbytes, .*; run pip install 'moot\[qlora\]', or set sft\.method"
    ):
        check_recipe(ROOT / "recipes" / "society.yaml", [*wanted, "train.gpus_per_lane=1"], limit=None)
