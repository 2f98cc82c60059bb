"""A stage is read by those who spoke in it, each with the adapter it spoke with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.results.likelihoods import _spoken, likelihoods_file, read_likelihoods
from protocols.graph import Debate
from tests.engine.command import moot
from tests.engine.learning.test_training import debate, folder_with
from tests.engine.results.test_adapters import add
from tests.trainers.conftest import make_tiny_model
from tests.trainers.tuning.test_likelihood import make_adapter
from trainers.record.registry import Registry, weights_hash


def tuned(made: Debate, **adapters: str) -> Debate:
    """The debate as agents with these adapters would have held it."""
    nodes = [
        msgspec.structs.replace(
            node,
            reply=msgspec.structs.replace(node.reply, adapter=adapters.get(node.agent, ""), token_ids=(), logprobs=()),
        )
        for node in made.utterances
    ]
    return msgspec.structs.replace(made, utterances=nodes)


DEBATES = [tuned(debate(name, ("2", "2", "3")), ada="ada@r-v1", bo="bo@r-v2") for name in "abc"]


def test_speakers_are_known_by_the_version_that_spoke() -> None:
    replies, adapters = _spoken(DEBATES, 2)
    assert adapters == {"ada v1": "ada@r-v1", "bo v2": "bo@r-v2"}
    asked = {speaker: [example.debate_id for example in said] for speaker, said in replies.items()}
    assert asked == {speaker: ["debate/a", "debate/b"] for speaker in ("ada v1", "bo v2", "cy")}
    assert replies["cy"][0].completion == r"\boxed{3}" and "1 + 1" in replies["cy"][0].prompt[-1].text


def test_what_cannot_be_scored_says_why(tmp_path: Path) -> None:
    folder_with(tmp_path, DEBATES, stage="eval-0")
    said = moot("adapters", "score", tmp_path).stderr
    assert "has no adapters; train some" in said and len(said.splitlines()) == 1
    path = tmp_path / "adapters/ada/v1"
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").touch()
    (path / "adapter_config.json").touch()
    add(Registry(tmp_path / "adapters"), "ada@r-v1", path, "nowhere", "b" * 64)
    assert "has no stage 'eval-3'; it has: eval-0" in moot("adapters", "score", tmp_path, "--stage", "eval-3").stderr
    assert "its base 'nowhere' is no folder here; name one with --base" in moot("adapters", "score", tmp_path).stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_stage_is_scored_and_kept(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    run = tmp_path / "run"
    folder_with(run, DEBATES, stage="eval-1")
    registry = Registry(run / "adapters")
    for seed, (agent, version) in enumerate((("ada", 1), ("bo", 2))):
        path = make_adapter(base, run / "adapters" / agent / f"v{version}", seed)
        add(registry, f"{agent}@r-v{version}", path, str(base), weights_hash(base))
    result = moot("adapters", "score", run, "--replies", "2", "--json")
    assert result.exit_code == 0, result.output
    outcome: dict[str, Any] = json.loads(result.stdout)
    pairs = [(row["speaker"], row["reader"]) for row in outcome["likelihoods"]]
    assert pairs == [(s, r) for s in ("ada v1", "bo v2", "cy") for r in ("ada v1", "bo v2", "base")]
    kept = read_likelihoods(run, "eval-1")
    assert msgspec.to_builtins(list(kept)) == outcome["likelihoods"] and likelihoods_file(run, "eval-1").is_file()
    own = {row.speaker: row.kl for row in kept if row.reader in (row.speaker, "base" if row.speaker == "cy" else "")}
    assert own == {"ada v1": 0.0, "bo v2": 0.0, "cy": 0.0}
    assert all(row.kl > 0 for row in kept if (row.speaker, row.reader) in {("ada v1", "bo v2"), ("cy", "ada v1")})
