"""Adapters are entered once, found again with their files unchanged, and never served on another base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocols.errors import TrainerError
from trainers.record.registry import FILE_NAME, AdapterRecord, Registry, adapter_name, parse_name, weights_hash


def _adapter(folder: Path, content: str = "weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(content)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def _add(registry: Registry, name: str, path: Path, **changes: Any) -> AdapterRecord:
    fields: dict[str, Any] = {
        "base_model": "tiny",
        "base_hash": "b" * 64,
        "data_hash": "d" * 64,
        "rule": "generator",
        "rows": 3,
        "recipe_hash": "r" * 64,
        "created_at": 1.5,
        "metrics": {"loss": 0.5},
    }
    return registry.add(name, path, **(fields | changes))


def test_what_was_added_is_there_after_reopening(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    first = _add(registry, "ada@r-v1", _adapter(tmp_path / "a1"))
    second = _add(registry, "ada@r-v2", _adapter(tmp_path / "a2", "more"), parent="ada@r-v1")
    _add(registry, "bo@r-v1", _adapter(tmp_path / "b1"))
    again = Registry(tmp_path)
    assert [record.name for record in again.list()] == ["ada@r-v1", "ada@r-v2", "bo@r-v1"]
    assert again.latest("ada") == second
    assert again.latest("nobody") is None
    assert again.lineage("ada@r-v2") == (second, first)
    assert (second.agent, second.version, second.path) == ("ada", 2, "a2")
    assert first.checksum == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"  # by sha256sum


def test_a_run_can_be_moved(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "run")
    _add(registry, "ada@r-v1", _adapter(tmp_path / "run" / "adapters" / "ada"))
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = Registry(tmp_path / "moved")
    assert moved.folder_of(moved.get("ada@r-v1")) == tmp_path / "moved" / "adapters" / "ada"


def test_a_name_is_never_used_twice(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    _add(registry, "ada@r-v1", _adapter(tmp_path / "a1"))
    with pytest.raises(TrainerError, match="'ada@r-v1' is registered already; a name is never used twice"):
        _add(Registry(tmp_path), "ada@r-v1", _adapter(tmp_path / "other"))


def test_changed_and_missing_files_are_noticed(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    with pytest.raises(TrainerError, match=r"adapter_model.safetensors is missing; train it again"):
        _add(registry, "ada@r-v1", tmp_path / "nowhere")
    folder = _adapter(tmp_path / "a1")
    _add(registry, "ada@r-v1", folder)
    (folder / "adapter_model.safetensors").write_text("tampered")
    with pytest.raises(TrainerError, match="is not the file that was registered"):
        registry.latest("ada")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(TrainerError, match=r"adapter_config.json is missing"):
        registry.get("ada@r-v1")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    _add(registry, "ada@r-v1", _adapter(tmp_path / "a1"))
    sentence = r"'ada@r-v1' was trained on base 'tiny' \(weights bbbbbbbbbbbb\), not on"
    with pytest.raises(TrainerError, match=sentence):
        registry.latest("ada", base_hash="c" * 64)
    with pytest.raises(TrainerError, match=sentence):
        _add(registry, "ada@r-v2", _adapter(tmp_path / "a2"), base_hash="c" * 64)
    with pytest.raises(TrainerError, match=sentence):
        _add(registry, "bo@r-v1", tmp_path / "a2", base_hash="c" * 64, parent="ada@r-v1")
    with pytest.raises(TrainerError, match=r"there is no adapter 'x@r-v1' in .*; it knows: ada@r-v1"):
        _add(registry, "ada@r-v2", tmp_path / "a2", parent="x@r-v1")
    assert len(Registry(tmp_path).list()) == 1


def test_a_damaged_registry_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("[{")
    with pytest.raises(TrainerError, match="is not a registry of adapters"):
        Registry(tmp_path)


def test_names_read_back_as_they_were_made() -> None:
    assert adapter_name("ada", "run-7", 12) == "ada@run-7-v12"
    assert parse_name("ada@run-7-v12") == ("ada", 12)
    for agent, run, version in (("a@b", "r", 1), ("a", "r", 0), ("", "r", 1)):
        with pytest.raises(TrainerError, match="cannot name an adapter"):
            adapter_name(agent, run, version)


def test_the_hash_of_a_base_follows_its_weights_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"same")
    (tmp_path / "two" / "README.md").write_text("other")
    assert weights_hash(tmp_path / "one") == weights_hash(tmp_path / "two")
    (tmp_path / "two" / "model.safetensors").write_bytes(b"differ")
    assert weights_hash(tmp_path / "one") != weights_hash(tmp_path / "two")
    with pytest.raises(TrainerError, match="there are no weights in"):
        weights_hash(tmp_path)
