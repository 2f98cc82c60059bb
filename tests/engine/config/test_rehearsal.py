"""Who would be shown an image, and what a check says where somebody could not see it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.check import check_recipe
from engine.config.named_protocol import find_protocol
from engine.config.recipe import Recipe
from engine.config.recipe_file import build_recipe, load_recipe
from engine.config.rehearsal import agents_shown_images, rehearse
from engine.data.tasks import load_split
from protocols.catalogue import PROTOCOLS
from protocols.errors import ConfigError
from protocols.message import ImagePart
from protocols.task import Task
from tests.engine.data.test_media import png

RECIPES = sorted((Path(__file__).resolve().parents[3] / "recipes").glob("*.yaml"))
PICTURED = Task(id="t", question="What is 24 + 19?", gold=("43",), images=(ImagePart(sha256="0" * 64),))
SEEING, BLIND = {"backend": "scripted"}, {"backend": "transformers", "model": "embedded"}
DIALECTIC: dict[str, Any] = {
    "name": "pictures",
    "tasks": {"source": "file", "path": "tasks.jsonl", "images": "image", "train": 1, "only": "train"},
    "models": {"sees": SEEING, "reads": BLIND},
    "agents": {name: {"model": "sees"} for name in ("ada", "bo", "judge", "sum", "con")},
    "protocol": {"name": "dialectic", "rounds": 2},
    "cast": {"debater": ["ada", "bo"], "judge": ["judge"], "summariser": ["sum"], "condenser": ["con"]},
}


def recipe(*blind: str, **protocol: Any) -> dict[str, Any]:
    agents = DIALECTIC["agents"] | {name: {"model": "reads"} for name in blind}
    return DIALECTIC | {"agents": agents, "protocol": DIALECTIC["protocol"] | protocol}


def read(data: dict[str, Any]) -> Recipe:
    return build_recipe(data | {"tasks": {"source": "arithmetic"}}, where="r")


def test_whoever_is_shown_an_image_in_any_phase_is_found() -> None:
    assert agents_shown_images(read(recipe()), PICTURED) == ["ada", "bo", "con"]
    assert agents_shown_images(read(recipe(images="omit")), PICTURED) == []
    assert agents_shown_images(read(recipe()), Task(id="t", question="What is 24 + 19?", gold=("43",))) == []


def test_a_rehearsal_answers_right_and_wrong_in_turns() -> None:
    """The protocol in which the right criticise the wrong comes to that."""
    (role,) = [role for role, part in PROTOCOLS["reflect"].ROLES.items() if part.least]
    built = read(DIALECTIC | {"protocol": {"name": "reflect"}, "cast": {role: ["ada", "bo"]}})
    machine = PROTOCOLS["reflect"](built.settings, built.players, built.prompts)
    steps = {ask.id.partition("#")[2].split(".")[1] for ask in rehearse(machine, PICTURED)}
    assert {"answer", "critique", "reflect"} <= steps


@pytest.mark.parametrize("blind", ["ada", "con"])
def test_a_check_names_the_agent_the_model_and_the_way_out(tmp_path: Path, blind: str) -> None:
    image = "data:image/png;base64," + base64.b64encode(png(300, 300)).decode()
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"question": "How many?", "answer": "3", "image": image}))
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe(blind)), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        check_recipe(path, [], None)
    assert f"{blind} is shown images, as task " in str(error.value)
    assert str(error.value).endswith(
        f"but models.reads reads only text; set protocol.images: omit, or give {blind} a model that sees"
    )
    assert check_recipe(path, [f"agents.{blind}.model=sees"], None)["train"] == 1
    assert check_recipe(path, ["protocol.images=omit"], None)["train"] == 1


@pytest.mark.parametrize("backend", ["vllm", "transformers"])
def test_a_local_model_sees_as_its_own_config_or_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Nothing is loaded: a folder's config tells; of a name on the hub nothing is known before it is fetched."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    image = "data:image/png;base64," + base64.b64encode(png(300, 300)).decode()
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"question": "How many?", "answer": "3", "image": image}))
    for name, config in (("sees", {"vision_config": {}}), ("reads", {"vocab_size": 9})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe("ada")), encoding="utf-8")

    def check(model: str, *more: str) -> None:
        named = [f"models.reads.backend={backend}", f"models.reads.model={model}"]
        check_recipe(path, [*named, *more], None)

    check(f"{tmp_path}/sees")
    check("some/vision-model", "models.reads.images=true")
    for blind in ([f"{tmp_path}/reads"], ["some/vision-model"], [f"{tmp_path}/sees", "models.reads.images=false"]):
        with pytest.raises(ConfigError, match=r"ada is shown .*; set models\.reads\.images: true if that model sees, "):
            check(*blind)


def test_a_judge_who_sees_nothing_may_be_blind(tmp_path: Path) -> None:
    assert "judge" not in agents_shown_images(read(recipe("judge", "sum")), PICTURED)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_can_be_rehearsed(path: Path) -> None:
    shipped = load_recipe(path)
    machine = find_protocol(shipped.protocol)(shipped.settings, shipped.players, shipped.prompts)
    task = load_split(shipped.tasks).train[0]
    asks = rehearse(machine, task)
    assert machine.closed
    assert {ask.agent for ask in asks} <= set(shipped.agents)
    assert len(asks) >= len(next(iter(shipped.cast.values())))
