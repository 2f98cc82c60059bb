"""The debate graph: utterances as nodes, typed edges between them, a verdict at the end. It only ever grows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import msgspec

from protocols.answer import Answer
from protocols.errors import GraphError
from protocols.message import Message, Reply, Usage, assistant
from protocols.task import Task

if TYPE_CHECKING:
    import networkx as nx

SCHEMA_VERSION = 1  # raised when an old graph would be misread; added fields with defaults do not raise it

EdgeKind = Literal["memory", "saw", "summary", "critique", "reflection", "verdict"]
"""From the source's reply to the turn that used it. ``memory``: the speaker's own earlier turn, kept as chat history.
``saw``: the reply, shown as it was, be it another's or one's own. ``summary``, ``critique``, ``reflection``,
``verdict``: the source is a summary, a critique of somebody, a reflection on itself, a judgement, and was shown."""


class Utterance(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """A node: what one agent said, and what it was told just before.

    ``prompt`` holds only the messages this turn added. The whole conversation is that of the ``memory`` edge's source,
    then ``prompt``, then the reply: each message is kept once, however long the debate.
    """

    id: str  # unique in its debate: "<round>.<phase>.<agent>"
    agent: str
    role: str
    round: int  # the opening is round 0
    phase: str
    prompt: tuple[Message, ...]
    reply: Reply
    answer: Answer = Answer()
    correct: bool | None = None  # None: not graded, or nothing to grade against
    answers: bool = True  # a debater's answer to the task; False: a summary, a critique, a judgement, a failed try
    elided: int = 0  # messages of the chat, behind those that opened it, that were left out to fit the context


class Edge(msgspec.Struct, frozen=True, gc=False):
    """From an earlier utterance to a later one."""

    source: str
    target: str
    kind: EdgeKind


class Verdict(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a debate ended."""

    answer: str | None
    stop_reason: str  # "rounds", "budget", "failures" (all agents, in a later round), "no_replies", ...
    aggregator: str  # "majority_vote", ...
    support: int = 0  # votes for the answer
    votes: int = 0  # votes that could be read
    tie: bool = False  # several answers had the most votes; the seeded tie-break chose
    oracle: bool = False  # gold was used on the way
    correct: bool | None = None
    canonical: str = ""  # of the answer, where one was found: see protocols.machine.Replied
    details: dict[str, str] = {}  # what else was decided: the side that won, the reason given

    @property
    def as_answer(self) -> Answer:
        return Answer(self.answer, "verdict" if self.answer is not None else "", self.canonical)


