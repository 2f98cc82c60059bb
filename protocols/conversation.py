"""How a protocol is written: as a generator that says whom it asks next, under a declared table of phases.

``Conversation`` turns such a script into a state machine. The script yields a phase and its turns, all asked at once,
and goes on when each has been answered, has failed or is late; what came of a turn is on the turn. Everything else is
done here, once for all protocols: ids, seeds, chat memory, second tries, the graph, budgets, the checks on the table.

A script must be deterministic: no clock, no disk, no global randomness. ``self.rng`` and ``derive_seed`` give chance.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, ClassVar, Literal

import msgspec

from protocols.answer import FORMATS, Answer, grade, parse_answer
from protocols.bounds import UP, check_above_0
from protocols.context import estimate_messages, fit_blocks
from protocols.errors import ConfigError, GraphError, TaskError
from protocols.graph import Edge, EdgeKind, Utterance, Verdict
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
    leading_to,
)
from protocols.message import Ask, ImagePart, Message, Reply, Sampling, assistant, system, user
from protocols.prompt import PromptSet
from protocols.task import Task, render_question
from protocols.vote import TieBreak, VoteResult, majority_vote

Flow = Mapping[Phase, AbstractSet[Phase]]
"""Phase -> phases that may follow; the first is where a debate waits for its task, the last where it has ended."""

_RESERVED = re.compile(r"[.#~]")  # what ids of nodes and asks are put together with

StopRule = Literal["unanimity", "oracle"]
Reader = Callable[[str], Answer]
"""Reads a reply's answer; one whose ``how`` is empty says that the reply could not be read. Never raises."""


