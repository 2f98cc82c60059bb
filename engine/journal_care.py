"""``moot journal``: a run's journals checked, repaired, compacted, and brought back from a mirror."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from engine.config.named_protocol import find_protocol
from engine.config.recipe import Recipe
from engine.config.recipe_file import build_recipe
from engine.data.tasks import load_split
from engine.debates.changes import changed_files
from engine.live.progress import Progress
from engine.record.attempts import split_id
from engine.record.folder import Manifest, RunFolder
from engine.record.journal import read_closed
from engine.record.journal_check import check_journal
from engine.record.journal_lock import repaired_path
from engine.record.journal_repair import Opening, Usable, compact_journal, repair_journal, usable_after
from engine.record.mirror_folder import restore_folder
from engine.run import limited
from protocols.errors import ConfigError
from protocols.machine import Opened, derive_seed
from protocols.task import Task

Outcome = dict[str, Any]


def check_run(run: Path) -> Outcome:
    """Safe beside a run that is going. Raises: ConfigError: not a run."""
    folder = RunFolder.open(run)
    found = {_shown(folder, path): check_journal(path, folder.manifest.fingerprint) for path in _journals(folder)}
    journals = {
        name: {key: getattr(checked, key) for key in ("schema_version", "debates", "closed", "events", "notes")}
        for name, checked in found.items()
    }
    damage = [f"{name}: {text}" for name, checked in found.items() for text in checked.damage]
    return {"run": str(run), "journals": journals, "damage": damage}


def repair_run(run: Path, *, progress: Progress) -> Outcome:
    """Save what can be read. A stage that lost any of its closed debates is not done any more: resuming mends it.

    Raises: ConfigError: not a run. JournalError: the run is going, or nothing of a journal can be read.
    """
    with _locked(run) as folder:
        recipe = _recipe(folder.manifest, progress)
        usable = _usable(recipe)
        found: list[str] = []
        lost: list[str] = []
        repaired: dict[str, Any] = {}
        for path in _journals(folder):
            opening = _opening(recipe, folder.manifest.limit, path.parent.name)
            if (done := repair_journal(path, folder.manifest.fingerprint, usable, opening)) is not None:
                name = _shown(folder, path)
                repaired[name] = {key: getattr(done, key) for key in ("kept_as", "debates", "closed", "events")}
                found += [f"{name}: {text}" for text in done.found]
                lost += [f"{name}: {text}" for text in done.lost]
        reopened = _reopen(folder) if repaired else []
        if reopened:
            progress.note(f"go on with `moot resume {run}`: it asks only for what is missing")
    return {"run": str(run), "found": found, "repaired": repaired, "lost": lost, "reopened": reopened}


def compact_run(run: Path, *, drop_events: bool) -> Outcome:
    """Raises: ConfigError: not a run. JournalError: the run is going, or a journal is damaged."""
    with _locked(run) as folder:
        sizes = [
            compact_journal(path, folder.manifest.fingerprint, drop_events=drop_events) for path in _journals(folder)
        ]
    before, after = (sum(size) for size in zip(*sizes, strict=True)) if sizes else (0, 0)
    return {"run": str(run), "bytes_before": before, "bytes_after": after}


def restore_run(url: str, run_dir: Path | None, *, progress: Progress) -> Outcome:
    """Raises: ConfigError: there is no such mirror, or the folder is there. JournalError: the mirror is damaged."""
    target, events = restore_folder(url, run_dir)
    progress.note(f"restored {target}; go on with `moot resume {target}`")
    return {"run": str(target), "events": events}


@contextmanager
def _locked(run: Path) -> Iterator[RunFolder]:
    folder = RunFolder.open(run)
    folder.lock()
    try:
        yield folder
    finally:
        folder.release()


def _journals(folder: RunFolder) -> list[Path]:
    """Those that are there, and those whose repair was interrupted."""
    there = (folder.path / "journal").glob("*/*")
    return sorted(
        {path.with_suffix(".sqlite") for path in there if path.suffix in (".sqlite", repaired_path(path).suffix)}
    )


def _shown(folder: RunFolder, path: Path) -> str:
    return str(path.relative_to(folder.path))


def _recipe(manifest: Manifest, progress: Progress) -> Recipe | None:
    """Of the run; None: it is an import, or what the recipe names has gone or changed."""
    if manifest.kind == "import":
        return None
    try:
        recipe = build_recipe(manifest.recipe, where=manifest.recipe_path, folder=Path(manifest.recipe_path).parent)
        if not (other := changed_files(manifest, recipe)):
            return recipe
        why = f"{' and '.join(other)} changed"
    except ConfigError as err:
        why = str(err)
    progress.note(f"the recipe is not the run's any more, so nothing behind a lost event is kept: {why}")
    return None


def _usable(recipe: Recipe | None) -> Usable:
    """Which events behind a lost one still count is for the run's own protocol to say."""
    if recipe is None:
        return lambda before, after: []
    protocol = find_protocol(recipe.protocol)
    return lambda before, after: usable_after(protocol(recipe.settings, recipe.players, recipe.prompts), before, after)


def _opening(recipe: Recipe | None, limit: int | None, stage: str) -> Opening:
    """How the recipe opens the debates of a stage; its tasks are read when one is asked for."""
    if recipe is None:
        return lambda debate_id: None

    @cache
    def tasks() -> dict[str, Task]:
        split = limited(load_split(recipe.tasks), limit)
        return {task.id: task for task in (*split.train, *split.test)}

    def opening(debate_id: str) -> Opened | None:
        of, task_id, _ = split_id(debate_id)
        if of != stage or (task := tasks().get(task_id)) is None:
            return None
        return Opened(debate_id=debate_id, task=task, seed=derive_seed(recipe.seed, debate_id))

    return opening


def _reopen(folder: RunFolder) -> list[str]:
    """Stages that were done and hold fewer closed debates now. Returns: their names."""
    done = folder.manifest.done
    fewer = []
    for stage in done:
        paths = [path for path in folder.journals(stage) if path.exists()]
        if "debates" in done[stage] and sum(1 for path in paths for _ in read_closed(path)) < done[stage]["debates"]:
            fewer.append(stage)
    for stage in fewer:
        del done[stage]
    if fewer:
        folder.manifest.finished_at = None
        folder.save()
    return fewer
