"""The model to train: what the learners speak through, or what the recipe names."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config.base_model import base_model_of, check_base
from engine.config.recipe_file import load_recipe
from protocols.errors import ConfigError

SCRIPTED = Path(__file__).parents[3] / "recipes" / "scripted.yaml"


@pytest.mark.parametrize(("named", "found"), [("embedded", "/unpacked"), ("/models/base", "/models/base")])
def test_a_base_that_is_named_is_its_folder(named: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.local.embedded.embedded_model_path", lambda tell=None: Path("/unpacked"))
    assert base_model_of(load_recipe(SCRIPTED, [f"train.base_model={named}"])) == found


def test_a_loop_trains_files_that_are_there(tmp_path: Path) -> None:
    check_base(load_recipe(SCRIPTED, ["train.base_model=embedded"]))
    check_base(load_recipe(SCRIPTED, [f"train.base_model={tmp_path}"]))
    with pytest.raises(
        ConfigError, match=r"the model to train is 'org/name', .* `hf download org/name --local-dir FOLDER`"
    ):
        check_base(load_recipe(SCRIPTED, ["train.base_model=org/name"]))
    server = "models={simulated: {backend: openai, model: qwen, base_url: 'http://localhost:8000/v1', lora: true}}"
    with pytest.raises(ConfigError, match=r"learns is 'qwen' of a server; set train.base_model to the folder of what"):
        check_base(load_recipe(SCRIPTED, [server]))
