"""Tree-DPO on the debates that a run has on record: each learner's newest adapter goes on from the trees."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config.recipe import TrainSettings
from engine.debates.stage import recorded
from engine.learning.preferences import RecordedTrees
from engine.learning.training import (
    Training,
    base_of,
    fit_on_ray,
    held,
    rows_of,
    sections_of,
    stages_to_learn_from,
    told,
    word,
)
from engine.learning.versions import kept_by_service, whole_model
from engine.live.progress import Progress
from engine.record.folder import RunFolder
from protocols.errors import ConfigError
from trainers.jobs.job import job_for
from trainers.record.registry import AdapterRecord, Registry, adapter_name, weights_hash
from trainers.record.row_file import write_rows
from trainers.selection.preference_row import Preference
from trainers.tuning.tree_dpo_settings import TreeDPOResult, TreeDPOSettings


def train_on_preferences(path: Path, overrides: Sequence[str], *, progress: Progress) -> dict[str, Any]:
    """One adapter for every learner that has one already: a copy of it, trained on its preferences.

    Interrupted, the same command goes on from the last checkpoint; done, it trains the next version.

    Args:
        overrides: of ``train`` and ``tree_dpo`` alone, over what the run's recipe says.
    Raises: ConfigError: not a run, one that is not finished, no preferences, or no adapter to start from. TrainerError:
        nobody could be trained.
    """
    with held(path) as folder:
        return _train(folder, overrides, progress)


def _train(folder: RunFolder, overrides: Sequence[str], progress: Progress) -> dict[str, Any]:
    manifest, began = folder.manifest, time.monotonic()
    settings, how = sections_of(folder, overrides, TreeDPOSettings)
    base = base_of(settings, progress)
    registry = Registry(folder.path / "adapters")
    trees = RecordedTrees(folder, settings)
    rows = _rows(folder, trees, settings)
    parents = {agent: _parent(folder, registry, agent, base) for agent in rows}
    version = registry.next_version
    training = preference_training(folder, registry, settings, how, base, rows, parents, version)
    shown = ", ".join(f"{agent} {len(found)} on {parents[agent].name}" for agent, found in rows.items())
    progress.note(f"training v{version} on recorded preferences: {shown}")
    warning = fit_on_ray(training, lambda: str(rows_of(training)))
    trained = training.register(
        registry,
        recipe_hash=manifest.fingerprint,
        base_name=lambda agent: parents[agent].base_model,
        parents=parents,
        iteration=version,
    )
    return told(folder, trained) | {
        "supervised_rows": trees.counted.supervised,
        "amplification": round(trees.counted.factor, 2),
        "margin": {
            item.agent: [round(margin, 4) for margin in (item.result.margins[0], item.result.margins[-1])]
            for item in trained
            if isinstance(item.result, TreeDPOResult)
        },
        "warnings": [warning] if warning else [],
        "wall_s": round(time.monotonic() - began, 2),
    }


def preference_training(
    folder: RunFolder,
    registry: Registry,
    settings: TrainSettings,
    how: TreeDPOSettings,
    base: str,
    rows: Mapping[str, Sequence[Preference]],
    parents: Mapping[str, AdapterRecord],
    version: int,
    gpu_share: float = 1.0,
) -> Training:
    """A training of everybody who has rows, each on top of an adapter of theirs; the rows are on disk when it returns.

    Args:
        parents: agent -> the adapter to go on from.
        gpu_share: see ``Training``.
    """
    run_id = folder.manifest.id
    training = Training(
        run_id=run_id,
        settings=settings,
        how=how,
        base=base,
        workplace=folder.path / "train" / f"preferences-{version}",
        jobs=[
            job_for(registry, adapter_name(agent, word(run_id), version), method="tree_dpo", parent=parents[agent])
            for agent in rows
        ],
        rules={agent: tuple(dict.fromkeys(row.rule for row in found)) for agent, found in rows.items()},
        gpu_share=gpu_share,
    )
    for agent, found in rows.items():
        write_rows(rows_of(training), agent, found)
    return training


def recorded_preferences(
    folder: RunFolder, trees: RecordedTrees, stages: Sequence[str]
) -> tuple[dict[str, list[Preference]], int]:
    """Learner -> the preferences of these stages' debates, in the order of the record; and the number of debates."""
    found: dict[str, list[Preference]] = {}
    num_debates = 0
    for stage in stages:
        for closed in recorded(folder, stage):
            num_debates += 1
            for agent, rows in trees.of(closed.debate).items():
                found.setdefault(agent, []).extend(rows)
    return dict(sorted(found.items())), num_debates


def _rows(folder: RunFolder, trees: RecordedTrees, settings: TrainSettings) -> dict[str, list[Preference]]:
    found, num_debates = recorded_preferences(folder, trees, stages_to_learn_from(folder))
    if not found:
        raise ConfigError(
            f"{folder.path}: no round of its {num_debates} debates has both a right and a wrong answer"
            + (f" for {', '.join(settings.agents)}" if settings.agents else "")
            + f" by train.label={settings.label}; debate other tasks, or choose another label or other agents"
        )
    rows: dict[str, list[Preference]] = {}
    for agent, one in found.items():
        rows.setdefault(word(agent), []).extend(one)
    return rows


def _parent(folder: RunFolder, registry: Registry, agent: str, base: str) -> AdapterRecord:
    if hosted := next((record for record in registry.list() if record.agent == agent and record.model), None):
        raise kept_by_service(hosted, "preferences cannot be learned on top of it here")
    record = registry.latest(agent, base_hash=weights_hash(Path(base)))
    if record is None:
        raise ConfigError(
            f"{folder.path}: {agent!r} has no adapter, and preferences are learned on top of one; train it first with "
            f"`moot train {folder.path}`, or name others in train.agents"
        )
    if record.whole:
        raise whole_model(registry, record, "preferences are learned on top of an adapter")
    return record
