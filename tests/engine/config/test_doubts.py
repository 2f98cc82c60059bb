"""What looks like a slip is told, and what is meant so is not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from engine.config.doubts import doubts
from engine.config.recipe_file import build_recipe
from engine.data.tasks import load_split
from tests.engine.config.test_recipe import GOOD

ROOT = Path(__file__).resolve().parents[3]


def told(data: dict[str, Any]) -> list[str]:
    recipe = build_recipe(data, where="r")
    return doubts(recipe, load_split(recipe.tasks))


def of_file(tmp_path: Path, rows: list[dict[str, Any]], **tasks: Any) -> dict[str, Any]:
    path = tmp_path / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return GOOD | {"tasks": {"source": "file", "path": str(path), "test": 1} | tasks}


def test_a_recipe_that_says_what_it_means_raises_none() -> None:
    assert told(GOOD) == []


def test_who_is_never_asked_is_named() -> None:
    data = copy.deepcopy(GOOD)
    data["agents"]["idle"] = {"model": next(iter(data["models"]))}
    data["models"]["spare"] = {"backend": "scripted"}
    assert told(data) == [
        "agents.idle plays no role of cast, so it is never asked",
        "models.spare is no agent's, so it is not started",
    ]


def test_tasks_without_answers_are_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "1 + 1?", "answer": 2},
        {"question": "1 + 2?"},
        {"question": "2 + 2?", "answer": ""},
    ]
    assert told(of_file(tmp_path, rows)) == [
        "2 of 3 tasks have no answer (tasks.answer='answer'): they are debated, and not graded"
    ]


@pytest.mark.parametrize(
    ("answer_format", "prompts", "says"),
    [
        ("text", "society.number.en", ["society.number.en asks for a number; set protocol.prompts: society.text.en"]),
        ("bracket", "society.math.en", ["asks for mathematics; set protocol.prompts to a .toml file of yours"]),
        ("text", "society.text.en", []),
        ("text", "society.cooperative.en", []),  # it may say anything
    ],
)
def test_a_prompt_that_asks_for_something_else_is_told(
    tmp_path: Path, answer_format: str, prompts: str, says: list[str]
) -> None:
    rows = [{"question": "Capital of France?", "answer": "Paris"}, {"question": "Of Italy?", "answer": "Rome"}]
    data = of_file(tmp_path, rows, answer_format=answer_format)
    data["protocol"] = {"name": "society", "prompts": prompts}
    found = told(data)
    assert len(found) == len(says) and all(said in sentence for said, sentence in zip(says, found, strict=True))


def test_a_model_that_is_no_folder_and_gpus_that_do_not_go_with_the_engine_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.config.doubts.runs_on_cpu", lambda: True)
    name = next(iter(GOOD["models"]))
    found = told(GOOD | {"models": {name: {"backend": "vllm", "model": "models/Qwen", "num_gpus": 1}}})
    assert "is no folder here, so it is taken for a name on the Hugging Face hub" in found[0]
    assert "num_gpus=1, and the vLLM that is installed here is the one for CPUs" in found[1]
    monkeypatch.setattr("engine.config.doubts.runs_on_cpu", lambda: False)
    (only,) = told(GOOD | {"models": {name: {"backend": "vllm", "model": "embedded"}}})
    assert only == (
        f"models.{name}.num_gpus is 0, so it is shown no GPU, and the vLLM that is installed here needs one; "
        f"set models.{name}.num_gpus: 1"
    )