class Player(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as a protocol knows it: a name, how its replies are drawn, and who it is told to be."""

    name: str
    sampling: Sampling = Sampling()
    persona: str = ""


class Role(msgspec.Struct, frozen=True):
    """A part to be cast: what it does, and how many agents may play it (``most`` None: any number)."""

    does: str
    least: int = 1
    most: int | None = 1

    def __post_init__(self) -> None:
        if self.most is not None and not 0 <= self.least <= self.most:
            raise ValueError(f"a role played by {self.least} to {self.most} agents; give least <= most, or most=None")


class ProtocolSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every protocol can be told. A protocol's own settings extend this."""

    deadline_s: float = 600.0  # of each phase; agents that are later are left out of it
    tie_break: TieBreak = "seeded"  # of every vote
    stop: tuple[StopRule, ...] = ()  # beside the protocol's own end: all agree, or all are right by gold (an oracle)
    budget_tokens: int = 0  # prompt and completion of a whole debate; 0: no limit
    budget_s: float = 0.0  # of waiting for replies, the slowest of each phase; 0: no limit
    max_context_tokens: int = 0  # of a prompt, estimated; others' texts are cut to fit, never question or instruction
    prompts: str = ""  # a prompt set by name, or the path of a .toml file; "": what the protocol itself holds

    def __post_init__(self) -> None:
        check_above_0(self, "deadline_s")
        for name in ("budget_tokens", "max_context_tokens", "budget_s"):
            if not 0 <= getattr(self, name) < UP:
                raise ValueError(f"{name}={getattr(self, name)} must not be below 0; 0 is no limit")


class Turn(msgspec.Struct, kw_only=True, eq=False):
    """One agent asked once: the question as the script puts it, and, after the ``yield``, what came of it.

    ``saw`` names the turns that the prompt shows or rests on, and how; they become edges of the graph. A turn in a
    ``thread`` continues the chat of that name. ``answers`` marks a debater's answer to the task: it is read with the
    task's format, graded, and counted round by round; ``reads`` reads anything else (a judge's verdict, say).
    """

    player: Player
    role: str
    step: str  # what is done: "answer", "critique", ...; with round and seat it names the node
    seat: str
    prompt: tuple[Message, ...]
    thread: str = ""
    saw: tuple[tuple[Turn, EdgeKind], ...] = ()
    answers: bool = False
    reads: Reader | None = None
    retries: int = 0  # further tries while the reply cannot be read
    repair: str = ""  # what the agent is told then; "": the same question again, drawn anew
    sampling: Sampling | None = None  # default: the player's
    part: str = ""  # of the prompt set, that the prompt puts: a structured reply is held to its schema

    reply: Reply | None = None  # None: failed or late
    answer: Answer = Answer()
    correct: bool | None = None
    node_id: str = ""  # of the node that holds the reply
    tries: list[_Try] = []

    @property
    def text(self) -> str:
        """What was said; "" where nothing came."""
        return self.reply.text if self.reply else ""


class _Try(msgspec.Struct, gc=False):
    """One ask of a turn: what its node will hold, and the reply."""

    node_id: str
    prompt: tuple[Message, ...]
    edges: tuple[Edge, ...]
    elided: int
    chat: tuple[Message, ...]  # all of what it continues, also what was left out for room
    head: int  # messages that open the chat
    reply: Reply | None = None
    answer: Answer = Answer()
    correct: bool | None = None


class _Thread(msgspec.Struct, gc=False):
    """A chat so far: its messages, the node that spoke last, and how many messages open it."""

    messages: tuple[Message, ...]
    last: str
    head: int


Step = tuple[Phase, Sequence[Turn]]
Script = Generator[Step, None, Verdict]


class Conversation(Machine):
    """Base of the protocols. A subclass declares the attributes below and writes ``script`` and ``conclude``.

    Args:
        settings: of the class's ``SETTINGS``.
        cast: role -> players, in speaking order.
        prompts: a set with the parts of ``SLOTS``.
    Raises: ConfigError: the cast does not fit.
    """

    FLOW: ClassVar[Flow]
    SETTINGS: ClassVar[type[ProtocolSettings]] = ProtocolSettings
    SLOTS: ClassVar[Mapping[str, frozenset[str]]] = {}  # part of the prompt set -> slots it may use
    TEMPLATES: ClassVar[Mapping[str, str]] = {}  # a prompt set of the protocol's own; needs no SLOTS
    ROLES: ClassVar[Mapping[str, Role]]
    LEARNERS: ClassVar[tuple[str, ...]] = ()  # roles that training tunes unless told otherwise
    DEPARTURES: ClassVar[str] = ""  # from the source

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("FLOW"):
            phases = list(cls.FLOW)
            cls.START, cls.END = phases[0], phases[-1]
            cls.TRANSITIONS = flow_table(cls.FLOW)
        if cls.TEMPLATES and "SLOTS" not in cls.__dict__:
            cls.SLOTS = {part: PromptSet.slots_of(text) for part, text in cls.TEMPLATES.items()}

    def __init__(self, settings: Any, cast: Mapping[str, tuple[Player, ...]], prompts: PromptSet) -> None:
        super().__init__()
        check_roles(type(self), cast)
        self.check_cast(settings, cast)
        self.settings, self.cast, self.prompts = settings, cast, prompts
        self.task = Task(id="", question="")
        self.debate_id, self.seed, self.round = "", 0, 0
        self.oracle = "oracle" in settings.stop  # gold has been used; a script that shows gold sets this too
        self.history: list[Turn] = []  # every turn that brought a reply, in order
        self.latest: dict[str, Turn] = {}  # seat -> its latest answer to the task
        self._script: Script | None = None
        self._step: list[Turn] = []
        self._asked: dict[str, Turn] = {}  # by ask id, until answered
        self._named: set[str] = set()  # the node of every turn so far
        self._threads: dict[str, _Thread] = {}
        self._spent_tokens, self._spent_s = 0, 0.0

    # What a protocol writes

    @classmethod
    def check_cast(cls, settings: Any, cast: Mapping[str, tuple[Player, ...]]) -> None:
        """What settings and cast must say of each other. Raises: ConfigError."""

    @classmethod
    def max_asks(cls, settings: Any, cast: Mapping[str, Sequence[Any]]) -> int:
        """Asks of one debate when nobody fails, second tries left out; an upper bound where it may stop early.

        Returns: 0 where the protocol does not say.
        """
        return 0

    def check_task(self, task: Task) -> None:
        """Raises: TaskError: this protocol can do nothing with the task."""

    def script(self) -> Script:
        """The debate. Each ``yield phase, turns`` asks them at once; returns the verdict."""
        raise NotImplementedError

    def conclude(self, stop_reason: str) -> Verdict:
        """The verdict on what was said so far; a debate may have to end anywhere. Default: a vote of the latest."""
        return self.vote(self.latest.values(), stop_reason)

    # What a script uses

    @property
    def question(self) -> str:
        """The task's question with its choices, as every prompt shows it."""
        return render_question(self.task)

    def the(self, role: str) -> Player:
        """The one who plays a role."""
        return self.cast[role][0]

    def rng(self, *names: str | int) -> random.Random:
        """Chance for one purpose, the same in every replay."""
        return random.Random(derive_seed(self.seed, *names))

    def told(
        self,
        player: Player,
        part: str,
        *,
        thread: str = "",
        head: str = "system",
        images: Iterable[ImagePart] = (),
        context: Mapping[str, Sequence[str]] | None = None,
        **values: str,
    ) -> tuple[Message, ...]:
        """The messages that put a part of the prompt set to a player.

        Args:
            thread: the chat it continues; only a new one begins with the system message and worked examples.
            head: the part that makes the system message; the player's persona follows it.
            context: slot -> others' texts, which may be cut where ``max_context_tokens`` asks for it.
            values: the other slots; ``question`` is filled in unless given.
        """
        slots = {"question": self.question} | values
        known = self._threads.get(thread) if thread else None
        before = () if known else (*self._system(player, head, slots), *self.prompts.examples(part))
        blocks, images = context or {}, tuple(images)
        if self.settings.max_context_tokens:
            # of a chat, what opened it and its latest reply are sent whatever their length
            kept = (*known.messages[: known.head], known.messages[-1]) if known else before
            blocks = self._fitted(part, slots, blocks, kept, images)
        text = self.prompts.fill(part, **slots, **{slot: "\n".join(texts) for slot, texts in blocks.items()})
        return (*before, user(text, images))

    def _fitted(
        self,
        part: str,
        slots: Mapping[str, str],
        blocks: Mapping[str, Sequence[str]],
        kept: Iterable[Message],
        images: Iterable[ImagePart],
    ) -> Mapping[str, Sequence[str]]:
        """Others' texts, cut to the room that is left beside the part itself and the messages sent before it."""
        # what the part has no slot for takes no room from the rest
        blocks = {slot: texts if self.prompts.uses(part, slot) else () for slot, texts in blocks.items()}
        if not any(blocks.values()):
            return blocks
        bare = user(self.prompts.fill(part, **slots, **dict.fromkeys(blocks, "")), images)
        room = self.settings.max_context_tokens - estimate_messages((*kept, bare))
        fitted = iter(fit_blocks([text for texts in blocks.values() for text in texts], room))
        return {slot: [next(fitted) for _ in texts] for slot, texts in blocks.items()}

    def turn(
        self,
        role: str,
        step: str,
        part: str,
        *,
        player: Player | None = None,
        seat: str = "0",
        thread: str = "",
        shows: Mapping[str, Sequence[Turn]] | None = None,
        kind: EdgeKind = "saw",
        answers: bool = False,
        reads: Reader | None = None,
        images: Iterable[ImagePart] = (),
        **slots: str,
    ) -> Turn:
        """A turn in one call, for the plain case: a part of the prompt set put to whoever plays the role.

        Args:
            shows: slot -> turns whose texts fill it; the edges from them, of this ``kind``, follow from that.
            slots: the other slots. The rest as in ``Turn`` and ``told``.
        """
        player = player or self.the(role)
        shown = {slot: [turn for turn in turns if turn.reply is not None] for slot, turns in (shows or {}).items()}
        texts = {slot: [turn.text for turn in turns] for slot, turns in shown.items()}
        return Turn(
            player=player,
            role=role,
            step=step,
            seat=seat,
            prompt=self.told(player, part, thread=thread, images=images, context=texts, **slots),
            thread=thread,
            saw=tuple((turn, kind) for turns in shown.values() for turn in turns),
            answers=answers,
            reads=reads,
            part=part,
        )

    def _system(self, player: Player, head: str, slots: Mapping[str, str]) -> tuple[Message, ...]:
        words = self.prompts.fill(head, **slots) if head in self.SLOTS else ""
        text = "\n\n".join(filter(None, (words, player.persona)))
        return (system(text),) if text else ()

    def settled(self, turns: Sequence[Turn]) -> str:
        """The first of the settings' stop rules that these answers meet; "" for none."""
        said = [turn for turn in turns if turn.reply is not None]
        for rule in self.settings.stop:
            if rule == "oracle" and said and all(turn.correct for turn in said):
                return str(rule)
            if rule == "unanimity" and said and self._vote([turn.answer for turn in said]).support == len(said):
                return str(rule)
        return ""

    def _vote(self, answers: Sequence[Answer]) -> VoteResult:
        seed, tolerance = derive_seed(self.seed, "tie"), self.task.tolerance
        return majority_vote(answers, tie_break=self.settings.tie_break, seed=seed, tolerance=tolerance)

    def vote(self, turns: Iterable[Turn], stop_reason: str) -> Verdict:
        """The verdict of a majority vote over what these turns answered."""
        result = self._vote([turn.answer for turn in turns if turn.reply is not None])
        return self.verdict(
            result.answer,
            stop_reason,
            aggregator="majority_vote",
            support=result.support,
            votes=result.votes,
            tie=result.tie,
        )

    def verdict(self, answer: Answer | None, stop_reason: str, *, aggregator: str, **fields: Any) -> Verdict:
        """A verdict, graded; ``answer`` None where the debate came to none."""
        answer = answer or Answer()
        return Verdict(
            answer=answer.value,
            stop_reason=stop_reason,
            aggregator=aggregator,
            oracle=self.oracle,
            correct=grade(answer, self.task),
            canonical=answer.canonical,
            **fields,
        )

    # The machine

    def check(self, event: Event) -> None:
        """Raises: TaskError: the protocol can do nothing with this task. Otherwise as in ``Machine``."""
        super().check(event)
        if isinstance(event, Opened):
            if event.task.answer_format not in FORMATS:
                raise TaskError(
                    f"task {event.task.id!r}: answer_format={event.task.answer_format!r} must be one of "
                    f"{', '.join(FORMATS)}"
                )
            self.check_task(event.task)

    def unsettled(self, reply: Reply) -> str:
        """See ``Machine``: an answer to the task, as it was read."""
        turn = self._asked.get(reply.ask_id)
        return "" if turn is None or not turn.answers else self._read(turn, reply.text).value or ""

    def _handle(self, event: Event) -> list[Command]:
        match event:
            case Replied():
                return self._replied(event)
            case Opened():
                return self._opened(event)
            case AgentFailed():
                return self._failed(event)
            case DeadlinePassed():
                return self._end_step()
            case BudgetSpent():
                return [*self._record(), *self._close(self.conclude("budget"))]

    def _opened(self, event: Opened) -> list[Command]:
        self.task, self.debate_id, self.seed = event.task, event.debate_id, event.seed
        self._script = self.script()
        return self._advance()

    def _replied(self, event: Replied) -> list[Command]:
        turn = self._asked.pop(event.reply.ask_id)
        del self.outstanding[event.reply.ask_id]
        tried = turn.tries[-1]
        tried.reply, tried.answer = event.reply, self._read(turn, event.reply.text)
        if event.canonical:
            tried.answer = msgspec.structs.replace(tried.answer, canonical=event.canonical)
        tried.correct = grade(tried.answer, self.task) if turn.answers else None
        if not tried.answer.how and (turn.answers or turn.reads) and len(turn.tries) <= turn.retries:
            return [Request(self._ask(turn, self._again(turn, tried)))]
        return [] if self.outstanding else self._end_step()

    def _failed(self, event: AgentFailed) -> list[Command]:
        del self._asked[event.failure.ask_id], self.outstanding[event.failure.ask_id]
        return [] if self.outstanding else self._end_step()

    def _read(self, turn: Turn, text: str) -> Answer:
        if turn.reads is not None:
            return turn.reads(text)
        return parse_answer(text, self.task.answer_format, self.task.choices) if turn.answers else Answer()

    def _end_step(self) -> list[Command]:
        """Everyone replied, failed or is late: record what was said, in the script's order, then go on."""
        commands = self._record()
        settings = self.settings
        if (settings.budget_tokens and self._spent_tokens >= settings.budget_tokens) or (
            settings.budget_s and self._spent_s >= settings.budget_s
        ):
            # the script may have come to its end all the same, and knows better why
            return [*commands, *self._close(self._last_word() or self.conclude("budget"))]
        return [*commands, *self._advance()]

    def _last_word(self) -> Verdict | None:
        """The script's verdict, if nobody is to be asked before it."""
        assert self._script is not None  # set when the debate opened
        try:
            while not next(self._script)[1]:
                pass
        except StopIteration as done:
            verdict: Verdict = done.value
            return verdict
        return None

    def _advance(self) -> list[Command]:
        """Let the script go on to its next phase that asks anybody anything, or to its end."""
        assert self._script is not None  # set when the debate opened
        try:
            phase, turns = next(self._script)
            while not turns:
                phase, turns = next(self._script)
        except StopIteration as done:
            return self._close(done.value)
        self._check_turns(turns)
        self._enter(phase)
        self._step = list(turns)
        return [Request(self._ask(turn, self._first(turn))) for turn in self._step]

    def _check_turns(self, turns: Sequence[Turn]) -> None:
        """Raises: GraphError: a node or a chat that would have two turns at once; a mistake of the script."""
        threads: set[str] = set()
        for turn in turns:
            node_id = self._node_id(turn)
            if turn.tries or node_id in self._named:
                raise GraphError(
                    f"{self.NAME} asks for node {node_id!r} a second time; give each turn of a round a step and seat "
                    "of its own, and make a new Turn for every ask"
                )
            if _RESERVED.search(turn.step + turn.seat):
                raise GraphError(f"{self.NAME} names a node {node_id!r}; leave '.', '#' and '~' out of step and seat")
            if turn.thread and turn.thread in threads:
                raise GraphError(
                    f"{self.NAME} asks twice at once in the chat {turn.thread!r}, which would lose one of the replies; "
                    "ask one after the other, or in two chats"
                )
            self._named.add(node_id)
            threads.add(turn.thread)

    def _node_id(self, turn: Turn) -> str:
        return f"{self.round}.{turn.step}.{turn.seat}"

    def _first(self, turn: Turn) -> _Try:
        """A turn's first try."""
        node_id = self._node_id(turn)
        thread = self._threads.get(turn.thread) if turn.thread else None
        edges = [Edge(thread.last, node_id, "memory")] if thread else []
        edges += [Edge(other.node_id, node_id, kind) for other, kind in turn.saw if other.reply is not None]
        return _Try(
            node_id=node_id,
            prompt=turn.prompt,
            edges=tuple(dict.fromkeys(edges)),
            elided=self._to_elide(thread.messages, thread.head, turn.prompt) if thread else 0,
            chat=thread.messages if thread else (),
            head=thread.head if thread else 0,
        )

    def _again(self, turn: Turn, last: _Try) -> _Try:
        """The next try of a turn whose reply could not be read: asked to mend it, or simply drawn anew."""
        first = turn.tries[0]
        node_id = f"{first.node_id}~{len(turn.tries)}"
        if not turn.repair:
            edges = tuple(Edge(edge.source, node_id, edge.kind) for edge in first.edges)
            return msgspec.structs.replace(
                first, node_id=node_id, edges=edges, reply=None, answer=Answer(), correct=None
            )
        assert last.reply is not None  # it is this reply that could not be read
        chat, prompt = (*last.chat, *last.prompt, assistant(last.reply.text)), (user(turn.repair),)
        return msgspec.structs.replace(
            last,
            node_id=node_id,
            prompt=prompt,
            edges=(Edge(last.node_id, node_id, "memory"),),
            # what is to be mended stays whole: room is made in the chat before it
            elided=self._to_elide(first.chat, first.head, (*chat[len(first.chat) :], *prompt)),
            chat=chat,
            head=last.head or len(last.prompt),
            reply=None,
            answer=Answer(),
            correct=None,
        )

    def _to_elide(self, chat: tuple[Message, ...], head: int, prompt: tuple[Message, ...]) -> int:
        """How many of a chat's oldest messages to leave out for room.

        What opened it, the question included, and the latest reply stay; pairs leave, so that speakers alternate.
        """
        limit = self.settings.max_context_tokens
        if not limit:
            return 0
        total, elided = estimate_messages((*chat, *prompt)), 0
        while total > limit and head + elided + 2 < len(chat):
            total -= estimate_messages(chat[head + elided : head + elided + 2])
            elided += 2
        return elided

    def _ask(self, turn: Turn, tried: _Try) -> Ask:
        turn.tries.append(tried)
        sampling, chat = turn.sampling or turn.player.sampling, tried.chat
        if tried.elided:
            chat = (*chat[: tried.head], *chat[tried.head + tried.elided :])
        ask = Ask(
            id=f"{self.debate_id}#{tried.node_id}",
            debate_id=self.debate_id,
            agent=turn.player.name,
            role=turn.role,
            messages=(*chat, *tried.prompt),
            sampling=msgspec.structs.replace(sampling, seed=derive_seed(self.seed, tried.node_id)),
            schema=self.prompts.schemas.get(turn.part, "") if sampling.structured else "",
        )
        self._asked[ask.id] = turn
        self.outstanding[ask.id] = ask
        return ask

    def _record(self) -> list[Command]:
        """Nodes for the replies of this step, and what they mean for chats and budgets."""
        self.outstanding.clear()
        self._asked.clear()
        commands: list[Command] = []
        slowest = 0.0
        for turn in self._step:
            heard = [(tried, tried.reply) for tried in turn.tries if tried.reply is not None]
            took = 0.0
            for tried, reply in heard:
                last = tried is heard[-1][0]
                commands.append(Record(self._node(turn, tried, reply, counts=last), tried.edges))
                self._spent_tokens += reply.usage.total_tokens
                took += reply.latency_s
                if last:
                    self._keep(turn, tried)
            slowest = max(slowest, took)
        self._spent_s += slowest
        self._step = []
        return commands

    def _node(self, turn: Turn, tried: _Try, reply: Reply, *, counts: bool) -> Utterance:
        return Utterance(
            id=tried.node_id,
            agent=turn.player.name,
            role=turn.role,
            round=self.round,
            phase=turn.step,
            prompt=tried.prompt,
            reply=reply,
            answer=tried.answer,
            answers=turn.answers and counts,
            correct=tried.correct,
            elided=tried.elided,
        )

    def _keep(self, turn: Turn, last: _Try) -> None:
        """What the script finds on the turn, and what its chat now holds."""
        turn.reply, turn.answer, turn.node_id = last.reply, last.answer, last.node_id
        turn.correct = last.correct
        self.history.append(turn)
        if turn.answers:
            self.latest[turn.seat] = turn
        if turn.thread:
            said = (*last.chat, *last.prompt, assistant(turn.text))
            self._threads[turn.thread] = _Thread(said, last.node_id, last.head or len(last.prompt))

    def _close(self, verdict: Verdict) -> list[Command]:
        self._enter(self.END)
        if self._script is not None:
            self._script.close()
        return [Close(verdict)]


def flow_table(flow: Flow) -> Transitions:
    """The transition table of a flow: every phase between start and end takes every event that can befall it."""
    phases = list(flow)
    start, end = phases[0], phases[-1]
    table: dict[tuple[Phase, type[Event]], frozenset[Phase]] = {(start, Opened): frozenset(flow[start])}
    for phase in phases[1:-1]:
        for event in (Replied, AgentFailed):
            # it stays while others are still to reply, and the budget may be spent with any reply
            table[phase, event] = frozenset({phase, end}).union(flow[phase])
        table[phase, DeadlinePassed] = frozenset({end}).union(flow[phase])
        table[phase, BudgetSpent] = frozenset({end})
    return table


def flow_problems(flow: Flow) -> list[str]:
    """What is wrong with a flow itself, one sentence each; the table hides it, as a spent budget ends every phase."""
    if len(flow) < 3:
        return ["FLOW needs three phases at least: one to wait in, one to ask in, and the end"]
    ending = leading_to(list(flow)[-1], flow)
    return [f"phase {phase.value} is a dead end: FLOW leads from it to no end" for phase in flow if phase not in ending]


def check_roles(machine: type[Conversation], cast: Mapping[str, tuple[Player, ...]]) -> None:
    """Raises: ConfigError: a role that the protocol does not have, or too few or too many who play one."""
    name, roles = machine.NAME, machine.ROLES
    if unknown := cast.keys() - roles.keys():
        raise ConfigError(f"cast: {name} has no role {min(unknown)!r}; its roles: {', '.join(roles)}")
    for role, part in roles.items():
        number = len(cast.get(role, ()))
        if number < part.least:
            have = "is empty" if not number else f"has {number} agents"
            raise ConfigError(f"cast.{role} {have}; {name} needs at least {part.least}: the one who {part.does}")
        if part.most is not None and number > part.most:
            raise ConfigError(f"cast.{role} has {number} agents; {name} takes at most {part.most}")
