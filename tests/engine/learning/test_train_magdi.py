"""MAGDi's baseline from an import of its own files: one student, kept as any other adapter; and why it cannot begin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine.command import done, refused
from tests.engine.learning.test_preferences import RECIPE, recorded
from tests.protocols.formats.samples import magdi
from tests.trainers.conftest import tiny_model
from trainers.record.registry import Registry, file_hash
from trainers.record.row_file import read_rows
from trainers.selection.interaction import Interaction

__all__ = ["tiny_model"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "StrategyQA_1000.json").write_text(json.dumps(magdi()))
    done("import", "magdi", tmp_path / "StrategyQA_1000.json", "--run-dir", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("default")
def test_an_imports_debates_become_one_student(run: Path, tiny_model: Path, local_ray: Any) -> None:
    outcome = done(
        *("train", run, "--magdi", f"train.base_model={tiny_model}", "train.agents=[pupil]", "train.label=gold"),
        *("magdi.rank=4", "magdi.hidden=8", "magdi.epochs=3", "magdi.learning_rate=0.01", "train.threads=1"),
    )
    assert (outcome["adapters"], outcome["rows"], outcome["warnings"]) == (["pupil@run-v1"], {"pupil": 2}, [])
    # Three agents in two rounds, three answers of them right; then one right beside one unread, the third not there.
    assert (outcome["answers"], outcome["pairs"], outcome["refused"]) == (6 + 2, 3 + 1, 0)
    for name in ("language_loss", "node_loss", "margin_loss"):
        assert all(0.0 < loss < 10.0 for loss in outcome[name])
    rows = list(read_rows(run / "train" / "magdi-1" / "rows", "pupil", Interaction))
    assert [sum(row.right) for row in rows] == [3, 1] and rows[0].prompt[0].text == "Is it?"
    registry = Registry(run / "adapters")
    (record,) = registry.list()
    assert (record.rule, record.parent, record.rows) == ("magdi", None, 2)
    figures = ("steps", "final_loss", "final_language_loss", "final_node_loss", "final_margin_loss", "iteration")
    assert record.metrics.keys() == {*figures}
    folder = registry.folder_of(record)
    names = ["adapter_config.json", "adapter_model.safetensors", "training.json"]
    assert sorted(file.name for file in folder.iterdir()) == names
    assert record.checksum == file_hash(folder / "adapter_model.safetensors")


def test_what_stands_in_its_way_is_said(run: Path, tmp_path: Path) -> None:
    def said(*arguments: str, of: Path = run) -> str:
        text = refused("train", of, *arguments)
        assert not (of / "train").exists()
        return text

    one = ("--magdi", "train.agents=[pupil]")
    assert "bard, claude, gpt4 would learn; name the one in train.agents" in said("--magdi", "train.label=gold")
    assert "nobody would learn" in said("--magdi", "train.label=gold", "train.teachers=[generator]")
    text = said(*one, "train.min_support=9")
    assert "none of its 2 debates has an answer that is right by train.label=consensus; debate other" in text
    assert "train.base_model is empty" in said(*one)
    assert "takes train.* and magdi.* alone; tree_dpo.* goes with --preferences" in said(*one, "tree_dpo.beta=1")
    assert "takes train.* and sft.* alone; magdi.* goes with --magdi" in said("magdi.hidden=8")
    assert "hidden=0 must be at least 1" in said(*one, "magdi.hidden=0")
    assert "are two trainings; give one of them" in said("--magdi", "--preferences")
    unfinished = recorded(tmp_path / "open", RECIPE | {"magdi": {"hidden": 8}})
    assert "is not finished" in said(*one, of=unfinished.path)
