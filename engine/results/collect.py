"""From a run's folder to its report: everything is read from what the run left behind, so any run can be reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from engine.debates.stage import recorded
from engine.record.folder import Manifest, RunFolder
from engine.record.stage_names import label_of, last_iteration, order_of
from engine.results.evaluate import Evaluation
from engine.results.likelihoods import read_likelihoods
from engine.results.report import report_text, write_report
from engine.results.report_data import (
    PLAIN_DEBATES,
    AdapterEntry,
    Iteration,
    ReportData,
    SetAside,
    Stage,
    Training,
    TrainingPoint,
    UsageTotals,
)
from protocols.errors import ConfigError
from protocols.graph import Debate
from protocols.statistics import Statistics, statistics
from trainers.record.registry import Registry
from trainers.tuning.sft_settings import RESULT_NAME

SHOWN = 4  # whole transcripts a stage


def write_run_report(path: Path, output: Path | None) -> tuple[Path, str]:
    """Write the page. Returns: where it is, and the short table for a terminal. Raises: ConfigError: not a run."""
    data = collect(RunFolder.open(path))
    target = output or path / "report.html"
    try:
        write_report(data, target)
    except OSError as err:
        raise ConfigError(f"report {target}: cannot be written: {err.strerror}") from err
    return target, report_text(data)


def collect(folder: RunFolder) -> ReportData:
    """Read a run. Raises: ConfigError, JournalError: something in it cannot be read."""
    manifest = folder.manifest
    stages = [name for name, done in manifest.done.items() if "debates" in done]
    yaml_file = folder.path / "recipe.yaml"
    return ReportData(
        run_name=manifest.id,
        recipe=yaml_file.read_text(encoding="utf-8") if yaml_file.exists() else "",
        fingerprint=manifest.fingerprint,
        machine=f"{manifest.machine}; " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
        started_unix_s=manifest.started_at,
        finished_unix_s=manifest.finished_at,
        stages=tuple(Stage(name, manifest.done[name]["wall_s"]) for name in stages),
        evaluations=_evaluations(folder),
        held_out=manifest.kind not in ("run", "import"),
        statistics=_statistics(folder, stages),
        likelihoods={_label(name, manifest): read_likelihoods(folder.path, name) for name in stages},
        iterations=_iterations(folder),
        trainings=_trainings(folder),
        adapters=_adapters(folder),
        usage=_usage(manifest, stages),
        set_aside=tuple(SetAside(task, why) for name in stages for task, why in manifest.done[name]["set_aside"]),
        transcripts=_transcripts(folder),
        warnings=tuple(_results(folder).get("warnings", ())),
    )


def _evaluations(folder: RunFolder) -> tuple[tuple[str, Evaluation], ...]:
    found = []
    files = [file for file in (folder.path / "results").glob("*.json") if not file.stem.endswith("-statistics")]
    for file in sorted(files, key=lambda file: order_of(file.stem)):
        evaluation = msgspec.json.decode(file.read_bytes(), type=Evaluation)
        found.append((_label(file.stem, folder.manifest), evaluation))
    return tuple(found)


def _label(stage: str, manifest: Manifest) -> str:
    """What the page calls a stage of debates."""
    if stage == "debate":
        return PLAIN_DEBATES
    if manifest.kind == "eval" and stage == "eval-0":
        return "with the newest adapters" if manifest.adapters_from else "as they are"
    return label_of(stage)


def _statistics(folder: RunFolder, stages: list[str]) -> tuple[tuple[str, Statistics], ...]:
    """How each stage's debates went: as kept with the results, or, of a run from before they were, by its journals."""
    found = []
    for stage in stages:
        file = folder.path / "results" / f"{stage}-statistics.json"
        if file.exists():
            counts = msgspec.json.decode(file.read_bytes(), type=Statistics)
        else:
            counts = statistics(item.debate for item in recorded(folder, stage))
        found.append((_label(stage, folder.manifest), counts))
    return tuple(found)


def _iterations(folder: RunFolder) -> tuple[Iteration, ...]:
    found = []
    for number in range(1, last_iteration(folder.manifest.done) + 1):
        closed = sorted(item.at for item in recorded(folder, f"debate-{number}"))
        results = [result for _, result in _training_results(folder, number)]
        firsts = [result.first_step_at for result in results if result.first_step_at is not None]
        found.append(
            Iteration(
                iteration=number,
                closed_unix_s=tuple(closed),
                first_step_unix_s=min(firsts, default=None),
                **folder.manifest.done.get(f"train-{number}", {}).get("staleness", {}),
            )
        )
    return tuple(found)


