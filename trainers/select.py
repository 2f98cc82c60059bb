"""What to learn from: pure rules that turn one finished debate into examples. No model, no disk, no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import msgspec

from protocols.answer import same
from protocols.dialectic import bracketed, chain_of_debate
from protocols.errors import ConfigError
from protocols.formats.chats import chain_chat, pair_chats
from protocols.graph import Debate, Utterance
from protocols.message import FinishReason, Message


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One training row: what an agent was sent, what it said, and which rule chose it from where.

    ``token_ids`` and ``logprobs`` are both [T] as they were sampled (end-of-turn token included), natural logarithms;
    both are empty where the backend did not tell, and the completion is then tokenised from ``completion``.
    """

    id: str  # "<debate>:<node>:<rule>"; where a node gives several rows, ":<number>" behind it
    agent: str
    rule: str
    debate_id: str
    node_ids: tuple[str, ...]
    prompt: tuple[Message, ...]
    completion: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish_reason: FinishReason = "stop"
    weight: float = 1.0


class Rule(Protocol):
    """A rule sees one debate and one agent, and returns that agent's rows in the order of the debate."""

    def __call__(self, debate: Debate, agent: str, *, min_support: int = 1) -> list[Example]: ...


def generator_examples(debate: Debate, agent: str, *, min_support: int = 1) -> list[Example]:
    """The agent's own openings whose answer is the one the debate ended on.

    The label is the debate's vote alone: neither gold nor ``correct`` is looked at, and a verdict that used gold on
    the way (``oracle``) teaches nothing here. An unparsed opening is never taken; a debate without an answer gives
    nothing. An agent that sits in several seats of the debate has several openings.

    Args:
        min_support: votes the winning answer needs, at least; 1 takes every verdict.
    Source: Subramaniam et al. 2025 (MAFT), arXiv:2501.05707, sec. 2.2, the generators' sets. ``min_support`` is ours.
    """
    verdict = debate.verdict
    if verdict is None or verdict.answer is None or verdict.oracle or verdict.support < min_support:
        return []
    winner, tolerance = verdict.as_answer, debate.task.tolerance
    return [
        _example(debate, node, rule="generator")
        for node in debate.turns(round=0, agent=agent)
        if same(node.answer, winner, tolerance=tolerance)
    ]


def chain_examples(debate: Debate, agent: str, *, min_support: int = 1) -> list[Example]:
    """The chain that the debate was condensed to, under the task alone with its images; for its condenser.

    A chain whose bracketed answer is not the verdict's is left out, as is one of a debate that used gold.

    Args:
        min_support: debaters whose last answer is the verdict's, at least.
    Source: M2D-DKTL's released code, which trains its student on every chain; that chain and verdict must agree is
        ours, as is ``min_support``.
    """
    node, chat, verdict = chain_of_debate(debate), chain_chat(debate), debate.verdict
    if node is None or chat is None or node.agent != agent:
        return []
    if verdict is None or verdict.answer is None or verdict.oracle or verdict.support < min_support:
        return []
    concludes = bracketed(node.reply.text, debate.task, only=True)
    if not same(concludes, verdict.as_answer, tolerance=debate.task.tolerance):
        return []
    return [_retold(debate, node, chat, rule="chain")]


def rewritten_examples(debate: Debate, agent: str, *, min_support: int = 1) -> list[Example]:
    """The pairs that were kept of a rewritten item, with its images: instruction -> response; for its rewriter.

    The rounds of a dialogue (category ocr) are a row each, under those before it. An item whose gold answer the
    rewriter was told gives nothing. ``min_support`` is not asked for: every pair was judged by itself.

    Source: Guo et al. 2024 (MAmmoTH-VL), arXiv:2412.05237, sec. 2.
    """
    nodes = [node for node in debate.utterances if node.role == "rewriter"]
    if not nodes or nodes[-1].agent != agent or debate.verdict is None or debate.verdict.oracle:
        return []
    turns = [chat[:end] for chat in pair_chats(debate) for end in range(2, len(chat) + 1, 2)]
    return [
        _retold(debate, nodes[-1], turn, rule="rewritten", number=f":{number}") for number, turn in enumerate(turns)
    ]


RULES: Mapping[str, Rule] = MappingProxyType(
    {"generator": generator_examples, "chain": chain_examples, "rewritten": rewritten_examples}
)
"""Name in a recipe -> rule. A new one adds its line here."""


def select(rule: str, debate: Debate, *, min_support: int = 1) -> dict[str, list[Example]]:
    """A rule applied for every agent of the debate; agents without a row are left out.

    A task that is held out teaches nobody anything, whatever the rule.

    Raises: ConfigError: no such rule, or ``min_support`` below 1.
    """
    if rule not in RULES:
        raise ConfigError(f"train.rule={rule!r} is not known; use one of: {', '.join(sorted(RULES))}")
    if min_support < 1:
        raise ConfigError(f"train.min_support={min_support} must be at least 1; use 1 to take every verdict")
    if debate.task.held_out:
        return {}
    agents = dict.fromkeys(agent for cast in debate.cast.values() for agent in cast)
    chosen = {agent: RULES[rule](debate, agent, min_support=min_support) for agent in agents}
    return {agent: examples for agent, examples in chosen.items() if examples}


def _example(debate: Debate, node: Utterance, *, rule: str) -> Example:
    reply = node.reply
    return Example(
        id=f"{debate.id}:{node.id}:{rule}",
        agent=node.agent,
        rule=rule,
        debate_id=debate.id,
        node_ids=(node.id,),
        prompt=tuple(debate.conversation(node.id)),
        completion=reply.text,
        token_ids=reply.token_ids,
        logprobs=reply.logprobs,
        finish_reason=reply.finish_reason,
    )


def _retold(debate: Debate, node: Utterance, chat: Sequence[Message], *, rule: str, number: str = "") -> Example:
    """A row whose last message a node gave under another prompt; its tokens are for the student's tokenizer to find."""
    completion, reply = chat[-1].text, node.reply
    ends = reply.text.rstrip().endswith(completion.rstrip())  # where the reply was cut off, so was the row at its end
    return Example(
        id=f"{debate.id}:{node.id}:{rule}{number}",
        agent=node.agent,
        rule=rule,
        debate_id=debate.id,
        node_ids=(node.id,),
        prompt=tuple(chat[:-1]),
        completion=completion,
        finish_reason=reply.finish_reason if ends else "stop",
    )
