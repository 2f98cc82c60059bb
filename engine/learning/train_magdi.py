"""MAGDi's baseline on the debates that a run has on record: all that its agents said, distilled into one student."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.config.recipe import TrainSettings
from engine.debates.stage import recorded
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
from engine.live.progress import Progress
from engine.record.folder import RunFolder
from protocols.errors import ConfigError
from protocols.formats.magdi import Edges
from trainers.jobs.job import job_for
from trainers.record.registry import Registry, adapter_name
from trainers.record.row_file import write_rows
from trainers.selection.interaction import RULE, Interaction, interaction_of
from trainers.tuning.magdi_settings import MAGDiResult, MAGDiSettings


def train_student(path: Path, overrides: Sequence[str], *, progress: Progress) -> dict[str, Any]:
    """One adapter, from fresh weights, for one student.

    Interrupted, the same command goes on from the last checkpoint; done, it trains the next version.

    Args:
        overrides: of ``train`` and ``magdi`` alone, over what the run's recipe says.
    Raises: ConfigError: not a run, one that is not finished, nobody was right, or more than one would learn.
        TrainerError: the student could not be trained.
    """
    with held(path) as folder:
        return _train(folder, overrides, progress)


def _train(folder: RunFolder, overrides: Sequence[str], progress: Progress) -> dict[str, Any]:
    manifest, began = folder.manifest, time.monotonic()
    settings, how = sections_of(folder, overrides, MAGDiSettings)
    student, rows = _rows(folder, settings, how.edges)
    base, agent = base_of(settings, progress), word(student)
    registry = Registry(folder.path / "adapters")
    version = registry.next_version
    training = Training(
        run_id=manifest.id,
        settings=settings,
        how=how,
        base=base,
        workplace=folder.path / "train" / f"magdi-{version}",
        jobs=[job_for(registry, adapter_name(agent, word(manifest.id), version), method="magdi")],
        rules={agent: (RULE,)},
    )
    write_rows(rows_of(training), agent, rows)
    nodes = sum(len(row.node_ids) for row in rows)
    progress.note(f"training v{version} on recorded debates: {agent} {len(rows)} with {nodes} answers")
    fit_on_ray(training, lambda: str(rows_of(training)))
    (trained,) = training.register(
        registry, recipe_hash=manifest.fingerprint, base_name=lambda _: base, parents={}, iteration=version
    )
    result = trained.result
    assert isinstance(result, MAGDiResult)
    terms = {name: [round(figures[0], 4), round(figures[-1], 4)] for name, figures in result.terms.items()}
    counts = {"answers": result.nodes, "pairs": result.pairs, "refused": result.refused}
    return told(folder, [trained]) | counts | terms | {"warnings": [], "wall_s": round(time.monotonic() - began, 2)}


def _rows(folder: RunFolder, settings: TrainSettings, edges: Edges) -> tuple[str, list[Interaction]]:
    """Who learns, and its debates in the order of the record."""
    found: dict[str, list[Interaction]] = {}
    num_debates = 0
    for stage in stages_to_learn_from(folder):
        for closed in recorded(folder, stage):
            num_debates += 1
            for student in settings.students(closed.debate.cast):
                row = interaction_of(closed.debate, student, options=settings, edges=edges)
                found.setdefault(student, []).extend([row] if row else [])
    if num_debates and len(found) != 1:
        raise ConfigError(
            f"{folder.path}: MAGDi makes one student of what all agents said, but {', '.join(found) or 'nobody'} would "
            "learn; name the one in train.agents"
        )
    if not any(found.values()):
        raise ConfigError(
            f"{folder.path}: none of its {num_debates} debates has an answer that is right by "
            f"train.label={settings.label}; debate other tasks, or choose another label"
        )
    return next(iter(found.items()))