class Debate(msgspec.Struct, kw_only=True):
    """The graph of one task under one protocol: append-only, closed by its verdict.

    Defaults are written out too: bytes without a schema version would later be taken for those of a newer schema.
    """

    id: str
    task: Task
    protocol: str
    seed: int
    cast: dict[str, tuple[str, ...]]
    utterances: list[Utterance] = msgspec.field(default_factory=list)
    edges: list[Edge] = msgspec.field(default_factory=list)
    failures: list[str] = msgspec.field(default_factory=list)  # asks that brought no reply, with the reason
    verdict: Verdict | None = None
    schema_version: int = SCHEMA_VERSION

    def add(self, utterance: Utterance, edges: Iterable[Edge]) -> None:
        """Append a node and the edges that lead to it.

        Raises: GraphError: the debate is closed, the id is taken, or an edge does not lead from an earlier node here.
        """
        known = {node.id for node in self.utterances}
        edges = list(edges)
        if self.verdict is not None:
            raise GraphError(f"debate {self.id!r} is closed; cannot add {utterance.id!r}")
        if utterance.id in known:
            raise GraphError(f"debate {self.id!r} already holds {utterance.id!r}")
        for edge in edges:
            if edge.source not in known or edge.target != utterance.id:
                raise GraphError(f"debate {self.id!r}: {edge} must lead from an earlier node to {utterance.id!r}")
        self.utterances.append(utterance)
        self.edges.extend(edges)

    def close(self, verdict: Verdict) -> None:
        """Raises: GraphError: closed already."""
        if self.verdict is not None:
            raise GraphError(f"debate {self.id!r} is closed already")
        self.verdict = verdict

    def utterance(self, node_id: str) -> Utterance:
        for node in self.utterances:
            if node.id == node_id:
                return node
        raise KeyError(node_id)

    def chat(self, node_id: str) -> list[Utterance]:
        """The turns of the chat that ends with this one, oldest first."""
        nodes = {node.id: node for node in self.utterances}
        memory = {edge.target: edge.source for edge in self.edges if edge.kind == "memory"}
        found = [nodes[node_id]]
        while (earlier := memory.get(found[-1].id)) is not None:
            found.append(nodes[earlier])
        return found[::-1]

    def conversation(self, node_id: str) -> list[Message]:
        """The chat exactly as it was sent for this node, oldest first, its own reply left out."""
        *before, asked = self.chat(node_id)
        told = [message for turn in before for message in (*turn.prompt, assistant(turn.reply.text))]
        head = len(before[0].prompt) if before else 0
        return [*told[:head], *told[head + asked.elided :], *asked.prompt]

    def turns(self, *, round: int | None = None, agent: str | None = None) -> Iterator[Utterance]:
        """The debaters' answers, optionally of one round or one agent, in the order they were recorded."""
        for node in self.utterances:
            if node.answers and (round is None or node.round == round) and (agent is None or node.agent == agent):
                yield node

    def usage(self) -> Usage:
        return sum((node.reply.usage for node in self.utterances), Usage())


class _Header(msgspec.Struct):
    """What every schema has: enough to say why a newer one cannot be read."""

    id: str
    schema_version: int = 1


_ENCODER = msgspec.msgpack.Encoder(order="deterministic")
_DECODER = msgspec.msgpack.Decoder(Debate)
_HEADER_DECODER = msgspec.msgpack.Decoder(_Header)
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode_debate(debate: Debate) -> bytes:
    """msgpack; equal debates give equal bytes."""
    return _ENCODER.encode(debate)


def decode_debate(data: bytes) -> Debate:
    """Raises: GraphError: not a debate, or one of a newer schema."""
    try:
        debate = _DECODER.decode(data)
    except _DECODE_ERRORS as err:
        with suppress(*_DECODE_ERRORS):  # a newer schema need not fit ours at all: say that before anything else
            _refuse_newer(_HEADER_DECODER.decode(data))
        raise GraphError(f"these {len(data)} bytes are not a debate: {err}") from err
    _refuse_newer(debate)
    return debate


def _refuse_newer(read: Debate | _Header) -> None:
    if read.schema_version > SCHEMA_VERSION:
        raise GraphError(
            f"debate {read.id!r} has schema version {read.schema_version}, this moot reads up to {SCHEMA_VERSION}; "
            "read it with the moot that wrote it, or a newer one"
        )


def to_networkx(debate: Debate) -> nx.MultiDiGraph[str]:
    """A view for analysis: nodes by utterance id with flat attributes, edges keyed by their kind."""
    import networkx as nx  # 0.3 s: only those who look pay for it

    verdict = debate.verdict
    graph: nx.MultiDiGraph[str] = nx.MultiDiGraph(
        id=debate.id, task=debate.task.id, protocol=debate.protocol, answer=verdict.answer if verdict else None
    )
    for node in debate.utterances:
        graph.add_node(
            node.id,
            agent=node.agent,
            role=node.role,
            round=node.round,
            phase=node.phase,
            text=node.reply.text,
            answer=node.answer.value,
            correct=node.correct,
            model=node.reply.model,
            adapter=node.reply.adapter,
            answers=node.answers,
            tokens=node.reply.usage.completion_tokens,
            details="; ".join(f"{name}: {value}" for name, value in node.answer.details.items()),
        )
    for edge in debate.edges:
        graph.add_edge(edge.source, edge.target, key=edge.kind, kind=edge.kind)
    return graph