class _Told(msgspec.Struct):
    """What all kinds of trainings leave in their result."""

    losses: tuple[float, ...]
    step_times: tuple[float, ...] = ()
    first_step_at: float | None = None  # services do not say


def _training_results(folder: RunFolder, iteration: int) -> list[tuple[str, _Told]]:
    """Agent -> how its supervised finetuning went."""
    names = folder.manifest.done.get(f"train-{iteration}", {}).get("adapters", ())
    registry = Registry(folder.path / "adapters")
    found = {record.agent: registry.folder_of(record) / RESULT_NAME for record in map(registry.get, names)}
    return [(agent, msgspec.json.decode(file.read_bytes(), type=_Told)) for agent, file in sorted(found.items())]


def _trainings(folder: RunFolder) -> tuple[Training, ...]:
    found = []
    for number in range(1, last_iteration(folder.manifest.done) + 1):
        for agent, result in _training_results(folder, number):
            points = tuple(
                TrainingPoint(time_unix_s=at, step=step, loss=loss)
                for step, (at, loss) in enumerate(
                    zip(result.step_times, result.losses, strict=bool(result.step_times)), 1
                )
            )
            found.append(Training(agent=agent, points=points, iteration=number, role="generator"))
    return tuple(found)


def _adapters(folder: RunFolder) -> tuple[AdapterEntry, ...]:
    if not (folder.path / "adapters").exists():
        return ()
    return tuple(
        AdapterEntry(
            name=record.name,
            agent=record.agent,
            base=record.base_model,
            parent=record.parent or "",
            num_rows=record.rows,
            data_hash=record.data_hash,
            metrics=record.metrics,
        )
        for record in Registry(folder.path / "adapters").list()
    )


def _usage(manifest: Manifest, stages: list[str]) -> UsageTotals:
    done = [manifest.done[name] for name in stages]
    wall_s = sum(stage["wall_s"] for stage in done)
    replies = sum(stage["new"]["replies"] for stage in done)
    completion = sum(stage["new"]["completion_tokens"] for stage in done)
    return UsageTotals(
        prompt_tokens=sum(stage["prompt_tokens"] for stage in done),
        completion_tokens=sum(stage["completion_tokens"] for stage in done),
        cached_tokens=sum(stage["cached_tokens"] for stage in done),
        num_replies=sum(stage["replies"] for stage in done),
        tokens_per_s=completion / wall_s if wall_s else None,
        replies_per_s=replies / wall_s if wall_s else None,
    )


def _transcripts(folder: RunFolder) -> tuple[tuple[str, Debate], ...]:
    """Some debates of the first and the last stage that holds any, the same tasks in both, contested ones first."""
    stages = [name for name in folder.manifest.done if name.startswith(("eval-", "debate"))]
    evals = [name for name in stages if name.startswith("eval-")]
    chosen = [(evals[0], "before training"), (evals[-1], "after training")] if len(evals) > 1 else []
    chosen = chosen or [(name, name) for name in stages[:1]]
    found: list[tuple[str, Debate]] = []
    wanted: list[str] = []
    for stage, label in chosen:
        debates = {item.debate.task.id: item.debate for item in recorded(folder, stage)}
        wanted = wanted or sorted(debates, key=lambda task: (-_contest(debates[task]), task))[:SHOWN]
        found += [(label, debates[task]) for task in wanted if task in debates]
    return tuple(found)


def _contest(debate: Debate) -> int:
    """How many different answers were given: those debates are the ones worth reading."""
    return len({node.answer.value for node in debate.turns()})


def _results(folder: RunFolder) -> dict[str, Any]:
    file = folder.path / "results.json"
    found: dict[str, Any] = msgspec.json.decode(file.read_bytes()) if file.exists() else {}
    return found


def list_all(recipes: Path, runs_dir: Path) -> dict[str, Any]:
    """The recipes that moot ships, and the runs in a folder with how far they have come."""
    runs = []
    for file in sorted(runs_dir.glob("*/run.json")):
        try:
            manifest = RunFolder.open(file.parent).manifest
        except ConfigError:
            runs.append(f"{file.parent}  damaged: its run.json cannot be read")
            continue
        state = "done" if manifest.finished_at else f"resumable after {', '.join(manifest.done) or 'its start'}"
        runs.append(f"{file.parent}  {manifest.kind}  {state}")
    return {"recipes": [str(file) for file in sorted(recipes.glob("*.yaml"))], "runs": runs}
