"""A run's folder: one driver at a time, and small files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engine.record.folder import Manifest, RunFolder, machine_description, new_run_path, versions, write_atomically
from protocols.errors import ConfigError, JournalError


def manifest() -> Manifest:
    return Manifest(id="r", kind="run", name="n", fingerprint="f", num_arenas=2, recipe={"a": 1}, recipe_path="r.yaml")


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    made = RunFolder.create(tmp_path / "deep" / "run", manifest())
    made.mark_done("debate", {"debates": 3})
    made.release()
    read = RunFolder.open(tmp_path / "deep" / "run")
    assert msgspec.structs.asdict(read.manifest) == msgspec.structs.asdict(made.manifest)
    assert read.manifest.done == {"debate": {"debates": 3}}
    assert [path.name for path in read.journals("debate")] == ["arena-000.sqlite", "arena-001.sqlite"]
    assert read.journals("debate")[0].parent == tmp_path / "deep" / "run" / "journal" / "debate"


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, manifest()).release()
    with pytest.raises(ConfigError, match="holds a run already; go on with `moot resume"):
        RunFolder.create(tmp_path, manifest())


@pytest.mark.parametrize("name", ["thesis.tex", "journal", "recipe.yaml"])
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"holds other files, such as {name}, and is no run; give a new or empty"):
        RunFolder.create(tmp_path, manifest())
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_a_start_that_was_killed_at_once_is_no_obstacle_nor_is_what_file_systems_leave(tmp_path: Path) -> None:
    for name in (".DS_Store", "run.lock", ".run.json.new"):
        (tmp_path / name).touch()
    (tmp_path / "lost+found").mkdir()
    RunFolder.create(tmp_path, manifest()).release()
    assert RunFolder.open(tmp_path).manifest.id == "r"


def test_a_run_has_one_driver(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path, manifest())
    second = RunFolder.open(tmp_path)
    with pytest.raises(JournalError, match="is in use by another moot"):
        second.lock()
    first.release()
    first.release()  # twice is fine
    second.lock()
    second.release()


def test_a_driver_that_has_just_died_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = RunFolder.create(tmp_path, manifest())
    second, told = RunFolder.open(tmp_path), list[str]()
    monkeypatch.setattr("engine.record.folder.LOCK_POLL_S", 0.001)
    monkeypatch.setattr("engine.record.folder.GLANCE_S", 0.0)
    with pytest.raises(JournalError, match="is in use by another moot"):
        second.lock(wait_s=0.01, note=told.append)
    monkeypatch.setattr("time.sleep", lambda _: first.release())
    second.lock(wait_s=60.0, note=told.append)
    second.release()
    assert [line.partition(" s ")[0] for line in told] == ["waiting up to 0.01", "waiting up to 60"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"id": 1}', b"\xff"])
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"run.json is damaged: ") as error:
        RunFolder.open(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_run_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a run's folder: it has no readable run.json; see `moot list`"):
        RunFolder.open(tmp_path)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--run-dir .*: cannot be written: Not a directory"):
        RunFolder.create(tmp_path / "file" / "run", manifest())
    with pytest.raises(ConfigError, match="cannot be written: No such file"):
        RunFolder(tmp_path / "gone", manifest()).lock()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_atomically(path, b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_ids_are_not_used_twice(tmp_path: Path) -> None:
    seen = set()
    for _ in range(3):
        run_id, path = new_run_path(tmp_path, "n")
        path.mkdir()
        seen.add(run_id)
        assert path == tmp_path / run_id and run_id.startswith("n-")
    assert len(seen) == 3


def test_the_machine_and_the_versions_are_described() -> None:
    assert "cores" in machine_description() and "GiB" in machine_description()
    assert {"python", "ray"} <= versions().keys()
