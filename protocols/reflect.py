"""Debate, reflect: all answer, those who are right criticise those who are wrong, the wrong reflect, all answer anew.

Source: Zhou et al. 2025 (Debate, Reflect, and Distill), arXiv:2506.03541, sec. 3, and its released code. The debate's
product is its graph: right and wrong answers of the same round, under prompts that hold what was said about the last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from protocols.answer import same
from protocols.bounds import MAX_ROUNDS, MAX_SAMPLES, check_bounds
from protocols.conversation import Conversation, Flow, Player, ProtocolSettings, Role, Script, StopRule, Turn
from protocols.errors import ConfigError, TaskError
from protocols.graph import EdgeKind, Verdict
from protocols.machine import Phase
from protocols.task import Task


class ReflectPhase(Phase):
    WAITING = "waiting"  # for the task
    ANSWERING = "answering"  # everyone: alone in round 0, after it under what was said about the last round
    CRITIQUING = "critiquing"  # the right write feedback to each of the wrong, the wrong reflect, all at once
    CLOSED = "closed"


_WAITING, _ANSWERING, _CRITIQUING, _CLOSED = ReflectPhase
_KIND: dict[str, EdgeKind] = {"critique": "critique", "reflect": "reflection"}  # step -> what later turns see it as


class ReflectSettings(ProtocolSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The defaults are the paper's, so gold is used: to grade, to stop, and in front of those who reflect."""

    rounds: int = 4  # of answers, the opening included
    oracle: bool = True  # false: no gold anywhere; the round's majority takes its place, and stop needs unanimity
    stop: tuple[StopRule, ...] = ("oracle",)
    feedback: bool = True  # from each who is right to each who is wrong
    reflection: bool = True  # of each who is wrong
    critique_last: bool = False  # criticise after the last round too, where no agent reads it
    context: Literal["shuffled", "named"] = "shuffled"  # blocks anonymous in a drawn order, or named in the cast's
    samples: int = 5  # of a student's answer at most: the first that can be read counts
    prompts: str = "reflect.number.en"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, rounds=(1, MAX_ROUNDS), samples=(1, MAX_SAMPLES))
        if not self.oracle and "oracle" in self.stop:
            raise ValueError("oracle=false uses no gold, but stop names 'oracle'; set stop to [unanimity] or to []")


