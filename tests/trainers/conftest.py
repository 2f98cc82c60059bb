"""What several tests of trainers share: hand-made debates and examples, and a model of 100k random weights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocols.answer import parse_answer
from protocols.graph import Debate, Utterance, Verdict
from protocols.message import Reply, user
from protocols.task import Task
from trainers.selection.example import Example

if "RAY_AUTH_TOKEN_PATH" not in os.environ:
    # Ray reads these once, when it is first imported; without a path it would write a token into the home folder.
    _token = Path(tempfile.mkdtemp(prefix="moot-ray-")) / "token"
    _token.write_text("0" * 64)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(_token), RAY_USAGE_STATS_ENABLED="0")

MakeExample = Callable[..., Example]
MakeDebate = Callable[..., Debate]

TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def _make_example(index: int, *, agent: str = "ada", **changes: Any) -> Example:
    fields: dict[str, Any] = {
        "id": f"d{index}:0.answer.0:generator",
        "agent": agent,
        "rule": "generator",
        "debate_id": f"d{index}",
        "node_ids": ("0.answer.0",),
        "prompt": (user(f"What is {index} + {index}?"),),
        "completion": f"It is {2 * index}.",
    }
    return Example(**(fields | changes))


def _make_debate(openings: list[tuple[str, str]], answer: str | None, *, id: str = "d", **changes: Any) -> Debate:
    """One opening per (agent, text), closed with ``answer``."""
    agents = tuple(agent for agent, _ in openings)
    debate = Debate(
        id=id,
        task=Task(id=id, question="6 * 7?", gold=changes.pop("gold", ("42",))),
        protocol="society",
        seed=0,
        cast={"generator": agents},
    )
    for seat, (agent, text) in enumerate(openings):
        node_id = f"0.answer.{seat}"
        reply = Reply(ask_id=f"{id}#{node_id}", text=text, model="m", token_ids=(7, 8), logprobs=(-0.5, -0.25))
        node = Utterance(
            id=node_id,
            agent=agent,
            role="generator",
            round=0,
            phase="answer",
            prompt=(user("6 * 7?"),),
            reply=reply,
            answer=parse_answer(text, "number"),
            correct=changes.get("correct"),
        )
        debate.add(node, ())
    if answer != "open":
        verdict = {"answer": answer, "stop_reason": "rounds", "aggregator": "majority_vote", "support": 2} | changes
        debate.close(Verdict(**verdict))
    return debate


@pytest.fixture(scope="session")
def make_example() -> MakeExample:
    return _make_example


@pytest.fixture(scope="session")
def make_debate() -> MakeDebate:
    return _make_debate


def device() -> str:
    """Where trainings compute: tests of them run on a GPU where there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def loaded(folder: Path, precision: str = "float32", **how: Any) -> tuple[Any, Any]:
    """A base and its tokenizer, where trainings put it."""
    from trainers.tuning.sft import load_base

    model, tokenizer = load_base(str(folder), precision, **how)
    return model.to(device()), tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def make_tiny_model(folder: Path) -> Path:
    """A random two-layer Llama and a byte-level tokenizer that has a chat template, in a folder."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|start|>", "<|end|>", "<|pad|>")])
    make_fast: Any = PreTrainedTokenizerFast  # untyped
    fast = make_fast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|start|>"]})
    fast.chat_template = TEMPLATE
    torch.set_num_threads(1)  # with two, they wait for each other; on a busy machine ten times as long as they work
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=True,
    )
    make_model: Any = LlamaForCausalLM  # untyped
    make_model(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
