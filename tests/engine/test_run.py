"""The same command given again: it goes on with its own run, and with no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import yaml

from engine.config.recipe_file import load_recipe
from engine.debates.cluster import in_copy_of_a_job
from engine.live.progress import Progress
from engine.record.folder import Manifest, RunFolder
from engine.run import resume, start
from protocols.errors import ConfigError
from tests.engine.config.test_recipe import GOOD

DONE = {"run": "as it was", "debates": 3, "state": "done already", "new_replies": 0, "hosts": {}, "wall_s": 0.0}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "first" / "r.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path, recipe: Path) -> Path:
    """A run of the recipe that is done."""
    known = load_recipe(recipe)
    manifest = Manifest(
        id="run",
        kind="run",
        name=known.name,
        fingerprint=known.fingerprint,
        num_arenas=1,
        recipe=known.source,
        recipe_path=str(recipe),
        finished_at=1.0,
    )
    RunFolder.create(tmp_path / "run", manifest).release()
    outcome = {"run": "as it was", "debates": 3, "new_replies": 12, "hosts": {"m": {"replies": 12}}, "wall_s": 9.0}
    (tmp_path / "run" / "results.json").write_text(json.dumps(outcome))
    return tmp_path / "run"


def again(
    recipe: Path, run: Path | None, *overrides: str, kind: str = "run", limit: int | None = None, or_resume: bool = True
) -> dict[str, object]:
    return start(kind, recipe, overrides, run_dir=run, limit=limit, or_resume=or_resume, progress=Progress(live=False))


def test_a_run_that_is_done_stays_as_it_is(recipe: Path, run: Path, tmp_path: Path) -> None:
    before = (run / "run.json").read_bytes()
    elsewhere = tmp_path / "second" / "r.yaml"  # each job has its own copy of a recipe
    elsewhere.parent.mkdir()
    shutil.move(recipe, elsewhere)
    assert again(elsewhere, run, "run.max_open=7") == DONE
    assert (run / "run.json").read_bytes() == before
    RunFolder.open(run).lock()  # nobody holds it


def test_a_run_that_is_not_done_goes_on_as_the_command_says_now(
    recipe: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder.open(run)
    folder.manifest.finished_at = None
    folder.save()
    going_on: list[RunFolder] = []
    monkeypatch.setattr("engine.run.carry_out", lambda folder, *_: going_on.append(folder))
    elsewhere = Path(shutil.copytree(recipe.parent, tmp_path / "second")) / recipe.name
    again(elsewhere, run, "run.budget.tokens=7")
    known = RunFolder.open(run).manifest
    assert known.recipe_path == str(elsewhere) and known.recipe["run"]["budget"] == {"tokens": 7}
    assert msgspec.structs.asdict(known) == msgspec.structs.asdict(going_on[0].manifest)
    going_on[0].release()


@pytest.mark.parametrize(
    ("overrides", "options", "said"),
    [
        ((), {"kind": "eval"}, "holds another run: there the command is run, here eval"),
        ((), {"limit": 2}, "holds another run: there --limit is not set, here 2"),
        (("seed=99",), {}, "holds another run: its recipe differs (seed: 1 -> 99)"),
        ((), {"or_resume": False}, "holds a run already; go on with `moot resume"),
    ],
)
def test_another_run_is_refused(
    recipe: Path, run: Path, overrides: tuple[str, ...], options: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        again(recipe, run, *overrides, **options)  # type: ignore[arg-type]  # one option a case
    assert said in str(error.value)
    RunFolder.open(run).lock()


def test_another_run_is_refused_though_somebody_drives_it(
    recipe: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.run.LOCK_WAIT_S", 1e9)
    driver = RunFolder.open(run)
    driver.lock()
    with pytest.raises(ConfigError, match="its recipe differs"):  # at once: the test would wait for ever
        again(recipe, run, "seed=99")
    driver.release()


def test_what_a_driver_changed_meanwhile_is_seen(recipe: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = RunFolder.open(run)
    driver.lock()
    lock = RunFolder.lock

    def late(self: RunFolder, **options: object) -> None:
        driver.manifest.limit = 2
        driver.save()
        driver.release()
        lock(self)

    monkeypatch.setattr(RunFolder, "lock", late)
    with pytest.raises(ConfigError, match="there --limit is 2, here not set"):
        again(recipe, run)


def test_only_a_loop_has_iterations(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--iterations 2: .*run is no loop; `moot loop` starts one$"):
        resume(run, iterations=2, progress=Progress(live=False))
    RunFolder.open(run).lock()


@pytest.mark.parametrize(
    ("path", "is_one"),
    [
        ("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1/runs/a", True),
        ("/mnt/moot/runs/a", False),
        ("runs/working_dir_files-and-more", False),
    ],
)
def test_a_folder_that_goes_with_a_job_is_known(path: str, is_one: bool) -> None:
    assert in_copy_of_a_job(Path(path)) is is_one


def test_a_run_is_found_by_its_folder(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="name it with --run-dir"):
        again(recipe, None)
