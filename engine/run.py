"""What a user starts: debates alone, the whole loop, an evaluation; and taking any of them up again."""

from __future__ import annotations

import copy
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from actors.limits.prices import NOTHING
from actors.logs import log_to_file
from engine.config.base_model import base_model_of, check_base
from engine.config.named_protocol import find_protocol
from engine.config.recipe import Recipe, iterations_of
from engine.config.recipe_file import apply_override, build_recipe, load_recipe, telling_of
from engine.config.sections import table
from engine.config.servable import check_servable
from engine.data.media import collect_media
from engine.data.tasks import Split, load_split
from engine.debates.attendant import Attendant
from engine.debates.changes import check_same, check_unchanged, differences, goes_further, keep_changes, taken_up
from engine.debates.cluster import Cluster, in_copy_of_a_job
from engine.debates.stage import run_stage
from engine.debates.terminal import check_people, with_people
from engine.live.progress import Progress
from engine.loop import Loop, evaluate_stage, keep_statistics, publish, summary
from engine.record.folder import (
    LOCK_WAIT_S,
    Manifest,
    RunFolder,
    machine_description,
    new_run_path,
    versions,
    write_atomically,
)
from engine.record.mirror_folder import fetch_missing, mirrored
from engine.record.spending import money, spent_so_far
from engine.results.evaluate import FINAL_VOTE, SINGLE_AGENT, Evaluation, evaluate
from engine.results.track import check_trackers, tracked
from protocols.errors import ConfigError, PausedError, TaskError
from protocols.machine import Opened
from trainers.record.registry import Registry

Outcome = dict[str, Any]
"""What a command reports: one flat, JSON-able mapping."""


def start(
    kind: str,
    recipe_path: Path,
    overrides: tuple[str, ...],
    *,
    run_dir: Path | None,
    limit: int | None,
    or_resume: bool = False,
    progress: Progress,
) -> Outcome:
    """Check a recipe, make its folder and do it. ``kind``: ``run``, ``loop`` or ``eval``.

    Args:
        or_resume: where ``run_dir`` holds this run already, go on with it, so that the same job may be submitted again.
    Raises: ConfigError: the recipe or the folder is wrong; nothing was started. MootError: see the stages.
    """
    if or_resume and run_dir is None:
        raise ConfigError("--or-resume finds its run by its folder; name it with --run-dir")
    recipe = load_recipe(recipe_path, overrides)
    tasks = limited(load_split(recipe.tasks), limit)
    check_tasks(kind, recipe, tasks, progress)
    with telling_of(overrides, str(recipe_path)):
        check_people(recipe, str(recipe_path))
    check_trackers(recipe.run.track)
    if or_resume and run_dir is not None and (run_dir / "run.json").exists():
        return _again(kind, run_dir, recipe, recipe_path.absolute(), limit, tasks, progress)
    run_id, path = new_run_path(Path(recipe.run.runs_dir), recipe.name)
    if run_dir is not None:
        run_id, path = run_name(recipe.name, run_dir), run_dir
    manifest = make_manifest(run_id, kind, recipe, recipe_path.absolute(), limit)
    return carry_out(create(path, manifest), recipe, tasks, progress)


def _again(
    kind: str, path: Path, recipe: Recipe, recipe_path: Path, limit: int | None, tasks: Split, progress: Progress
) -> Outcome:
    """The same command once more. What may differ when a run is resumed is as the command says it now.

    A driver that has just died may hold the folder for a while yet: on a network's file system as long as its lease.
    """
    folder = RunFolder.open(path)
    _check_is_run(folder, kind, recipe, limit)  # nobody waits for what would be refused
    folder.lock(wait_s=LOCK_WAIT_S, note=progress.note)
    manifest = folder.manifest
    try:
        _check_is_run(folder, kind, recipe, limit)  # as whoever held it has left it
    except ConfigError:
        folder.release()
        raise
    if _is_over(folder, recipe):
        folder.release()
        return _nothing_left(folder, progress)
    manifest.recipe_path = str(recipe_path)  # a job's copy of it lies elsewhere each time
    return _carry_on(folder, recipe, tasks, progress)


