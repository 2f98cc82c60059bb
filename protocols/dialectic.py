"""Dialectic: debaters look, answer and reconsider until a judge finds their answers consistent; a summariser concludes.

Source: the released code of M2D-DKTL (multimodal multi-agent debate, dialectical knowledge transfer),
github.com/FutureForMe/M2D-DKTL. Its last step, which condenses the whole debate to the numbered chain that a student
is trained on, is part of the debate here: the text of the step "condense".
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import msgspec

from protocols.answer import Answer, parse_answer, same
from protocols.bounds import MAX_ROUNDS, check_bounds
from protocols.conversation import Conversation, Flow, Player, ProtocolSettings, Reader, Role, Script, Step, Turn
from protocols.errors import ConfigError
from protocols.graph import Debate, Utterance, Verdict
from protocols.machine import Phase
from protocols.message import ImagePart
from protocols.places import last_brackets
from protocols.structured import read_judge
from protocols.task import Task


class DialecticPhase(Phase):
    WAITING = "waiting"  # for the task
    DEBATING = "debating"  # debaters answer: alone in round 0, then having seen the others' latest and their own
    JUDGING = "judging"  # whether the answers taken out of the replies say the same
    CONCLUDING = "concluding"  # the last replies are summed up to one answer, and all of them condensed to a chain
    CLOSED = "closed"


_WAITING, _DEBATING, _JUDGING, _CONCLUDING, _CLOSED = DialecticPhase


class DialecticSettings(ProtocolSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The defaults are those of the released code, but for the judge after the last round."""

    rounds: int = 3  # at most, the opening included
    visibility: Literal["sequential", "snapshot"] = "sequential"  # sequential: after round 0, sees who spoke before it
    consistency: Literal["judge", "parsed", "off"] = "judge"  # parsed: consistent when the answers read are equivalent
    judge_last_round: bool = False  # ask the judge after the last round too, where it can change only the stop reason
    images: Literal["attach", "omit"] = (
        "attach"  # omit: for text-only models; a caption in the task's details stands in
    )
    prompts: str = "dialectic.bracket.en"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, rounds=(1, MAX_ROUNDS))


