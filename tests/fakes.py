"""What tests of several packages share: replies made by hand, and a driver that runs a machine to its end.

Importable wherever ``tests`` is, Ray workers included. Nothing here sleeps, draws at random or talks to a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protocols.errors import FailureKind
from protocols.graph import Debate, Verdict
from protocols.machine import (
    AgentFailed,
    BudgetSpent,
    Close,
    Command,
    DeadlinePassed,
    Event,
    Machine,
    Opened,
    Record,
    Replied,
    Request,
)
from protocols.message import Ask, Failure, Reply, Usage
from protocols.task import Task

Answering = Callable[[Ask], str | Reply | Failure | None]
"""What comes back for an ask. None: nothing, ever; the phase then ends by its deadline."""

Choosing = Callable[[Sequence[Event]], Event]
"""Which of the outcomes on their way arrives next; they are given in the order they were asked for."""


def node_of(ask: Ask) -> str:
    """The id of the node that a reply to this ask will become."""
    return ask.id.rpartition("#")[2]


def round_of(ask: Ask) -> int:
    return int(node_of(ask).split(".")[0])


def told(ask: Ask) -> str:
    """Everything the ask says, for looking things up in."""
    return "\n".join(message.text for message in ask.messages)


def reply_to(ask: Ask, text: str) -> Reply:
    return Reply(ask_id=ask.id, text=text, model="fake", usage=Usage(7, 3, 2))


def failure_of(ask: Ask, kind: FailureKind = "refused", reason: str = "made to fail") -> Failure:
    return Failure(ask_id=ask.id, kind=kind, reason=reason)


def by_node(**texts: str) -> Answering:
    """Replies by node id, dots as underscores: ``by_node(_0_answer_1="43")``; an agent without a text never answers."""
    return lambda ask: texts.get("_" + node_of(ask).replace(".", "_"))


@dataclass
class Played:
    """What a driven machine saw and did. ``steps`` holds the commands of each event, in the order of ``events``."""

    machine: Machine
    debate: Debate
    events: list[Event] = field(default_factory=list)
    steps: list[list[Command]] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        assert self.debate.verdict is not None, f"{self.debate.id} is still open"
        return self.debate.verdict

    def ask(self, node_id: str) -> Ask:
        return next(ask for ask in self.asks if node_of(ask) == node_id)

    def asked(self) -> list[str]:
        return [node_of(ask) for ask in self.asks]

    def take(self, event: Event) -> list[Command]:
        """Hand the machine one event and carry out what it commands, but for the asks themselves."""
        commands = self.machine.receive(event)
        self.events.append(event)
        self.steps.append(commands)
        for command in commands:
            match command:
                case Record(utterance, edges):
                    self.debate.add(utterance, edges)
                case Close(verdict):
                    self.debate.close(verdict)
                case Request(ask):
                    self.asks.append(ask)
        return commands


def open_debate(machine: Machine, task: Task, *, debate_id: str = "d", seed: int = 0) -> Played:
    """A debate that was opened and waits for its first replies."""
    played = Played(machine, Debate(id=debate_id, task=task, protocol=machine.NAME, seed=seed, cast={}))
    played.take(Opened(debate_id=debate_id, task=task, seed=seed))
    return played


def play(
    machine: Machine,
    task: Task,
    answer: Answering,
    *,
    debate_id: str = "d",
    seed: int = 0,
    choose: Choosing = lambda outcomes: outcomes[0],
    deadline_at: Sequence[int] = (),
    budget_at: int | None = None,
    max_events: int = 1000,
) -> Played:
    """Run a machine to its end.

    Args:
        answer: what comes back for each ask; called once an ask.
        choose: the order of arrival.
        deadline_at: event numbers (the opening is 0) at which the phase's deadline passes, whatever is on its way.
        budget_at: the event number at which the budget is spent.
    Raises: AssertionError: it does not end within ``max_events``.
    """
    played = open_debate(machine, task, debate_id=debate_id, seed=seed)
    on_their_way: dict[str, Event] = {}
    seen = 0
    while not machine.closed:
        assert len(played.events) < max_events, f"{machine.NAME} has not closed after {max_events} events"
        for ask in played.asks[seen:]:
            if (outcome := _outcome(ask, answer(ask))) is not None:
                on_their_way[ask.id] = outcome
        seen = len(played.asks)
        on_their_way = {ask_id: event for ask_id, event in on_their_way.items() if ask_id in machine.outstanding}
        number = len(played.events)
        if number == budget_at:
            played.take(BudgetSpent())
        elif number in deadline_at or not on_their_way:
            played.take(DeadlinePassed(machine.phase_index))
        else:
            played.take(choose(list(on_their_way.values())))
    return played


def replay(machine: Machine, events: Sequence[Event]) -> list[list[Command]]:
    """What a fresh machine commands, event by event."""
    return [machine.receive(event) for event in events]


def _outcome(ask: Ask, said: str | Reply | Failure | None) -> Event | None:
    if said is None:
        return None
    if isinstance(said, Failure):
        return AgentFailed(said)
    return Replied(reply_to(ask, said) if isinstance(said, str) else said)