def _carry_on(folder: RunFolder, recipe: Recipe, tasks: Split, progress: Progress) -> Outcome:
    """Carry out what is left of a run, by its recipe as it is now."""
    folder.manifest.finished_at = None
    if found := differences(folder.manifest.recipe, recipe.source):
        keep_changes(folder, recipe, found)
    else:
        folder.save()
    for change in folder.manifest.changes:
        progress.note(f"changed since it was started: {change}")
    recipe = msgspec.structs.replace(recipe, known_as=folder.manifest.fingerprint)
    return carry_out(folder, recipe, tasks, progress)


def _is_over(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether nothing is left to do."""
    return folder.manifest.finished_at is not None and not goes_further(folder, recipe)


def _check_is_run(folder: RunFolder, kind: str, recipe: Recipe, limit: int | None) -> None:
    """Raises: ConfigError: a folder holds another run than a command names."""
    manifest = folder.manifest
    for what, was, now in (("the command", manifest.kind, kind), ("--limit", manifest.limit, limit)):
        if was != now:
            raise ConfigError(
                f"{folder.path} holds another run: there {what} is {was or 'not set'}, here {now or 'not set'}; "
                "choose another --run-dir"
            )
    check_unchanged(folder, recipe)
    _check_names_free(folder, recipe)


def _check_names_free(folder: RunFolder, recipe: Recipe) -> None:
    """Raises: ConfigError: a loop that is done is to go further, and what it would train next is there already."""
    if folder.manifest.finished_at is None or not goes_further(folder, recipe):
        return
    done, adapters = iterations_of(folder.manifest.recipe), folder.path / "adapters"
    last = done * (1 + recipe.loop.preferences)  # version: each training makes one
    begun = (int(path.name[1:]) for path in adapters.glob("*/v*") if path.name[1:].isdigit())  # registered or not
    newest = max(Registry(adapters).next_version - 1, *begun, 0)
    if newest > last:
        raise ConfigError(
            f"{folder.path}: `moot train` has made version {newest} of its adapters, and iteration {done + 1} "
            "would make others of these names; begin a longer run by "
            f"`moot fork {folder.path} --run-dir NEW loop.iterations={recipe.loop.iterations}`"
        )


def evaluate_run(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path | None = None,
    limit: int | None = None,
    progress: Progress,
) -> Outcome:
    """Evaluate a loop's agents, with the newest adapter of each, once more; results go into a folder of their own.

    Args:
        overrides: over the run's recipe: other tasks, or another protocol for the same agents.
        limit: default: the run's own.
    Raises: ConfigError: not a run, or the recipe is wrong. MootError: see the stages.
    """
    source = RunFolder.open(path).manifest
    if source.kind == "import":
        raise ConfigError(f"{path} is an import: it has no agents to evaluate; evaluate a recipe or a run")
    changed = copy.deepcopy(source.recipe)
    for override in overrides:
        apply_override(changed, override)
    with telling_of(overrides, source.recipe_path):
        protocol = table(changed["protocol"], source.recipe_path, "protocol")
        if "train" in changed and protocol.get("name") != source.recipe["protocol"]["name"]:
            train = table(changed["train"], source.recipe_path, "train")
            changed["train"] = {key: value for key, value in train.items() if key != "rules"}  # of roles it has not
        recipe, limit = _recipe_of(source, changed), limit or source.limit
    tasks = limited(load_split(recipe.tasks), limit)
    check_tasks("eval", recipe, tasks, progress)
    check_people(recipe, source.recipe_path)
    check_trackers(recipe.run.track)
    run_id, target = new_run_path(Path(recipe.run.runs_dir), f"{recipe.name}-eval")
    if run_dir is not None:
        run_id, target = run_name(recipe.name, run_dir), run_dir
    manifest = make_manifest(run_id, "eval", recipe, Path(source.recipe_path), limit)
    manifest.adapters_from = str((path / "adapters").absolute())
    return carry_out(create(target, manifest), recipe, tasks, progress)


def make_manifest(run_id: str, kind: str, recipe: Recipe, recipe_path: Path, limit: int | None) -> Manifest:
    return Manifest(
        id=run_id,
        kind=kind,
        name=recipe.name,
        fingerprint=recipe.fingerprint,
        num_arenas=recipe.run.num_arenas,
        recipe=recipe.source,
        recipe_path=str(recipe_path),
        limit=limit,
        started_at=time.time(),
        machine=machine_description(),
        versions=versions(),
        files=recipe.files,
    )


def create(path: Path, manifest: Manifest) -> RunFolder:
    folder = RunFolder.create(path, manifest)
    folder.write_recipe(manifest.recipe)
    return folder


def _recipe_of(manifest: Manifest, source: Mapping[str, Any] | None = None) -> Recipe:
    """What a run was started with, or another recipe in its place. Raises: ConfigError: a file it names has gone."""
    path = Path(manifest.recipe_path)
    return build_recipe(source or manifest.recipe, where=str(path), folder=path.parent)


def resume(path: Path, *, budget: Sequence[str] = (), iterations: int | None = None, progress: Progress) -> Outcome:
    """Go on with a run where it stood; a run that is done is left as it is, but for a loop that is to go further.

    Args:
        budget: ``usd=Y`` or ``tokens=N``: the run's new budget, what was spent before included.
        iterations: that a loop is to have in all, those it has had included.
    Raises: ConfigError: not a run, or its recipe is another now. MootError: see the stages.
    """
    folder = RunFolder.open(path)
    if iterations is not None and folder.manifest.kind != "loop":
        raise ConfigError(f"--iterations {iterations}: {path} is no loop; `moot loop` starts one")
    if folder.manifest.kind == "import":
        progress.note(f"{path} is an import; nothing to resume")
        return _outcome(folder)
    folder.lock()
    try:
        return _go_on(folder, budget, iterations, progress)
    finally:
        folder.release()


def _go_on(folder: RunFolder, budget: Sequence[str], iterations: int | None, progress: Progress) -> Outcome:
    manifest = folder.manifest
    source = taken_up(folder, budget, iterations)
    with (
        telling_of([f"run.budget.{given}" for given in budget], manifest.recipe_path, place="--budget"),
        telling_of(["loop.iterations"] * (iterations is not None), manifest.recipe_path, place="--iterations"),
    ):
        recipe = _recipe_of(manifest, source)
    check_same(folder, recipe)
    _check_names_free(folder, recipe)
    tasks = limited(load_split(recipe.tasks), manifest.limit)
    if _is_over(folder, recipe):
        return _nothing_left(folder, progress)
    check_people(recipe, manifest.recipe_path)
    return _carry_on(folder, recipe, tasks, progress)


def carry_out(folder: RunFolder, recipe: Recipe, tasks: Split, progress: Progress) -> Outcome:
    import asyncio

    works = {"run": _debate, "loop": _loop, "eval": _evaluate}
    work = works[folder.manifest.kind]
    began = time.monotonic()
    progress.run = str(folder.path)
    log_to_file(folder.path / "logs", "driver", run=folder.path.absolute().name)
    progress.note(f"run {folder.path}")
    if in_copy_of_a_job(folder.path):
        progress.note("no other node sees this folder, and it goes with the job's copy of its files: name a --run-dir")
    try:
        with Attendant(folder, progress) as attendant, _naming(folder.path):
            for note in collect_media([*tasks.train, *tasks.test], folder.path):
                progress.note(note)
            with mirrored(folder, recipe.run, progress.note):
                if recipe.run.mirror:
                    for path in fetch_missing(folder, recipe.run.mirror):
                        progress.note(f"{path} was gone or behind, and is made whole from {recipe.run.mirror}")
                with tracked(folder, recipe.run.track, progress.note) as track:
                    outcome = asyncio.run(_with_cluster(folder, recipe, tasks, progress, work, attendant))
                    wall_s = round(time.monotonic() - began, 2)
                    outcome = {"run": str(folder.path)} | outcome | _spending(folder, recipe) | {"wall_s": wall_s}
                    track.finish(outcome)
            write_atomically(folder.path / "results.json", msgspec.json.format(msgspec.json.encode(outcome), indent=2))
            folder.manifest.finished_at = time.time()  # last: what is finished has its results
            folder.save()
    finally:
        folder.release()
    return outcome


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Those who stop a run do not know what it is called."""
    try:
        yield
    except PausedError as err:
        raise type(err)(str(err).replace("resume RUN", f"resume {path}")) from err


def _spending(folder: RunFolder, recipe: Recipe) -> Outcome:
    """Money and tokens of the whole run. Where nothing is bought or cached, the stages' own sums are enough."""
    if recipe.run.budget or any(model.cache or recipe.price_of(name) for name, model in recipe.models.items()):
        return money(folder, recipe.providers)
    stages = folder.manifest.done.values()
    tokens = sum(stage.get("prompt_tokens", 0) + stage.get("completion_tokens", 0) for stage in stages)
    return {"cost_usd": 0.0, "tokens": tokens}


Work = Callable[[RunFolder, Recipe, Split, Cluster, Progress], Awaitable[Outcome]]


async def _with_cluster(
    folder: RunFolder, recipe: Recipe, tasks: Split, progress: Progress, work: Work, attendant: Attendant
) -> Outcome:
    progress.note("starting " + ", ".join(sorted(recipe.models_in_use)))
    spent = spent_so_far(folder) if recipe.run.budget else NOTHING
    cluster = await attendant.start(
        Cluster.start(
            recipe,
            folder=folder.path,
            media=[folder.path / "media"],
            spent=spent,
            trains=folder.manifest.kind == "loop",
            note=progress.note,
        )
    )
    try:
        working = with_people(recipe, folder.path / "media", progress, work(folder, recipe, tasks, cluster, progress))
        outcome = await attendant.attend(cluster, working)
        return outcome | {"hosts": await cluster.hosts.figures()}
    finally:
        await cluster.stop()


async def _debate(folder: RunFolder, recipe: Recipe, tasks: Split, cluster: Cluster, progress: Progress) -> Outcome:
    result = await run_stage(cluster, folder, "debate", [*tasks.train, *tasks.test], progress=progress)
    result.tell_reasons(progress)
    found = evaluate(result.graded, tie_break=recipe.settings.tie_break)
    (folder.path / "results").mkdir(exist_ok=True)
    write_atomically(folder.path / "results" / "debate.json", msgspec.json.format(msgspec.json.encode(found), indent=2))
    keep_statistics(folder, "debate", result.graded)
    folder.mark_done("debate", summary(result))
    return _figures(found) | {
        "debates": len(result.closed),
        "closed": len(result.closed) - len(result.set_aside),
        "set_aside": len(result.set_aside),
        "replies": sum(len(debate.utterances) for debate in result.debates),
        "new_replies": result.replies,
    }


async def _loop(folder: RunFolder, recipe: Recipe, tasks: Split, cluster: Cluster, progress: Progress) -> Outcome:
    loop = Loop(recipe, cluster, folder, tasks, progress)
    evaluations = await loop.run()
    warnings = [text for done in folder.manifest.done.values() for text in done.get("warnings", ())]
    outcome: Outcome = _totals(folder) | {"warnings": warnings}
    if recipe.loop.staleness:
        outcome["staleness"] = {
            stage.replace("train", "debate"): done["staleness"]
            for stage, done in folder.manifest.done.items()
            if stage.startswith("train-")
        }
    if evaluations:
        before, after = evaluations[0][1], evaluations[-1][1]
        outcome |= {"before": _figures(before), "after": _figures(after)} | _figures(after)
    return outcome


async def _evaluate(folder: RunFolder, recipe: Recipe, tasks: Split, cluster: Cluster, progress: Progress) -> Outcome:
    """The agents as they are, or with the newest adapters of the run that the manifest names."""
    if folder.manifest.adapters_from:
        registry = Registry(Path(folder.manifest.adapters_from))
        for record in filter(None, map(registry.latest, recipe.speakers)):
            await publish(cluster, recipe, record, registry)
            progress.note(f"serving: {record.name}")
    found = await evaluate_stage(cluster, folder, "eval-0", tasks, progress)
    return _totals(folder) | _figures(found)


def check_tasks(kind: str, recipe: Recipe, tasks: Split, progress: Progress) -> None:
    """Whether there is what this kind of run needs, and a base to train. Raises: ConfigError."""
    check_debatable(recipe, tasks)
    if kind == "loop":
        check_loop(recipe, tasks)
        base_model_of(recipe, progress.note)  # unpacked where it is the embedded one
    elif kind == "eval" and not tasks.test:
        raise ConfigError("tasks.test=0: there is nothing held out to evaluate on; set it above 0")


def check_loop(recipe: Recipe, tasks: Split) -> None:
    """What a loop asks for beyond a run. Raises: ConfigError."""
    if not tasks.train:
        raise ConfigError("tasks.train=0: the loop has nothing to learn from; set it above 0")
    if recipe.loop.evaluate and not tasks.test:
        raise ConfigError("tasks.test=0: there is nothing held out; set it above 0, or loop.evaluate=false")
    check_servable(recipe)
    check_base(recipe)


def check_debatable(recipe: Recipe, tasks: Split) -> None:
    """Raises: TaskError: the protocol can do nothing with some of the tasks."""
    machine = find_protocol(recipe.protocol)(recipe.settings, recipe.players, recipe.prompts)
    refused = []
    for task in (*tasks.train, *tasks.test):
        try:
            machine.check(Opened(debate_id="", task=task, seed=0))
        except TaskError as err:
            refused.append(str(err))
    if refused:
        number = len(tasks.train) + len(tasks.test)
        raise TaskError(f"{len(refused)} of {number} tasks cannot be debated under {recipe.protocol!r}: {refused[0]}")


def limited(tasks: Split, limit: int | None) -> Split:
    """At most so many tasks of each side."""
    return tasks if limit is None else Split(tasks.train[:limit], tasks.test[:limit])


def run_name(name: str, run_dir: Path) -> str:
    """A folder chosen by the user gives the run its name; adapters are named after it, so odd letters are dropped."""
    word = "".join(letter for letter in run_dir.resolve().name if letter.isalnum() or letter in "-_.")
    return word or name


def _figures(found: Evaluation) -> Outcome:
    """The headline figures, as shares."""
    picked: Outcome = {}
    for key, name in (("accuracy", FINAL_VOTE), ("single_accuracy", SINGLE_AGENT)):
        figure = found.figure(name)
        if figure is not None and figure.accuracy is not None:
            picked[key] = round(figure.accuracy, 4)
            if figure.low is not None and figure.high is not None:
                picked[f"{key}_interval"] = [round(figure.low, 4), round(figure.high, 4)]
    return picked


def _totals(folder: RunFolder) -> Outcome:
    """Sums over the stages that are done."""
    stages = [stage for stage in folder.manifest.done.values() if "debates" in stage]
    aside = sum(len(stage["set_aside"]) for stage in stages)
    debates = sum(stage["debates"] for stage in stages)
    return {
        "debates": debates,
        "closed": debates - aside,
        "set_aside": aside,
        "replies": sum(stage["replies"] for stage in stages),
    }


def _nothing_left(folder: RunFolder, progress: Progress) -> Outcome:
    """Of a run that was done before: what came of it, and that nothing was added now."""
    further = ""
    if folder.manifest.kind == "loop":
        number = iterations_of(folder.manifest.recipe)
        further = f"; `moot resume {folder.path} --iterations {number + 1}` has it go further than {number}"
    progress.note(f"{folder.path} is done already; nothing to resume{further}")
    return _outcome(folder) | {"state": "done already", "new_replies": 0, "hosts": {}, "wall_s": 0.0}


def _outcome(folder: RunFolder) -> Outcome:
    """Of a run that is done, as it was reported."""
    try:
        found: Outcome = msgspec.json.decode((folder.path / "results.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as err:
        raise ConfigError(f"{folder.path / 'results.json'}: cannot be read: {err}") from err
    return found