class Dialectic(Conversation):
    """One debate. Every ask is a single message without a past; images go with each debater's and the condenser's.

    A debater that fails or is late leaves, and the others go on; where all fail in a later round, what they said before
    is summed up. A judge that fails or cannot be read has found no consistency.
    """

    NAME = "dialectic"
    SOURCE = "M2D-DKTL (released code), github.com/FutureForMe/M2D-DKTL"
    SETTINGS = DialecticSettings
    FLOW: ClassVar[Flow] = {
        _WAITING: frozenset({_DEBATING}),
        _DEBATING: frozenset({_DEBATING, _JUDGING, _CONCLUDING, _CLOSED}),
        _JUDGING: frozenset({_DEBATING, _CONCLUDING}),
        _CONCLUDING: frozenset({_CLOSED}),
        _CLOSED: frozenset(),
    }
    ROLES: ClassVar[Mapping[str, Role]] = {
        "debater": Role("looks at the images, answers and reconsiders; two in the released code", 1, None),
        "judge": Role("says after a round whether the answers, and nothing but the answers, are consistent", 0, 1),
        "summariser": Role("draws the final answer from the last replies", 1, 1),
        "condenser": Role("condenses the whole debate to a numbered chain, for training", 0, 1),
    }
    SLOTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "system": frozenset({"agent"}),
        "opening": frozenset({"question", "agent"}),
        "reflect": frozenset({"question", "peers", "own", "agent"}),
        "alone": frozenset({"question", "own", "agent"}),  # nobody else is left
        "peer": frozenset({"number", "name", "reply"}),
        "judge": frozenset({"question", "claims"}),
        "claim": frozenset({"number", "answer"}),
        "summarise": frozenset({"question", "replies"}),
        "condense": frozenset({"question", "debate"}),
        "said": frozenset({"round", "number", "name", "reply"}),
        "caption": frozenset({"caption"}),  # goes below the question where images are omitted
    }
    LEARNERS = ("debater",)
    DEPARTURES = """
        The judge is not asked after the last round, where its word changes nothing (judge_last_round: true).
        The judge is not asked either while an answer cannot be read, or where one debater is left: no comparison.
        In round 0 the debaters are asked at once, since none sees another yet; after it they speak one after another.
        Where the summariser fails or gives no answer in brackets, the last replies are put to a majority vote, and the
        verdict names that as its aggregator; the released code answers with the string None.
        An answer outside brackets counts where the task's format finds one in the reply; the released code finds none.
        The chain is written with the summary rather than by a later script, and from any number of debaters, where the
        script reads the first two.
        Images may be left out for models that see none (images: omit); the debate is then one about a caption.
        The released code draws at temperature 1, and at 0 for the chain; here that is each agent's own setting.
        By default training tunes the debaters themselves, where the source trains another model on the chains.
    """

    @classmethod
    def check_cast(cls, settings: DialecticSettings, cast: Mapping[str, tuple[Player, ...]]) -> None:
        if settings.consistency == "judge" and not cast.get("judge"):
            raise ConfigError(
                "protocol.consistency is 'judge', so cast.judge needs an agent; cast one, or set protocol.consistency "
                "to parsed or off"
            )

    @classmethod
    def max_asks(cls, settings: DialecticSettings, cast: Mapping[str, Sequence[Any]]) -> int:
        debaters, rounds = len(cast["debater"]), settings.rounds
        judged = settings.consistency == "judge" and debaters > 1
        judgements = rounds - (not settings.judge_last_round) if judged else 0
        return debaters * rounds + judgements + 1 + len(cast.get("condenser", ()))

    def script(self) -> Script:
        self._members = list(range(len(self.cast["debater"])))  # still in the debate
        self._summary: Turn | None = None
        self._chain: Turn | None = None
        stop_reason = "rounds"
        for number in range(self.settings.rounds):
            self.round = number
            replied = yield from self._debate()
            if not replied:
                stop_reason = "failures"
                break
            if rule := self.settled(replied):
                stop_reason = rule
                break
            if (yield from self._consistent(replied)):
                stop_reason = "consistency"
                break
        if not self.latest:
            return self.conclude("no_replies")
        yield _CONCLUDING, self._last_words()
        return self.conclude(stop_reason)

    def conclude(self, stop_reason: str) -> Verdict:
        """The summariser's answer; until it has given one, a vote over the latest answer of everyone still there."""
        last, summary = self._latest(), self._summary
        if summary is None or not summary.answer.parsed:
            verdict = self.vote(last, stop_reason)
        else:
            tolerance = self.task.tolerance
            verdict = self.verdict(
                summary.answer,
                stop_reason,
                aggregator="summariser",
                support=sum(same(turn.answer, summary.answer, tolerance=tolerance) for turn in last),
                votes=sum(turn.answer.parsed for turn in last),
            )
        if self._chain is None or self._chain.reply is None:
            return verdict
        return msgspec.structs.replace(verdict, details={"chain": self._chain.node_id})

    def _debate(self) -> Generator[Step, None, list[Turn]]:
        """One round. Returns: the turns that brought a reply; those who gave none have left, unless all did."""
        turns: dict[int, Turn] = {}
        for speakers in self._speakers():
            now = {member: self._answer(member) for member in speakers}
            yield _DEBATING, list(now.values())
            turns |= now
        still = [member for member in self._members if turns[member].reply is not None]
        self._members = still or self._members
        return [turns[member] for member in still]

    def _consistent(self, replied: list[Turn]) -> Generator[Step, None, bool]:
        """Whether the answers of a round are found to say the same."""
        rule = self.settings.consistency
        if rule == "off" or len(replied) < 2 or not all(turn.answer.parsed for turn in replied):
            return False
        if rule == "parsed":
            return self._vote([turn.answer for turn in replied]).support == len(replied)
        if self.round == self.settings.rounds - 1 and not self.settings.judge_last_round:
            return False
        judge = self._judge(replied)
        yield _JUDGING, [judge]
        return judge.answer.value == "yes"

    def _speakers(self) -> list[list[int]]:
        """Who speaks at once: everybody where none sees another of the same round, else one after another."""
        if self.round == 0 or self.settings.visibility == "snapshot":
            return [list(self._members)]
        return [[member] for member in self._members]

    def _latest(self) -> list[Turn]:
        """The latest answer of everyone still there, in speaking order."""
        return [self.latest[str(member)] for member in self._members if str(member) in self.latest]

    def _answer(self, member: int) -> Turn:
        player, own = self.cast["debater"][member], self.latest.get(str(member))
        peers = [turn for turn in self._latest() if turn is not own] if own else []
        part = "opening" if own is None else "reflect" if peers else "alone"
        shown = {"peers": [self._block("peer", turn) for turn in peers], "own": [own.text] if own else []}
        shows_own = [own] if own and self.prompts.uses(part, "own") else []
        return Turn(
            player=player,
            role="debater",
            step="answer",
            seat=str(member),
            prompt=self.told(
                player, part, images=self._images(), context=shown, question=self._pictured(), agent=str(member + 1)
            ),
            saw=tuple((turn, "saw") for turn in (*peers, *shows_own)),
            answers=True,
            reads=partial(bracketed, task=self.task),
            part=part,
        )

    def _judge(self, replied: list[Turn]) -> Turn:
        claims = [
            # as one line: what a debater put in brackets must not look like a claim of somebody else
            self.prompts.fill("claim", number=_number(turn), answer=" ".join((turn.answer.value or "").split()))
            for turn in replied
        ]
        return self._helper("judge", "judge", replied, {"claims": claims}, read_judge)

    def _last_words(self) -> list[Turn]:
        """The summary and, where somebody is cast for it, the chain. Neither sees the other, so both are asked now."""
        last, said = self._latest(), [turn for turn in self.history if turn.answers]
        replies = [self._block("peer", turn) for turn in last]
        reads = partial(bracketed, task=self.task, only=True)  # a summary names several answers on its way
        self._summary = self._helper("summariser", "summarise", last, {"replies": replies}, reads)
        if not self.cast.get("condenser"):
            return [self._summary]
        blocks = [self._block("said", turn, round=turn.node_id.partition(".")[0]) for turn in said]
        self._chain = self._helper("condenser", "condense", said, {"debate": blocks}, reads, looks=True)
        return [self._summary, self._chain]

    def _helper(
        self,
        role: str,
        step: str,
        saw: Sequence[Turn],
        context: Mapping[str, Sequence[str]],
        reads: Reader,
        looks: bool = False,
    ) -> Turn:
        """A turn of one who does not debate; ``looks``: who is shown the images all the same."""
        player = self.the(role)
        images, question = (self._images(), self._pictured()) if looks else ((), self.question)
        return Turn(
            player=player,
            role=role,
            step=step,
            seat="0",
            prompt=self.told(player, step, head="", images=images, context=context, question=question),
            saw=tuple((turn, "saw") for turn in saw),
            reads=reads,
            part=step,
        )

    def _block(self, part: str, turn: Turn, **slots: str) -> str:
        return self.prompts.fill(part, number=_number(turn), name=turn.player.name, reply=turn.text, **slots)

    def _images(self) -> tuple[ImagePart, ...]:
        return self.task.images if self.settings.images == "attach" else ()

    def _pictured(self) -> str:
        """The question for those who would see the images, with the caption where they see none."""
        caption = self.task.details.get("caption", "")
        if self.settings.images == "attach" or not caption:
            return self.question
        return f"{self.question}\n\n{self.prompts.fill('caption', caption=caption)}"


def _number(turn: Turn) -> str:
    """What a debater is called in prompts, from 1."""
    return str(int(turn.seat) + 1)


def chain_of_debate(debate: Debate) -> Utterance | None:
    """The node whose text a student may be trained on; None where nobody condensed the debate, or failed to."""
    found = [node for node in debate.utterances if node.role == "condenser"]
    return found[-1] if found else None


_MARKED = {"bracket": "[{}]", "boxed": r"\boxed{{{}}}", "math": r"\boxed{{{}}}", "final": "Final answer: {}"}
"""Format -> how it wants an answer marked; the others read one that stands alone."""


def bracketed(text: str, task: Task, *, only: bool = False) -> Answer:
    """The answer in the last brackets, as the task's format reads it.

    Args:
        only: an answer outside brackets is none; otherwise a reply without brackets is read as any other.
    """
    held = last_brackets(text)
    if held is None:
        return Answer() if only else parse_answer(text, task.answer_format, task.choices)
    read = parse_answer(_MARKED.get(task.answer_format, "{}").format(held), task.answer_format, task.choices)
    return msgspec.structs.replace(read, how="bracket") if read.parsed else read
