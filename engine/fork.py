"""Another run that begins with what an earlier one has on record, as far as that is still what would be asked.

A debate depends on its task, its seed, its prompts, who plays and through which models. Where these are the same, it is
the same debate, whatever is learned from it afterwards: its events are copied, closed or open, and an open one goes on
from where it stood. Stages in which tuned agents speak depend on the training, too, and are held again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from engine.config.recipe import Recipe
from engine.config.recipe_file import apply_override, build_recipe, telling_of
from engine.data.tasks import Split, load_split
from engine.debates.arena import failure_summary
from engine.debates.changes import differences, own_recipe
from engine.debates.terminal import check_people
from engine.live.progress import Progress
from engine.record.attempts import Attempts, debate_id, split_id
from engine.record.folder import RunFolder, new_run_path
from engine.record.journal import CloseEntry, Entry, EventEntry, Journal, Recorded, read_journal
from engine.run import carry_out, check_tasks, create, limited, make_manifest, run_name
from protocols.errors import ConfigError
from protocols.graph import decode_debate
from protocols.machine import Opened, derive_seed
from protocols.task import Task

BESIDE = ("name", "tasks", "train", "sft", "tree_dpo", "magdi", "loop")
"""Keys that change no debate: tasks are compared one by one, the others act on closed debates."""

BATCH = 256  # debates a commit


def fork(path: Path, overrides: Sequence[str], *, run_dir: Path | None, progress: Progress) -> dict[str, Any]:
    """Begin another run with a run's recipe and record.

    Args:
        overrides: over the run's own ``recipe.yaml``, edits in it included.
    Raises: ConfigError: not a run, or the recipe or the new folder is wrong. MootError: see the stages.
    """
    old = RunFolder.open(path)
    if old.manifest.kind == "import":
        raise ConfigError(f"{path} is an import: it was never run, so it cannot be forked")
    source, where = own_recipe(old), Path(old.manifest.recipe_path)
    for override in overrides:
        apply_override(source, override)
    with telling_of(overrides, str(path / "recipe.yaml")):
        recipe = build_recipe(source, where=str(path / "recipe.yaml"), folder=where.parent)
    tasks = limited(load_split(recipe.tasks), old.manifest.limit)
    check_tasks(old.manifest.kind, recipe, tasks, progress)
    check_people(recipe, str(where))
    run_id, target = new_run_path(Path(recipe.run.runs_dir), recipe.name)
    if run_dir is not None:
        run_id, target = run_name(recipe.name, run_dir), run_dir
    manifest = make_manifest(run_id, old.manifest.kind, recipe, where, old.manifest.limit)
    manifest.adapters_from, manifest.forked_from = old.manifest.adapters_from, str(path.absolute())
    new = create(target, manifest)
    try:
        progress.note(f"{target}: {take_over(old, new, recipe, tasks)}")
    except BaseException:
        new.release()
        raise
    return carry_out(new, recipe, tasks, progress)


def take_over(old: RunFolder, new: RunFolder, recipe: Recipe, tasks: Split) -> str:
    """Copy the debates that would be held again word for word. Returns: a sentence on what was, or why nothing.

    Raises: JournalError: a journal cannot be read or written.
    """
    if why := _touched(old, recipe):
        return f"nothing of {old.path} is taken over: {why}"
    closed = num_open = 0
    kept: list[str] = []
    for stage, wanted in _stages(old, recipe, tasks).items():
        found = _same(old, stage, {task.id: task for task in wanted}, recipe.seed)
        closed += sum(item.graph is not None for item in found)
        num_open += sum(item.graph is None for item in found)
        kept += [item.debate_id for item in found]
        _copy(found, new, stage, recipe)
    Attempts(new.path).take_over(kept)
    return f"{closed} closed debates of {old.path} are taken over, and {num_open} open ones"


def _touched(old: RunFolder, recipe: Recipe) -> str:
    """Why no debate of the old run would be the same; "" where they would be."""
    found = differences(old.manifest.recipe, recipe.source)
    for item in found:
        top, *rest = item.key.split(".")
        if not (item.free or top in BESIDE or (top == "models" and rest[1:2] == ["finetune"])):
            return f"{item} changes every debate"
    if old.manifest.files.get("prompt_text") != recipe.prompts.digest:
        return "the text of the prompts has changed"
    return ""


def _stages(old: RunFolder, recipe: Recipe, tasks: Split) -> dict[str, list[Task]]:
    """The stages in which the agents speak as the recipe has them, in both runs, and their tasks."""
    if old.manifest.kind == "run":
        return {"debate": [*tasks.train, *tasks.test]}
    if old.manifest.kind == "eval":  # with adapters, which may be newer by now
        return {} if old.manifest.adapters_from else {"eval-0": [*tasks.test]}
    before = old.manifest.recipe.get("loop", {}).get("staleness", 0)
    untrained = min(1 + min(before, recipe.loop.staleness), recipe.loop.iterations)
    return {"eval-0": [*tasks.test]} | {f"debate-{number}": [*tasks.train] for number in range(1, untrained + 1)}


def _same(old: RunFolder, stage: str, tasks: dict[str, Task], seed: int) -> list[Recorded]:
    """What is on record of these tasks as they are now; not what was set aside, which is worth another try."""
    attempts = Attempts(old.path)
    found = []
    for path in filter(Path.exists, old.journals(stage)):
        for item in read_journal(path):
            _, name, attempt = split_id(item.debate_id)
            if not item.events or not attempts.counts(item.debate_id) or name not in tasks:
                continue
            opened = item.events[0][1]
            ours = debate_id(stage, name, attempt)
            same = opened == Opened(debate_id=ours, task=tasks[name], seed=derive_seed(seed, ours))
            if same and (item.graph is None or not failure_summary(decode_debate(item.graph))):
                found.append(item)
    return found


def _copy(found: list[Recorded], new: RunFolder, stage: str, recipe: Recipe) -> None:
    """Spread over the new run's arenas."""
    paths = new.journals(stage)
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(paths):
        mine = iter(found[number :: len(paths)])
        journal = Journal(path, fingerprint=recipe.fingerprint, sync=recipe.run.sync)
        try:
            while batch := list(islice(mine, BATCH)):
                journal.commit([entry for item in batch for entry in _entries(item)])
        finally:
            journal.close()


def _entries(item: Recorded) -> list[Entry]:
    entries: list[Entry] = [EventEntry(item.debate_id, seq, at, event) for seq, (at, event) in enumerate(item.events)]
    if item.graph is not None:
        entries.append(CloseEntry(item.debate_id, item.closed_at or 0.0, item.graph))
    return entries
