"""Affirmative against negative: debaters argue round by round until a moderator sees a winner, else a judge decides.

Source: Liang et al. 2023 (MAD), arXiv:2305.19118, sec. 2, and its released code. The affirmative side answers, or
defends the answer of an agent outside the debate; the others disagree in a fixed order; the moderator hears each round.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import msgspec

from protocols.answer import Answer, same
from protocols.bounds import MAX_ROUNDS, check_bounds
from protocols.conversation import Conversation, Flow, Player, ProtocolSettings, Reader, Role, Script, Step, Turn
from protocols.graph import Verdict
from protocols.machine import Phase
from protocols.mad_replies import ordinal, read_stated, read_verdict, side_named
from protocols.message import Reply


class MadPhase(Phase):
    WAITING = "waiting"  # for the task
    PREPARING = "preparing"  # the answer that the affirmative side will defend is asked for, outside the debate
    DEBATING = "debating"  # one debater at a time, each having read the others' last words
    MODERATING = "moderating"  # the moderator reads the round and may name a winner
    JUDGING = "judging"  # without a winner: list the candidates, then decide
    CLOSED = "closed"


_WAITING, _PREPARING, _DEBATING, _MODERATING, _JUDGING, _CLOSED = MadPhase

_FIRST = ("affirmative", "negative")  # who opens and who disagrees first
_MAX_REASON = 4000  # characters kept of it


class MadSettings(ProtocolSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The defaults are those of the released code; the kind of task is that of the prompt set."""

    rounds: int = 3  # at most, the opening included
    level: int = 2  # of disagreement: 0 agree on everything, 1 disagree mostly, 2 need not agree, 3 disagree on all
    adaptive: bool = True  # the moderator's answer ends the debate; false: all rounds are debated
    judge_evidence: Literal["openings", "last", "full"] = "openings"  # what the judge reads; the paper says full
    repair: bool = True  # a verdict that cannot be read is asked for once more
    prompts: str = "mad.number.en"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, rounds=(1, MAX_ROUNDS))
        if not 0 <= self.level <= 3:
            raise ValueError(f"level={self.level} must be 0, 1, 2 or 3")


class _Side(msgspec.Struct, frozen=True):
    """A debater's place: its name in verdicts, and its label in prompts, in their language."""

    role: str
    player: Player
    seat: str
    name: str
    label: str


_TASK = frozenset({"question", "source_language", "target_language"})  # what every prompt may show of a task


