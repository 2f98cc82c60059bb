"""Stages of runs side by side: accuracy and its paired change, debates against their controls, diversity, cost.

Everything is read from what the runs left behind; nothing is asked. The others are held against the first side.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.record.folder import Manifest, RunFolder
from engine.record.stage_names import order_of
from engine.results.evaluate import FINAL_VOTE, SINGLE_AGENT, Difference, Evaluation, paired
from engine.results.likelihoods import read_likelihoods
from protocols.errors import ConfigError
from protocols.statistics import Statistics
from trainers.tuning.likelihood import Likelihood

OPENING_VOTE = "vote, round 0"  # as many samples as there are agents, and no debate


class Diversity(msgspec.Struct, frozen=True, kw_only=True):
    """How far the answers of one round differed, means over debates; None where there is nothing to compare."""

    consensus: float | None  # share of the agents whose answer is that of the round's vote
    pairwise_disagreement: float | None  # share of the pairs of answers that are not equal
    entropy_bits: float
    wording_distance: float | None  # of the pairs, see ``protocols.diversity``


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a debate took, means; rates are over the whole stage, of what was not on record before."""

    replies: float | None = None
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    openings: float | None = None  # tokens generated, in those of one opening answer
    usd: float | None = None
    wall_s: float | None = None  # of the stage
    completion_tokens_per_s: float | None = None
    debates_per_s: float | None = None


def diversity_of(found: Statistics, consensus: Mapping[int, float] | None = None) -> dict[int, Diversity]:
    """By round; ``consensus`` is that of each, where it was evaluated."""
    return {
        number: Diversity(
            consensus=(consensus or {}).get(number),
            pairwise_disagreement=1 - one.equal_pairs / one.pairs if one.pairs else None,
            entropy_bits=one.entropy_bits / one.debates,
            wording_distance=one.wording_distance / one.worded_pairs if one.worded_pairs else None,
        )
        for number, one in found.rounds.items()
    }


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluated stage of one run."""

    label: str
    run: Path
    stage: str
    manifest: Manifest
    evaluation: Evaluation
    statistics: Statistics
    likelihoods: tuple[Likelihood, ...]

    @property
    def tasks(self) -> set[str]:
        """Those that were graded, whoever answered."""
        return {task for figure in self.evaluation.figures for task in figure.scores}

    @property
    def diversity(self) -> dict[int, Diversity]:
        """By round."""
        return diversity_of(self.statistics, {found.round: found.consensus for found in self.evaluation.rounds})

    @property
    def cost(self) -> Cost:
        found, done = self.statistics, self.manifest.done.get(self.stage, {})
        if not (number := found.num_debates):
            return Cost()
        wall_s, new, usd = done.get("wall_s"), done.get("new"), done.get("cost_usd")
        return Cost(
            replies=found.spent.calls / number,
            prompt_tokens=found.spent.prompt_tokens / number,
            completion_tokens=found.spent.completion_tokens / number,
            openings=found.cost_ratio,
            usd=None if usd is None else usd / number,
            wall_s=wall_s,
            completion_tokens_per_s=new["completion_tokens"] / wall_s if wall_s and new else None,
            debates_per_s=new["debates"] / wall_s if wall_s and new else None,
        )


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A measure of one side against one of another side, or of the same."""

    before: str  # label of the side
    before_measure: str
    after: str
    after_measure: str
    difference: Difference


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """All there is to say of some sides."""

    sides: tuple[Side, ...]
    changes: tuple[Change, ...]  # from the first side to each of the others, of every measure that both have
    controls: tuple[Change, ...]  # of each side, from what its replies give without a debate to its final vote
    notes: tuple[str, ...]

    def outcome(self) -> dict[str, Any]:
        """For programs. Scores of single tasks are left out: the runs' folders hold them."""
        return {
            "sides": {side.label: _told(side) for side in self.sides},
            "changes": msgspec.to_builtins(self.changes),
            "controls": msgspec.to_builtins(self.controls),
            "notes": list(self.notes),
        }


def compare_runs(specs: Sequence[str]) -> Compared:
    """Hold stages of runs against the first one.

    Args:
        specs: each ``RUN`` or ``RUN:STAGE``. Of a run without a stage it is the last evaluation; of one run alone, all.
    Raises: ConfigError: no such run or stage, nothing evaluated, fewer than two sides, or no task in common.
    """
    found = describe_runs(specs)
    if len(found.sides) < 2:
        only = found.sides[0].label
        raise ConfigError(f"{only} is the only evaluation of {specs[0]}; name another run to compare it with")
    return found


def describe_runs(specs: Sequence[str]) -> Compared:
    """The same, though there be a single side: then nothing has changed from it. Raises: ConfigError: as there."""
    sides = _told_apart([side for spec in specs for side in _sides(spec, all_stages=len(specs) == 1)])
    first, others = sides[0], sides[1:]
    return Compared(
        notes=(*(note for side in others for note in _common(first, side)), *_own_notes(sides)),
        sides=sides,
        changes=tuple(change for other in others for change in _changes(first, other)),
        controls=tuple(change for side in sides for change in _controls(side)),
    )


