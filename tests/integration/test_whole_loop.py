"""A loop that trains all weights of an agent's own model: what it learned speaks, and is learned on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocols.graph import Debate, Utterance
from tests.integration.command import RunOnDisk, command_here

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]

RECIPE = """
name: whole
seed: 5
tasks: {source: arithmetic, level: mixed10, train: 6, test: 1}
models:
  tiny: {backend: transformers, model: BASE, threads: 1}
  simulated: {backend: scripted, skill: 1.0}
agents:
  ada: {model: tiny, max_tokens: 8, temperature: 0}
  bo: {model: simulated}
  cy: {model: simulated}
protocol: {name: society, rounds: 1}
cast: {generator: [ada, bo, cy]}
train: {rule: majority, agents: [ada], threads: 1}
sft: {method: full, epochs: 1, batch_size: 2, max_length: 512, learning_rate: 0.003}
loop: {iterations: 2, init_from: previous}
run: {colocate: release}
"""


def log_probs(model: Path, debate: Debate, node: Utterance) -> Any:
    """[T]: of the tokens that were said, by a model from its folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    chat = [{"role": message.role, "content": message.text} for message in debate.conversation(node.id)]
    prompt = AutoTokenizer.from_pretrained(model).apply_chat_template(
        chat, add_generation_prompt=True, return_dict=False
    )
    said = list(node.reply.token_ids)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model)(torch.tensor([prompt + said])).logits[0]
    scores = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return scores[torch.arange(len(said)), torch.tensor(said)]


def test_what_was_learned_speaks_and_is_learned_on_from(tmp_path: Path, tiny_model: Path, local_ray: Any) -> None:
    import torch

    (tmp_path / "whole.yaml").write_text(RECIPE.replace("BASE", str(tiny_model)))
    run = RunOnDisk(tmp_path / "r")
    outcome = command_here("loop", tmp_path / "whole.yaml", "--run-dir", run.path)
    assert outcome["warnings"] == []
    first, second = run.json("adapters/registry.json")
    assert (first["name"], first["whole"], first.get("parent")) == ("ada@r-v1", True, None)
    assert (second["name"], second["whole"], second["parent"]) == ("ada@r-v2", True, "ada@r-v1")
    folders = [tiny_model, *(run.path / "adapters" / record["path"] for record in (first, second))]
    for number, speaker in enumerate(("", "ada@r-v1", "ada@r-v2")):
        (debate,) = run.debates(f"eval-{number}").values()
        (node,) = (node for node in debate.utterances if node.agent == "ada")
        assert node.reply.adapter == speaker
        recorded = torch.tensor(node.reply.logprobs)
        gaps = [(log_probs(folder, debate, node) - recorded).abs().max().item() for folder in folders]
        assert gaps[number] < 1e-4 and min(gaps[:number] + gaps[number + 1 :]) > 1e-2