class Mad(Conversation):
    """One debate. Debaters, moderator and judge each keep a chat of their own.

    The verdict is the answer of the moderator or, where it named none, of the judge (default: the moderator's agent in
    a fresh chat); ``aggregator`` says whose. When things fail:

    - A debater that fails or is late leaves, and the others go on. Where only one is left, the debate ends with its
      latest answer (``last_debater``). Where nobody has opened yet, the next in line does.
    - Without a base answer, though somebody is cast for it, the opening is an answer to the bare question.
    - A moderator that fails or cannot be read has seen no winner.
    - Where the judge fails, cannot be read or gives no answer, or a budget ends the debate before it is asked, the
      latest answer of the side that the moderator last supported is the verdict (``supported_side``), else a vote of
      the debaters' latest (``majority_vote``), those who left included where no other's can be read, else the base
      answer (``base``).

    ``support`` counts the debaters whose latest answer is the verdict's, of the ``votes`` that can be read. ``details``
    hold the ``reason`` given and the ``side`` that won ("affirmative", "negative", "debater 3", ...): the one that
    moderator or judge names, else the only one whose latest answer it is.
    """

    NAME = "mad"
    SOURCE = "Liang et al. 2023 (MAD), arXiv:2305.19118"
    SETTINGS = MadSettings
    FLOW: ClassVar[Flow] = {
        _WAITING: frozenset({_PREPARING, _DEBATING}),
        _PREPARING: frozenset({_DEBATING}),
        _DEBATING: frozenset({_DEBATING, _MODERATING, _CLOSED}),
        _MODERATING: frozenset({_DEBATING, _JUDGING, _CLOSED}),
        _JUDGING: frozenset({_JUDGING, _CLOSED}),
        _CLOSED: frozenset(),
    }
    ROLES: ClassVar[Mapping[str, Role]] = {
        "base": Role("answers before the debate; the affirmative side defends that answer", 0, 1),
        "affirmative": Role("opens every round", 1, 1),
        "negative": Role("disagrees with the affirmative side", 1, 1),
        "debater": Role("disagrees too, after the others, in the cast's order", 0, None),
        "moderator": Role("reads every round and names a winner, or none yet", 1, 1),
        "judge": Role("decides where the moderator named none; default: the moderator's agent, in a fresh chat", 0, 1),
    }
    SLOTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "system": _TASK | {"side", "sides", "level"},  # of debaters
        "moderator_system": _TASK | {"sides"},  # of moderator and judge
        "level0": frozenset(),
        "level1": frozenset(),
        "level2": frozenset(),
        "level3": frozenset(),
        "affirmative": frozenset(),  # what the sides are called
        "negative": frozenset(),
        "debater": frozenset({"number"}),
        "source_language": frozenset(),  # where the task's details name none
        "target_language": frozenset(),
        "base": _TASK,
        "opening": _TASK | {"side"},
        "defend": _TASK | {"side", "base"},
        "oppose": _TASK | {"side", "speeches"},
        "rebut": _TASK | {"side", "speeches", "ordinal", "number"},
        "speech": frozenset({"side", "reply"}),
        "moderate": _TASK | {"sides", "speeches", "ordinal", "number"},
        "judge_list": _TASK | {"sides", "speeches"},
        "judge_decide": _TASK | {"sides"},
        "repair": frozenset(),
    }
    LEARNERS = (*_FIRST, "debater")
    DEPARTURES = """
        The judge reads the openings alone, as in the released code; the paper shows it the whole debate
        (judge_evidence: full).
        A verdict that cannot be read is asked for once more (repair: false); in the released code it ends the run.
        A verdict's answer that the task's format cannot read, or that says "none" in words, is no answer: the debate
        goes on, where the released code ends with whatever was said.
        Where the judge gives no answer either, the side that the moderator last supported or a vote decides, and the
        verdict's aggregator says so; the released code then has no answer.
        Debaters are asked to end with their answer on a line of its own, so that every turn can be graded; it is read
        from there alone where answers are free text.
        Debaters sample with the settings of their agents; the source has temperature 0 for all.
        With more than two debaters each is shown the last words of all others who are still there.
        By default training tunes the debaters; the source trains nothing.
    """

    @classmethod
    def max_asks(cls, settings: MadSettings, cast: Mapping[str, Sequence[Any]]) -> int:
        debaters = sum(len(cast.get(role, ())) for role in (*_FIRST, "debater"))
        return len(cast.get("base", ())) + settings.rounds * (debaters + 1) + 2

    def script(self) -> Script:
        self._sides = self._seats()
        self._left = list(self._sides)  # still in the debate
        if self.cast.get("base"):
            yield _PREPARING, [self._base()]
        verdict: Turn | None = None
        for number in range(self.settings.rounds):
            self.round = number
            speeches = yield from self._debate()
            if len(self._left) < 2:
                return self.conclude("failures" if self.latest else "no_replies")
            if rule := self.settled(speeches):
                return self.vote(speeches, rule)
            verdict = self._moderation(speeches)
            yield _MODERATING, [verdict]
            if verdict.answer.parsed and self.settings.adaptive:
                return self.conclude("verdict")
        if verdict is None or not verdict.answer.parsed:
            yield from self._judge()
        return self.conclude("rounds")

    def conclude(self, stop_reason: str) -> Verdict:
        """The judge's decision, else the moderator's latest verdict, else what the class says."""
        ruling, last = self._heard("moderator"), self._last()
        for turn in (self._heard("judge"), ruling):
            if turn is not None and turn.answer.parsed:
                return self._decided(turn, stop_reason, turn.role)
        if len(self._left) == 1 and last and last[0].answer.parsed:
            return self._decided(last[0], stop_reason, "last_debater", seat=last[0].seat)
        favoured = self.latest.get(self._seat_of(ruling)) if ruling else None
        if ruling and favoured and favoured.answer.parsed:
            return self._decided(favoured, stop_reason, "supported_side", seat=favoured.seat, told=ruling)
        said = last if any(turn.answer.parsed for turn in last) else self._last(self._sides)
        base = self._heard("base")
        if base and not any(turn.answer.parsed for turn in said):
            return self._decided(base, stop_reason, "base")
        return self.vote(said, stop_reason)

    def unsettled(self, reply: Reply) -> str:
        """See ``Machine``: what moderator and judge decide is an answer to the task, too."""
        turn = self._asked.get(reply.ask_id)
        return "" if turn is None else self._read(turn, reply.text).value or ""

    # Who speaks

    def _seats(self) -> list[_Side]:
        """The debaters in speaking order."""
        sides = [_Side(name, self.the(name), name, name, self.prompts.fill(name)) for name in _FIRST]
        for number, player in enumerate(self.cast.get("debater", ()), 3):
            label = self.prompts.fill("debater", number=str(number))
            sides.append(_Side("debater", player, f"debater-{number}", f"debater {number}", label))
        return sides

    def _debate(self) -> Generator[Step, None, list[Turn]]:
        """One round, one speaker after another. Returns: the speeches that came; who gave none has left."""
        speeches: list[Turn] = []
        for side in list(self._left):
            speech = self._speech(side)
            yield _DEBATING, [speech]
            if speech.reply is not None:
                speeches.append(speech)
                continue
            self._left.remove(side)
            if len(self._left) < 2 and (speeches or self.round):
                break  # nobody is left to disagree with
        return speeches

    def _judge(self) -> Generator[Step, None, None]:
        """A chat of two turns; without the list of candidates there is nothing to decide between."""
        listing = self._judgement("0", "judge_list", self._evidence())
        yield _JUDGING, [listing]
        if listing.reply is not None:
            yield _JUDGING, [self._judgement("1", "judge_decide")]

    # What they are asked

    def _base(self) -> Turn:
        return self._put("base", self.the("base"), "base", "0", "base", answers=True)

    def _speech(self, side: _Side) -> Turn:
        others = [turn for turn in self._last() if turn.seat != side.seat]
        base = self._heard("base", read=False)
        part, shown = "rebut" if self.round else "oppose", others
        if not others:  # the opening of the debate
            part, shown = ("defend", [base]) if base else ("opening", [])
        return self._put(
            side.role,
            side.player,
            "argue",
            side.seat,
            part,
            thread=side.seat,
            head="system",
            shown=shown,
            answers=True,
            reads=read_stated if self.task.answer_format == "text" else None,
            side=side.label,
            level=self.prompts.fill(f"level{self.settings.level}"),
        )

    def _moderation(self, speeches: Sequence[Turn]) -> Turn:
        turn = self._put(
            "moderator",
            self.the("moderator"),
            "moderate",
            "moderator",
            "moderate",
            thread="moderator",
            head="moderator_system",
            shown=speeches,
            reads=self._verdict_in,
        )
        return self._repaired(turn)

    def _judgement(self, seat: str, part: str, evidence: Sequence[Turn] = ()) -> Turn:
        turn = self._put(
            "judge",
            (self.cast.get("judge") or self.cast["moderator"])[0],
            "judge",
            seat,
            part,
            thread="judge",
            head="moderator_system",
            shown=evidence,
            reads=self._verdict_in if part == "judge_decide" else None,
        )
        return self._repaired(turn) if turn.reads else turn

    def _repaired(self, turn: Turn) -> Turn:
        """With a second try, where the settings give one."""
        turn.retries, turn.repair = int(self.settings.repair), self.prompts.fill("repair")
        return turn

    def _put(
        self,
        role: str,
        player: Player,
        step: str,
        seat: str,
        part: str,
        *,
        thread: str = "",
        head: str = "",
        shown: Sequence[Turn] = (),
        answers: bool = False,
        reads: Reader | None = None,
        **slots: str,
    ) -> Turn:
        """A turn that shows others' texts; images go with the first message of a chat."""
        prompt = self.told(
            player,
            part,
            thread=thread,
            head=head,
            images=() if thread in self._threads else self.task.images,
            context={"base" if part == "defend" else "speeches": [self._block(turn) for turn in shown]},
            sides=", ".join(side.label for side in self._sides),
            ordinal=ordinal(self.round + 1),
            number=str(self.round + 1),
            source_language=self._language("source_language"),
            target_language=self._language("target_language"),
            **slots,
        )
        return Turn(
            player=player,
            role=role,
            step=step,
            seat=seat,
            prompt=prompt,
            thread=thread,
            saw=tuple((turn, "saw") for turn in shown),
            answers=answers,
            reads=reads,
            part=part,
        )

    def _block(self, turn: Turn) -> str:
        """A speech under its side's label; the base answer as it is."""
        label = next((side.label for side in self._sides if side.seat == turn.seat), "")
        return self.prompts.fill("speech", side=label, reply=turn.text) if label else turn.text

    def _language(self, which: str) -> str:
        """What a translation is from or into: as the task says, else as the prompt set does."""
        return self.task.details.get(which) or self.prompts.fill(which)

    def _evidence(self) -> list[Turn]:
        """What the judge reads, in the order it was said."""
        speeches = [turn for turn in self.history if turn.step == "argue"]
        if self.settings.judge_evidence == "full":
            return speeches
        if self.settings.judge_evidence == "last":
            return [turn for turn in speeches if self.latest[turn.seat] is turn]
        return [turn for turn in speeches if turn.node_id.startswith("0.")]

    # What was said

    def _last(self, sides: Sequence[_Side] | None = None) -> list[Turn]:
        """The latest speech of these debaters (default: of all who are still there), in speaking order."""
        return [self.latest[side.seat] for side in sides or self._left if side.seat in self.latest]

    def _heard(self, role: str, *, read: bool = True) -> Turn | None:
        """The latest reply in a role; the latest that could be read, unless ``read`` is off."""
        said = (turn for turn in reversed(self.history) if turn.role == role)
        return next((turn for turn in said if turn.answer.how or not read), None)

    def _verdict_in(self, text: str) -> Answer:
        return read_verdict(text, self.task)

    def _seat_of(self, turn: Turn) -> str:
        """The seat of the side that a moderator or judge names; "" for none or several."""
        names = {known: side.seat for side in self._sides for known in (side.label, side.name)}
        return side_named(turn.answer.details.get("side", ""), names)

    def _decided(
        self, turn: Turn, stop_reason: str, aggregator: str, *, seat: str = "", told: Turn | None = None
    ) -> Verdict:
        """A turn's answer as the verdict, no vote; ``told`` gives the reason where it is another's."""
        last = self._last()
        agree = [said for said in last if same(said.answer, turn.answer, tolerance=self.task.tolerance)]
        seat = seat or self._seat_of(turn) or (agree[0].seat if len(agree) == 1 else "")
        reason = (told or turn).answer.details.get("reason", "")[:_MAX_REASON]
        details = {"side": seat.replace("-", " "), "reason": reason}
        return self.verdict(
            turn.answer,
            stop_reason,
            aggregator=aggregator,
            support=len(agree),
            votes=sum(said.answer.parsed for said in last),
            details={name: value for name, value in details.items() if value},
        )