class Reflect(Conversation):
    """One debate. Agents sit in one fixed order, teachers first, and every ask is a single user message.

    An agent that fails in a round is neither right nor wrong in it: nobody criticises it, the next round's prompt has
    no block of it, and it is asked again there. A reply that cannot be read is wrong, and shown as it is.
    """

    NAME = "reflect"
    SOURCE = "Zhou et al. 2025 (Debate, Reflect, and Distill), arXiv:2506.03541"
    SETTINGS = ReflectSettings
    FLOW: ClassVar[Flow] = {
        _WAITING: frozenset({_ANSWERING}),
        _ANSWERING: frozenset({_ANSWERING, _CRITIQUING, _CLOSED}),
        _CRITIQUING: frozenset({_ANSWERING, _CLOSED}),
        _CLOSED: frozenset(),
    }
    ROLES: ClassVar[Mapping[str, Role]] = {
        "teacher": Role("answers, criticises and reflects", 1, None),
        "student": Role("does the same, and is later trained on the debate", 0, None),
    }
    SLOTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "system": frozenset(),
        "answer": frozenset({"question"}),
        "debate": frozenset({"question", "blocks"}),
        "shown_answer": frozenset({"label", "reply"}),
        "shown_reflection": frozenset({"label", "reply"}),
        "shown_feedback": frozenset({"label", "number", "reply"}),
        "critique": frozenset({"question", "own", "other"}),
        "reflect": frozenset({"question", "own", "gold"}),
        "critique_free": frozenset({"question", "own", "other"}),  # where no gold says who is right
        "reflect_free": frozenset({"question", "own"}),
    }
    LEARNERS = ("student",)
    DEPARTURES = """
        The verdict is a majority vote of each agent's latest answer; the paper takes none, its product is the graph.
        Nobody criticises after the last round, where the released code asks for texts that no agent reads
        (critique_last: true).
        What an agent did not write is left out of its block, where the released code prints None.
        Replies, feedback and reflections are shown whole; the released code cuts sections out of them first.
        A student's further samples are drawn only after one that cannot be read, with the same distribution of the
        first that can; the released code draws five at once.
        Blocks are ordered anew each round, with the debate's seed, the same way for all agents.
        An agent that fails is asked again in the next round, and does not keep the others from ending the debate when
        all of them are right; in the released code a failed request ends the run.
        Without gold (oracle: false) the majority of the round stands for it; the released code holds prompts for such
        critiques and never uses them.
    """

    @classmethod
    def check_cast(cls, settings: ReflectSettings, cast: Mapping[str, tuple[Player, ...]]) -> None:
        names = [player.name for role in cls.ROLES for player in cast.get(role, ())]
        if settings.context == "named" and len(set(names)) < len(names):
            raise ConfigError(
                "protocol.context=named tells answers apart by their agents' names, but an agent sits in several seats "
                "of the cast; name each once, or set protocol.context: shuffled"
            )

    @classmethod
    def max_asks(cls, settings: ReflectSettings, cast: Mapping[str, Sequence[Any]]) -> int:
        agents = sum(len(cast.get(role, ())) for role in cls.ROLES)
        worst = max(
            right * (agents - right) * settings.feedback + (agents - right) * settings.reflection
            for right in range(agents + 1)
        )
        return agents * settings.rounds + worst * (settings.rounds - (not settings.critique_last))

    def check_task(self, task: Task) -> None:
        if self.settings.oracle and not task.gold:
            raise TaskError(
                f"task {task.id!r} has no gold answer, and reflect takes from it who is right; give the task one, or "
                "set protocol.oracle: false with protocol.stop: [unanimity]"
            )

    def script(self) -> Script:
        self.oracle = self.settings.oracle
        said: list[Turn] = []
        notes: list[Turn] = []
        for number in range(self.settings.rounds):
            self.round = number
            turns = self._answers(said, notes)
            yield _ANSWERING, turns
            said = [turn for turn in turns if turn.reply is not None]
            if not said:  # what was said before still counts
                return self.conclude("failures" if self.latest else "no_replies")
            if rule := self.settled(said):
                return self.conclude(rule)
            notes = []
            if number + 1 < self.settings.rounds or self.settings.critique_last:
                notes = self._notes(said)
                yield _CRITIQUING, notes
        return self.conclude("rounds")

    def conclude(self, stop_reason: str) -> Verdict:
        """A vote over each agent's latest answer, in the cast's order."""
        return self.vote((self.latest[seat] for seat in sorted(self.latest, key=int)), stop_reason)

    def _answers(self, said: Sequence[Turn], notes: Sequence[Turn]) -> list[Turn]:
        """Everyone's turn, all under the same prompt."""
        blocks = self._blocks(said, notes)
        saw: list[tuple[Turn, EdgeKind]] = [(turn, "saw") for turn in said]
        saw += [(note, _KIND[note.step]) for note in notes if note.reply is not None]
        part, context = ("debate", {"blocks": blocks}) if blocks else ("answer", None)
        seats = [(role, player) for role in self.ROLES for player in self.cast.get(role, ())]
        return [
            Turn(
                player=player,
                role=role,
                step="answer",
                seat=str(seat),
                prompt=self.told(player, part, images=self.task.images, context=context),
                saw=tuple(saw),
                answers=True,
                part=part,
                retries=self.settings.samples - 1 if role == "student" else 0,
            )
            for seat, (role, player) in enumerate(seats)
        ]

    def _blocks(self, said: Sequence[Turn], notes: Sequence[Turn]) -> list[str]:
        """For each answer of the last round: itself, what its agent thinks of it, what the others do."""
        order, shown = list(said), []
        named = self.settings.context == "named"
        if not named:
            self.rng("order", self.round).shuffle(order)
        for number, turn in enumerate(order, 1):
            label = turn.player.name if named else str(number)
            shown.append(self.prompts.fill("shown_answer", label=label, reply=turn.text))
            about = [note for note in notes if note.reply is not None and _about(note) == turn.seat]
            texts = [note.text for note in about if note.step == "reflect"]
            shown += [self.prompts.fill("shown_reflection", label=label, reply=text) for text in texts]
            texts = [note.text for note in about if note.step == "critique"]
            shown += [
                self.prompts.fill("shown_feedback", label=label, number=str(count), reply=text)
                for count, text in enumerate(texts, 1)
            ]
        return shown

    def _notes(self, said: Sequence[Turn]) -> list[Turn]:
        """Feedback from each who is right to each who is wrong, then the reflections of the wrong."""
        right, wrong = self._sides(said)
        feedback = [self._feedback(giver, taker) for giver in right for taker in wrong]
        reflections = [self._reflection(turn) for turn in wrong]
        return (feedback if self.settings.feedback else []) + (reflections if self.settings.reflection else [])

    def _sides(self, said: Sequence[Turn]) -> tuple[list[Turn], list[Turn]]:
        """Who is right, by gold or by the round's majority, and who is not. Where all differ nobody has a majority."""
        if self.settings.oracle:
            return [turn for turn in said if turn.correct], [turn for turn in said if not turn.correct]
        vote = self.vote(said, "")
        inside = [
            vote.support > 1 and same(turn.answer, vote.as_answer, tolerance=self.task.tolerance) for turn in said
        ]
        pairs = list(zip(said, inside, strict=True))
        return [turn for turn, among in pairs if among], [turn for turn, among in pairs if not among]

    def _feedback(self, giver: Turn, taker: Turn) -> Turn:
        return self.turn(
            giver.role,
            "critique",
            "critique" if self.settings.oracle else "critique_free",
            player=giver.player,
            seat=f"{giver.seat}-{taker.seat}",
            shows={"own": [giver], "other": [taker]},
            images=self.task.images,
        )

    def _reflection(self, turn: Turn) -> Turn:
        return self.turn(
            turn.role,
            "reflect",
            "reflect" if self.settings.oracle else "reflect_free",
            player=turn.player,
            seat=turn.seat,
            shows={"own": [turn]},
            images=self.task.images,
            gold=self.task.gold[0] if self.settings.oracle else "",
        )


def _about(note: Turn) -> str:
    """The seat that feedback or a reflection is about."""
    return note.seat.rpartition("-")[2]
