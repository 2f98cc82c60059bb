"""How likely the agents of a stage find each other's replies: scored with the trained base, kept with the results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from engine.debates.stage import recorded
from engine.learning.versions import base_folder, kept_by_service, registry_of, whole_model
from engine.live.progress import Progress
from engine.record.folder import RunFolder, write_atomically
from protocols.errors import ConfigError
from protocols.graph import Debate, Utterance
from trainers.record.registry import parse_name, weights_hash
from trainers.selection.example import Example
from trainers.tuning.likelihood import Likelihood, score_replies

NUM_REPLIES = 100  # of each speaker, the first on record: some thousand tokens, which tell hundredths of a nat
PRECISION = "float32"


def score_stage(run: Path, stage: str, *, num_replies: int, base: Path | None, progress: Progress) -> dict[str, Any]:
    """Score a stage's answers under every adapter that spoke in it, and under the base; replaces an earlier scoring.

    Args:
        stage: "" for the last evaluation.
        base: the base's folder; default: what the run trained.
    Raises: ConfigError: not a run, nothing trained, or no such stage. TrainerError: see ``score_replies``.
    """
    registry, folder = registry_of(run), RunFolder.open(run)
    stages = [path.name for path in (run / "journal").glob("*") if path.is_dir()]
    evaluations = sorted((name for name in stages if name.startswith("eval")), key=lambda name: (len(name), name))
    stage = stage or next(reversed(evaluations), "")
    if stage not in stages:
        raise ConfigError(f"{run} has no stage {stage!r}; it has: {', '.join(sorted(stages)) or 'none'}")
    if hosted := next((record for record in registry.list() if record.model), None):
        raise kept_by_service(hosted, "nobody here can find its replies likely or not")
    if whole := next((record for record in registry.list() if record.whole), None):
        raise whole_model(registry, whole, "its replies cannot be scored over a base that it shares with others")
    base = base or base_folder(registry.list()[0])
    base_hash = weights_hash(base)
    replies, adapters = _spoken((item.debate for item in recorded(folder, stage)), num_replies)
    paths = {
        speaker: registry.folder_of(registry.get(name, base_hash=base_hash, base_model=str(base)))
        for speaker, name in adapters.items()
    }
    progress.note(f"{stage}: reading {sum(map(len, replies.values()))} replies as {len(paths) + 1} agents")

    from trainers.jobs.worker import quiet
    from trainers.tuning.sft import load_base

    quiet()
    found = score_replies(*load_base(str(base), PRECISION), replies, paths)
    file = likelihoods_file(run, stage)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, msgspec.json.format(msgspec.json.encode(found), indent=2))
    return {"run": str(run), "stage": stage, "likelihoods": msgspec.to_builtins(found)}


def likelihoods_file(run: Path, stage: str) -> Path:
    return run / "results" / "likelihoods" / f"{stage}.json"


def read_likelihoods(run: Path, stage: str) -> tuple[Likelihood, ...]:
    """What was scored of a stage; nothing where nothing was."""
    file = likelihoods_file(run, stage)
    return msgspec.json.decode(file.read_bytes(), type=tuple[Likelihood, ...]) if file.exists() else ()


def _spoken(debates: Iterable[Debate], num_replies: int) -> tuple[dict[str, list[Example]], dict[str, str]]:
    """Speaker -> its answers, and the speakers' adapters. An agent that speaks with two adapters is two speakers."""
    replies: dict[str, list[Example]] = {}
    adapters: dict[str, str] = {}
    for debate in debates:
        for node in debate.turns():
            name = node.reply.adapter
            speaker = "{} v{}".format(*parse_name(name)) if name else node.agent
            if name:
                adapters[speaker] = name
            if len(said := replies.setdefault(speaker, [])) < num_replies:
                said.append(_example(debate, node))
    return dict(sorted(replies.items())), dict(sorted(adapters.items()))


def _example(debate: Debate, node: Utterance) -> Example:
    return Example(
        id=f"{debate.id}:{node.id}",
        agent=node.agent,
        rule="",
        debate_id=debate.id,
        node_ids=(node.id,),
        prompt=tuple(debate.conversation(node.id)),
        completion=node.reply.text,
        token_ids=node.reply.token_ids,
        finish_reason=node.reply.finish_reason,
    )
