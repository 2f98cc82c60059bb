"""Tree-DPO from a run's record: on top of the student's own adapter, kept with its parent, and why it cannot begin."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.record.folder import RunFolder
from tests.engine.command import done, refused
from tests.engine.learning.test_preferences import RECIPE, recorded
from tests.trainers.conftest import tiny_model
from trainers.record.registry import Registry, file_hash, weights_hash
from trainers.record.row_file import read_rows
from trainers.selection.preference_row import Preference

__all__ = ["tiny_model"]


def finished(path: Path, train: dict[str, Any], **sections: Any) -> RunFolder:
    folder = recorded(path, RECIPE | {"train": RECIPE["train"] | {"label": "gold"} | train} | sections)
    folder.manifest.finished_at = 1.0
    folder.save()
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("default")
def test_a_student_taught_and_then_shown_what_is_better(tmp_path: Path, tiny_model: Path, local_ray: Any) -> None:
    folder = finished(
        tmp_path / "run",
        {"base_model": str(tiny_model), "tree": {"root": "question"}},
        sft={"rank": 4, "epochs": 1, "batch_size": 4},
        tree_dpo={"learning_rate": 1e-2, "epochs": 4, "token_budget": 4096},
    )
    run = str(folder.path)
    assert "'s' has no adapter" in refused("train", run, "--preferences")
    taught = done("train", run)
    assert taught["rows"] == {"s": 9}  # the teachers' right answers of three rounds, by hand
    shown = done("train", run, "--preferences", "tree_dpo.beta=0.5")
    assert shown["adapters"] == ["s@r-v2"] and shown["warnings"] == []
    assert (shown["rows"], shown["supervised_rows"]) == ({"s": 11}, 9)  # right over wrong answers, round by round
    before, after = shown["margin"]["s"]
    assert before == pytest.approx(0.0, abs=1e-3) and after > 0.01
    registry = Registry(folder.path / "adapters")
    first, second = registry.list()
    assert second.parent == first.name and second.rule == "same_round" and second.rows == 11
    assert first.checksum != second.checksum == file_hash(registry.folder_of(second) / "adapter_model.safetensors")
    rows = list(read_rows(folder.path / "train" / "preferences-2" / "rows", "s", Preference))
    assert len(rows) == 11 and len({row.prompt for row in rows}) == 1


def test_what_stands_in_its_way_is_said(tmp_path: Path, tiny_model: Path) -> None:
    folder = recorded(tmp_path / "open", {"train": {"base_model": str(tiny_model)}})
    assert "is not finished" in refused("train", str(folder.path), "--preferences")
    folder = finished(tmp_path / "run", {"base_model": str(tiny_model), "label": "consensus"})
    assert "no round of its 1 debates has both" in refused("train", str(folder.path), "--preferences")
    text = refused("train", str(folder.path), "--preferences", "sft.rank=4")
    assert "takes train.* and tree_dpo.* alone" in text
    assert "tree_dpo.* goes with --preferences" in refused("train", str(folder.path), "tree_dpo.beta=1")


def test_nothing_is_learned_on_top_of_a_whole_model(tmp_path: Path, tiny_model: Path) -> None:
    folder = finished(tmp_path / "run", {"base_model": str(tiny_model)})
    model = folder.path / "adapters" / "s" / "v1"
    shutil.copytree(tiny_model, model)
    Registry(folder.path / "adapters").add(
        "s@r-v1",
        model,
        base_model=str(tiny_model),
        base_hash=weights_hash(tiny_model),
        data_hash="d" * 64,
        rule="teacher",
        rows=9,
        recipe_hash="r" * 64,
        created_at=1.0,
        whole=True,
    )
    text = refused("train", str(folder.path), "--preferences")
    assert (
        f"preferences are learned on top of an adapter; a recipe speaks with it as models.NAME.model: {model}" in text
    )
