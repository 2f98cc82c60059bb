"""The symmetric society: N agents answer alone, then revise M - 1 times having seen the others; the majority decides.

Sources: Du et al. 2023, arXiv:2305.14325, sec. 2.1 (the debate); Subramaniam et al. 2025 (MAFT), arXiv:2501.05707, sec.
2 (summaries of the others, a generator for round 0 and a critic after it, the vote over the last round).

Departures. Rounds are strict snapshots, summaries included: MAFT's released summariser reads replies of the same round.
An unparsed reply does not vote; a tie is broken with the debate's seed (MAFT's code takes the greatest string). An
agent that fails or is late leaves the debate, the others go on. Peers are shown in an order drawn per agent and round.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import msgspec

from protocols.answer import PARSERS, Answer, grade, parse_answer
from protocols.errors import ConfigError, TaskError
from protocols.graph import Edge, Utterance, Verdict
from protocols.machine import (
    AgentFailed,
    BudgetSpent,
    Close,
    Command,
    DeadlinePassed,
    Event,
    Machine,
    Opened,
    Phase,
    Record,
    Replied,
    Request,
    Transitions,
    derive_seed,
)
from protocols.message import Ask, Message, Reply, Sampling, assistant, system, user
from protocols.prompt import PromptSet
from protocols.task import Task
from protocols.vote import TieBreak, majority_vote


class SocietyPhase(Phase):
    WAITING = "waiting"  # for the task
    ANSWERING = "answering"  # everyone answers: alone in round 0, having seen the others after it
    SUMMARISING = "summarising"  # the others' replies are condensed, once for each agent
    CLOSED = "closed"


_WAITING, _ANSWERING, _SUMMARISING, _CLOSED = SocietyPhase

TRANSITIONS: Transitions = {
    (_WAITING, Opened): frozenset({_ANSWERING}),
    (_ANSWERING, Replied): frozenset({_ANSWERING, _SUMMARISING, _CLOSED}),
    (_ANSWERING, AgentFailed): frozenset({_ANSWERING, _SUMMARISING, _CLOSED}),
    (_ANSWERING, DeadlinePassed): frozenset({_ANSWERING, _SUMMARISING, _CLOSED}),
    (_ANSWERING, BudgetSpent): frozenset({_CLOSED}),
    (_SUMMARISING, Replied): frozenset({_SUMMARISING, _ANSWERING}),
    (_SUMMARISING, AgentFailed): frozenset({_SUMMARISING, _ANSWERING}),
    (_SUMMARISING, DeadlinePassed): frozenset({_ANSWERING}),
    (_SUMMARISING, BudgetSpent): frozenset({_CLOSED}),
}


class Player(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as a protocol knows it: a name, how its replies are drawn, and who it is told to be."""

    name: str
    sampling: Sampling = Sampling()
    persona: str = ""


SLOTS: Mapping[str, frozenset[str]] = {
    "system": frozenset(),
    "opening": frozenset({"question"}),
    "revise": frozenset({"question", "peers", "own"}),
    "self_check": frozenset({"question", "own"}),
    "peer": frozenset({"number", "reply"}),
    "summarise": frozenset({"question", "peers"}),
}
"""What the prompt set may say, and the slots it may use."""


class SocietySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The society's settings; the defaults are MAFT's but for summaries, which double the calls."""

    rounds: int = 2  # the opening included
    memory: Literal["chat", "stateless"] = "chat"  # stateless: each turn is one message; its own last reply is a slot
    summarize: bool = False  # P9: show each agent a summary of the others instead of their replies
    max_peers: int = 5  # others shown at most, drawn at random
    tie_break: TieBreak = "seeded"
    deadline_s: float = 600.0  # of each phase; agents that are later leave the debate
    prompts: str = "society.number.en"

    def __post_init__(self) -> None:
        for name, value in (("rounds", self.rounds), ("max_peers", self.max_peers)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if not self.deadline_s > 0:  # NaN is refused with the rest
            raise ValueError(f"deadline_s={self.deadline_s:g} must be above 0")


class _Turn(msgspec.Struct):
    """An ask on its way: who for, and what its node will hold beside the reply."""

    member: int
    node_id: str
    agent: str
    role: str
    prompt: tuple[Message, ...]
    edges: tuple[Edge, ...]
    reply: Reply | None = None


class Society(Machine):
    """One debate of the society.

    Args:
        settings: see ``SocietySettings``.
        cast: ``generator``: N players, who open; ``critic``: N players, who revise, paired with the generators by
            index (default: the same); ``summariser``: one player, needed where ``summarize`` is on.
        prompts: a set with the parts of ``SLOTS``.
    Raises: ConfigError: the cast does not fit.
    """

    NAME = "society"
    SOURCE = "Du et al. 2023, arXiv:2305.14325; Subramaniam et al. 2025, arXiv:2501.05707"
    START, END = _WAITING, _CLOSED
    TRANSITIONS = TRANSITIONS
    ROLES: ClassVar[dict[str, str]] = {
        "generator": "answers alone in round 0",
        "critic": "revises after it, having seen the others; default: the generators",
        "summariser": "condenses the others' replies, where summarize is on",
    }

    def __init__(self, settings: SocietySettings, cast: Mapping[str, tuple[Player, ...]], prompts: PromptSet) -> None:
        super().__init__()
        _check_cast(settings, cast)
        self._settings, self._prompts = settings, prompts
        self._generators = cast["generator"]
        self._critics = cast.get("critic") or self._generators
        self._summariser = cast["summariser"][0] if settings.summarize else None
        self._task = Task(id="", question="")
        self._debate_id, self._seed, self._round = "", 0, 0
        self._members = list(range(len(self._generators)))  # still in the debate
        self._chats: list[tuple[Message, ...]] = [() for _ in self._generators]  # what each has heard and said
        self._said: list[_Turn | None] = [None for _ in self._generators]  # each one's latest turn
        self._ballots = [Answer() for _ in self._generators]  # and the answer read from it
        self._turns: dict[str, _Turn] = {}  # of this phase, by ask id, in the cast's order

    def check(self, event: Event) -> None:
        """Raises: TaskError: nobody could read the answers to this task. Otherwise as in ``Machine``."""
        super().check(event)
        if isinstance(event, Opened) and event.task.answer_format not in PARSERS:
            raise TaskError(
                f"task {event.task.id!r}: answer_format={event.task.answer_format!r} must be one of "
                f"{', '.join(PARSERS)}"
            )

    def _handlers(self) -> Mapping[type[Event], Callable[[Any], list[Command]]]:
        return {
            Opened: self._opened,
            Replied: self._replied,
            AgentFailed: self._failed,
            DeadlinePassed: lambda _: self._end_phase(),
            BudgetSpent: lambda _: [*self._record_turns(), *self._close("budget")],
        }

    def _opened(self, event: Opened) -> list[Command]:
        self._task, self._debate_id, self._seed = event.task, event.debate_id, event.seed
        return self._begin_answering({})

    def _replied(self, event: Replied) -> list[Command]:
        del self.outstanding[event.reply.ask_id]
        self._turns[event.reply.ask_id].reply = event.reply
        return [] if self.outstanding else self._end_phase()

    def _failed(self, event: AgentFailed) -> list[Command]:
        del self.outstanding[event.failure.ask_id]
        return [] if self.outstanding else self._end_phase()

    def _end_phase(self) -> list[Command]:
        """Everyone replied, failed or is late: record what was said in the cast's order, then go on."""
        commands = self._record_turns()
        replied = {turn.member: turn for turn in self._turns.values() if turn.reply is not None}
        if self.phase == _SUMMARISING:  # who got no summary is shown the replies themselves
            return [*commands, *self._begin_answering(replied)]
        self._members = [member for member in self._members if member in replied]
        if not self._members:  # what was said before still counts
            self._members = [member for member, turn in enumerate(self._said) if turn is not None]
            return [*commands, *self._close("failures" if self._members else "no_replies")]
        self._round += 1
        if self._round >= self._settings.rounds:
            return [*commands, *self._close("rounds")]
        if self._summariser is not None and len(self._members) > 1:
            return [*commands, *self._begin_summarising(self._summariser)]
        return [*commands, *self._begin_answering({})]

    def _record_turns(self) -> list[Command]:
        """Nodes for this phase's replies, in the cast's order; answers join what each member has said and heard."""
        self.outstanding.clear()
        commands: list[Command] = []
        for turn in self._turns.values():
            if turn.reply is None:
                continue
            summary = self.phase == _SUMMARISING
            answer = Answer() if summary else parse_answer(turn.reply.text, self._task.answer_format)
            node = Utterance(
                id=turn.node_id,
                agent=turn.agent,
                role=turn.role,
                round=self._round,
                phase="summarise" if summary else "answer",
                prompt=turn.prompt,
                reply=turn.reply,
                answer=answer,
                correct=None if summary else grade(answer, self._task.gold),
            )
            commands.append(Record(node, turn.edges))
            if not summary:
                self._said[turn.member] = turn
                self._ballots[turn.member] = answer
                self._chats[turn.member] += (*turn.prompt, assistant(turn.reply.text))
        return commands

    def _begin_summarising(self, summariser: Player) -> list[Command]:
        self._enter(_SUMMARISING)
        self._turns = {}
        for member in self._members:
            peers = self._peers(member)
            text = self._prompts.fill("summarise", question=self._task.question, peers=self._peer_blocks(peers))
            node_id = f"{self._round}.summarise.{member}"
            edges = tuple(Edge(turn.node_id, node_id, "saw") for turn in peers)
            self._ask(_Turn(member, node_id, summariser.name, "summariser", (user(text),), edges), summariser, ())
        return self._requests()

    def _begin_answering(self, summaries: Mapping[int, _Turn]) -> list[Command]:
        self._enter(_ANSWERING)
        self._turns = {}
        for member in self._members:
            opening = self._round == 0
            player = (self._generators if opening else self._critics)[member]
            node_id = f"{self._round}.answer.{member}"
            if opening:
                prompt: tuple[Message, ...] = self._opening(player)
                edges: tuple[Edge, ...] = ()
            else:
                prompt, edges = self._revision(member, node_id, summaries.get(member))
            turn = _Turn(member, node_id, player.name, "generator" if opening else "critic", prompt, edges)
            self._ask(turn, player, self._chats[member] if self._settings.memory == "chat" else ())
        return self._requests()

    def _opening(self, player: Player) -> tuple[Message, ...]:
        text = self._prompts.fill("opening", question=self._task.question)
        return (*self._system(player), *self._prompts.examples("opening"), user(text, self._task.images))

    def _revision(
        self, member: int, node_id: str, summary: _Turn | None
    ) -> tuple[tuple[Message, ...], tuple[Edge, ...]]:
        """What a member is told in rounds after the first, and where it came from."""
        own = self._said[member]
        assert own is not None  # members without a reply have left
        peers = [] if summary else self._peers(member)
        chat = self._settings.memory == "chat"
        part = "revise" if summary or peers else "self_check"
        edges = []
        if chat or self._prompts.uses(part, "own"):
            edges.append(Edge(own.node_id, node_id, "memory" if chat else "saw"))
        if summary:
            edges.append(Edge(summary.node_id, node_id, "summary"))
            shown = self._prompts.fill("peer", number="1", reply=_text(summary))
        else:
            edges += [Edge(turn.node_id, node_id, "saw") for turn in peers]
            shown = self._peer_blocks(peers)
        text = self._prompts.fill(part, question=self._task.question, own=_text(own), peers=shown)
        if chat:
            return (user(text),), tuple(edges)
        before = (*self._system(self._critics[member]), *self._prompts.examples(part))
        return (*before, user(text, self._task.images)), tuple(edges)

    def _system(self, player: Player) -> tuple[Message, ...]:
        text = "\n\n".join(part for part in (self._prompts.fill("system"), player.persona) if part)
        return (system(text),) if text else ()

    def _peers(self, member: int) -> list[_Turn]:
        """The others' turns of the round before, in an order drawn for this member and round, at most ``max_peers``."""
        others = [turn for other in self._members if other != member and (turn := self._said[other]) is not None]
        random.Random(derive_seed(self._seed, "peers", self._round, member)).shuffle(others)
        return others[: self._settings.max_peers]

    def _peer_blocks(self, peers: list[_Turn]) -> str:
        return "\n".join(
            self._prompts.fill("peer", number=str(n), reply=_text(turn)) for n, turn in enumerate(peers, 1)
        )

    def _ask(self, turn: _Turn, player: Player, chat: tuple[Message, ...]) -> None:
        ask = Ask(
            id=f"{self._debate_id}#{turn.node_id}",
            debate_id=self._debate_id,
            agent=turn.agent,
            role=turn.role,
            messages=(*chat, *turn.prompt),
            sampling=msgspec.structs.replace(player.sampling, seed=derive_seed(self._seed, turn.node_id)),
        )
        self._turns[ask.id] = turn
        self.outstanding[ask.id] = ask

    def _requests(self) -> list[Command]:
        return [Request(ask) for ask in self.outstanding.values()]

    def _close(self, stop_reason: str) -> list[Command]:
        """The verdict: a vote over the latest turn of everyone still there."""
        self._enter(_CLOSED)
        ballots = [self._ballots[member] for member in self._members]
        result = majority_vote(ballots, tie_break=self._settings.tie_break, seed=derive_seed(self._seed, "tie"))
        verdict = Verdict(
            answer=result.answer,
            stop_reason=stop_reason,
            aggregator="majority_vote",
            support=result.support,
            votes=result.votes,
            tie=result.tie,
            correct=grade(Answer(result.answer), self._task.gold),
        )
        return [Close(verdict)]


def _text(turn: _Turn) -> str:
    assert turn.reply is not None  # only turns with a reply are kept
    return turn.reply.text


def _check_cast(settings: SocietySettings, cast: Mapping[str, tuple[Player, ...]]) -> None:
    if unknown := cast.keys() - Society.ROLES.keys():
        raise ConfigError(f"cast: society has no role {min(unknown)!r}; its roles: {', '.join(Society.ROLES)}")
    generators, critics = cast.get("generator", ()), cast.get("critic", ())
    if not generators:
        raise ConfigError("cast.generator is empty; a society needs at least one agent")
    if critics and len(critics) != len(generators):
        raise ConfigError(
            f"cast.critic has {len(critics)} agents and cast.generator {len(generators)}; they are paired by index, "
            "so give as many critics, or none to let the generators revise"
        )
    if settings.summarize and len(cast.get("summariser", ())) != 1:
        raise ConfigError("protocol.summarize is on, so cast.summariser needs exactly one agent")