def _told_apart(sides: Sequence[Side]) -> tuple[Side, ...]:
    """Runs of one name go by their paths. Raises: ConfigError: a stage is there twice."""
    named = Counter(side.label for side in sides)
    apart = tuple(
        msgspec.structs.replace(side, label=f"{side.run}:{side.stage}") if named[side.label] > 1 else side
        for side in sides
    )
    label, times = Counter(side.label for side in apart).most_common(1)[0]
    if times > 1:
        raise ConfigError(f"{label} is named {times} times; name another run or stage to compare it with")
    return apart


def _sides(spec: str, *, all_stages: bool) -> list[Side]:
    path, stage = Path(spec), ""
    if not path.exists() and ":" in spec:
        before, _, stage = spec.rpartition(":")
        spec, path = before, Path(before)
    if not spec:
        raise ConfigError("a run's path is empty; give each as RUN or RUN:STAGE")
    folder = RunFolder.open(path)
    known = _evaluated(folder)
    if not known:
        raise ConfigError(f"{path} holds no evaluation yet; finish it with `moot resume {path}`")
    if stage and stage not in known:
        raise ConfigError(f"{path} holds no evaluation {stage!r}; there is: {', '.join(known)}")
    return [side_of(folder, name) for name in ([stage] if stage else known if all_stages else known[-1:])]


def _evaluated(folder: RunFolder) -> list[str]:
    """Stages with an evaluation, in the order they were held."""
    names = [file.stem for file in (folder.path / "results").glob("*.json") if not file.stem.endswith("-statistics")]
    return sorted(names, key=order_of)


def side_of(folder: RunFolder, stage: str) -> Side:
    """A stage that was evaluated, as its results tell."""
    results = folder.path / "results"
    statistics = results / f"{stage}-statistics.json"
    return Side(
        label=f"{folder.path.resolve().name}:{stage}",
        run=folder.path,
        stage=stage,
        manifest=folder.manifest,
        evaluation=msgspec.json.decode((results / f"{stage}.json").read_bytes(), type=Evaluation),
        statistics=msgspec.json.decode(statistics.read_bytes(), type=Statistics)
        if statistics.exists()
        else Statistics(),
        likelihoods=read_likelihoods(folder.path, stage),
    )


def _common(first: Side, other: Side) -> Iterator[str]:
    """What there is to say of the tasks of two sides. Raises: ConfigError: they share none."""
    common = first.tasks & other.tasks
    if not common:
        raise ConfigError(
            f"{first.label} and {other.label} have no graded task in common ({len(first.tasks)} and "
            f"{len(other.tasks)} of their own); compare runs with the same tasks, seed and held-out part"
        )
    if first.tasks != other.tasks:
        yield (
            f"{first.label} graded {len(first.tasks)} tasks and {other.label} {len(other.tasks)}; changes are over the "
            f"{len(common)} that both have"
        )
    named = [(side.manifest.recipe.get("tasks"), side.manifest.files.get("task_files")) for side in (first, other)]
    if named[0] != named[1]:
        yield f"{first.label} and {other.label} describe their tasks differently; they are paired by task id"


def _own_notes(sides: Sequence[Side]) -> Iterator[str]:
    for side in sides:
        if side.evaluation.num_oracle:
            yield f"{side.label}: {side.evaluation.num_oracle} debates used gold on the way: no measure of skill"
    spent = {side.label: side.cost.replies for side in sides}
    if len({round(number, 1) for number in spent.values() if number is not None}) > 1:
        shown = ", ".join(f"{label} {number:.1f}" for label, number in spent.items() if number is not None)
        yield f"replies a task differ: {shown}; a baseline's protocol.match draws as many as a debate"


def _changes(before: Side, after: Side) -> Iterator[Change]:
    for figure in after.evaluation.figures:
        if (known := before.evaluation.figure(figure.name)) is not None:
            yield Change(
                before=before.label,
                before_measure=known.name,
                after=after.label,
                after_measure=figure.name,
                difference=paired(known, figure),
            )


def _controls(side: Side) -> Iterator[Change]:
    """One round has no debate in it."""
    final = side.evaluation.figure(FINAL_VOTE)
    if final is None or len(side.evaluation.rounds) < 2:
        return
    for name in (OPENING_VOTE, SINGLE_AGENT):
        if (control := side.evaluation.figure(name)) is not None:
            yield Change(
                before=side.label,
                before_measure=name,
                after=side.label,
                after_measure=FINAL_VOTE,
                difference=paired(control, final),
            )


def _told(side: Side) -> dict[str, Any]:
    figures = [msgspec.to_builtins(figure) for figure in side.evaluation.figures]
    return {
        "run": str(side.run),
        "stage": side.stage,
        "debates": side.evaluation.num_debates,
        "figures": [{key: value for key, value in figure.items() if key != "scores"} for figure in figures],
        "diversity": {str(number): msgspec.to_builtins(found) for number, found in side.diversity.items()},
        "likelihoods": msgspec.to_builtins(side.likelihoods),
        "cost": msgspec.to_builtins(side.cost),
    }
