"""Preference trees from a run's record, counted by hand: an import's as its file has them, a run's packed anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from engine.cli import main
from engine.learning.preferences import RecordedTrees, train_settings
from engine.record.folder import Manifest, RunFolder
from engine.record.journal import CloseEntry, EventEntry, Journal
from protocols.graph import encode_debate
from protocols.machine import Opened
from tests.trainers.conftest import tiny_model
from tests.trainers.selection.test_retold import WORKED, reflected

__all__ = ["tiny_model"]

RECIPE: dict[str, Any] = {
    "name": "r",
    "tasks": {"source": "arithmetic", "train": 1, "test": 1},
    "models": {"m": {"backend": "scripted"}},
    "agents": {name: {"model": "m"} for name in ("t0", "t1", "t2", "s")},
    "protocol": {"name": "reflect"},
    "cast": {"teacher": ["t0", "t1", "t2"], "student": ["s"]},
    "train": {"rules": {"student": "teacher"}},
}


def recorded(path: Path, recipe: dict[str, Any]) -> RunFolder:
    debate = msgspec.structs.replace(reflected(*WORKED), id="debate/t")
    made: dict[str, Any] = {"kind": "run", "name": "r", "fingerprint": "f", "num_arenas": 1, "recipe_path": "r.yaml"}
    manifest = Manifest(id="r", recipe=recipe, **made)
    folder = RunFolder.create(path, manifest)
    (file,) = folder.journals("debate")
    file.parent.mkdir(parents=True)
    journal = Journal(file, fingerprint="f")
    opened = Opened(debate_id=debate.id, task=debate.task, seed=0)
    journal.commit([EventEntry(debate.id, 0, 0.0, opened), CloseEntry(debate.id, 0.0, encode_debate(debate))])
    journal.close()
    folder.release()
    return folder


def exported(folder: RunFolder, output: Path, *options: str) -> dict[str, Any]:
    arguments = ["export", "trl-tree", str(folder.path), "-o", str(output), "--json", *options]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.stdout)
    return told


def test_the_pairs_of_an_import_are_written_and_counted(tmp_path: Path) -> None:
    folder, out = recorded(tmp_path / "run", {"train": {"tree": {"pairing": "transition"}}}), tmp_path / "rows.jsonl"
    told = exported(folder, out, "--label", "gold")
    assert told["rows"] == 3
    assert told["amplification"] == {"distilled": 2, "supervised": 9, "pairs": 3, "preferences": 3, "factor": 6.0}
    first = json.loads(out.read_text().splitlines()[0])
    assert first["chosen"] == [{"role": "assistant", "content": "### Answer\n1.answer.1 adds up.\nFinal answer: 43"}]
    assert first["rejected"][0]["content"].endswith("Final answer: 44")


def test_by_consensus_debates_that_used_gold_have_no_trees(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", {})
    arguments = ["export", "trl-tree", str(folder.path), "-o", str(tmp_path / "rows.jsonl")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "no row follows" in result.output


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_runs_prompts_are_packed_by_the_tokens_of_the_model_that_learns(tmp_path: Path, tiny_model: Path) -> None:
    """A letter is a token here: each of the four answers of a round with its remarks needs a prompt of its own."""
    train = RECIPE["train"] | {
        "base_model": str(tiny_model),
        "tree": {"limits": {"block": 400, "cut": 200, "context": 100}},
    }
    folder = recorded(tmp_path / "run", RECIPE | {"train": train})
    told = exported(folder, tmp_path / "rows.jsonl", "--label", "gold")
    assert told["rows"] == 4 + 4 * 4 + 4 * 3
    assert told["amplification"]["factor"] == round((9 + 32) / 2, 2)
    trees = RecordedTrees(folder, train_settings(folder, "gold"))
    rows = trees.of(reflected(*WORKED))["s"]
    assert len({row.prompt for row in rows}) == 1 + 4 + 4 and trees.counted.pairs == 11
