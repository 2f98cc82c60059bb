"""The model to train: what the learners speak through, or what the recipe names."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.base_model import base_model_of
from engine.recipe import load_recipe

SCRIPTED = Path(__file__).parents[2] / "recipes" / "scripted.yaml"


@pytest.mark.parametrize(("named", "found"), [("embedded", "/unpacked"), ("/models/base", "/models/base")])
def test_a_base_that_is_named_is_its_folder(named: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.embedded.embedded_model_path", lambda tell=None: Path("/unpacked"))
    assert base_model_of(load_recipe(SCRIPTED, [f"train.base_model={named}"])) == found
