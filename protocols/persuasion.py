"""Persuasion: two debaters defend opposed answers before a judge who cannot see what they have read.

Source: Khan et al. 2024, arXiv:2402.06782: debate and consultancy, interactive or not, with debaters optimised by
best-of-N and by critique and refinement. Passage and images of a task are shown to debaters and their critic alone.
Sides are drawn, so a position is nobody's own answer: the only answer of a debate is its verdict.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from protocols.answer import Answer
from protocols.bounds import MAX_ROUNDS, MAX_SAMPLES, check_bounds
from protocols.conversation import Conversation, Flow, Player, ProtocolSettings, Role, Script, Step, Turn
from protocols.errors import ConfigError
from protocols.graph import EdgeKind, Verdict
from protocols.judgement import Judgement, decide, read_score, read_side
from protocols.machine import Phase, derive_seed
from protocols.sides import SIDES, Assign, Method, Side, Stage, positions_of
from protocols.task import Task

_SWAPPED = "-swapped"  # ends the seat of a judgement of the sides exchanged


class PersuasionPhase(Phase):
    WAITING = "waiting"  # for the task
    ASKING = "asking"  # the judge puts a question to those who argue
    ARGUING = "arguing"  # one argument a side, or several of which one is chosen
    PREFERRING = "preferring"  # each of several arguments is scored
    CRITICISING = "criticising"  # the critic says what is weak in an argument
    REFINING = "refining"  # who wrote it mends it
    JUDGING = "judging"  # every judge decides, in one order of the two sides or in both
    CLOSED = "closed"


_WAITING, _ASKING, _ARGUING, _PREFERRING, _CRITICISING, _REFINING, _JUDGING, _CLOSED = PersuasionPhase
_GO_ON = frozenset({_ASKING, _ARGUING, _JUDGING, _CLOSED})  # what may follow a side's whole turn


class PersuasionSettings(ProtocolSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The defaults are the paper's static debate, but for best-of-N, which multiplies the calls."""

    method: Method = "debate"  # consultancy: one side, drawn, argues alone
    assign: Assign = "seeded"  # gold: a right answer against a wrong one, whatever the number of choices (an oracle)
    rounds: int = 3  # of arguments, the opening included
    style: Literal["simultaneous", "sequential"] = "simultaneous"  # sequential: B has read A's argument of the round
    interactive: bool | None = None  # the judge asks before each later round; null: in consultancy alone
    best_of: int = 1  # arguments written for each turn; the preference role chooses, or else the first counts
    critique: bool = False  # the critic criticises each argument, and who wrote it refines it
    swap: bool = True  # each judge decides twice, the second time with the two sides exchanged
    judge_style: Literal["plain", "cot"] = "plain"  # cot: reasons first
    prompts: str = "persuasion.quotes.en"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, rounds=(1, MAX_ROUNDS), best_of=(1, MAX_SAMPLES))
        if self.stop:
            raise ValueError(
                f"stop={list(self.stop)} compares debaters' own answers, and persuasion assigns them; leave it out"
            )

    @property
    def asks_questions(self) -> bool:
        return self.method == "consultancy" if self.interactive is None else self.interactive


class Persuasion(Conversation):
    """One debate. Every ask is a message of its own that shows the transcript so far.

    Who fails to argue in a round is missing from it and is asked again in the next; a round in which nobody argues is
    the last (stop reason ``failures``), and one without any argument before it ends the debate (``no_replies``). A
    question that does not come is left out. Of several arguments, unscored ones count least and the first of equals is
    taken; without a critique, or a refinement, the argument stands as it is. Judges who fail or cannot be read, after
    one request to mend the form, do not vote; where none is left the verdict has no answer and says ``failures``.

    The verdict's details: ``side`` (a or b) and ``position`` (the answer it defended), ``by`` (what decided:
    agreement, majority, confidence or tie_break), ``chose_a`` (how many judgements went to the side called A: far from
    half is position bias), ``both_orders`` (judges who kept to one side in both orders), ``confidence`` (the mean of
    those for the answer, where all say it), ``silent`` (who was to argue and never did), ``consultant`` (the side that
    argued alone).
    """

    NAME = "persuasion"
    SOURCE = "Khan et al. 2024, arXiv:2402.06782"
    SETTINGS = PersuasionSettings
    FLOW: ClassVar[Flow] = {
        _WAITING: frozenset({_ARGUING}),
        _ASKING: frozenset({_ARGUING}),
        _ARGUING: frozenset({_PREFERRING, _CRITICISING}) | _GO_ON,
        _PREFERRING: frozenset({_CRITICISING}) | _GO_ON,
        _CRITICISING: frozenset({_REFINING}) | _GO_ON,
        _REFINING: _GO_ON,
        _JUDGING: frozenset({_CLOSED}),
        _CLOSED: frozenset(),
    }
    ROLES: ClassVar[Mapping[str, Role]] = {
        "debater": Role("defends an answer; two in a debate, one in consultancy", 1, 2),
        "judge": Role("decides, having seen the arguments alone; the first one asks the questions", 1, None),
        "preference": Role("scores the arguments of which one is chosen, where best_of is above 1", 0, 1),
        "critic": Role("criticises arguments, where critique is on", 0, 1),
    }
    _SEEN: ClassVar[frozenset[str]] = frozenset({"question", "rules", "transcript"})
    _ARGUES: ClassVar[frozenset[str]] = _SEEN | {"background", "name", "position", "opposing"}
    SLOTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "system": frozenset(),
        "debate": frozenset({"answer_a", "answer_b", "name_a", "name_b"}),  # fills ${rules}
        "consultancy": frozenset({"answer_a", "answer_b"}),
        "background": frozenset({"passage"}),  # no part that a judge reads has a slot for it
        "debater": frozenset({"letter"}),  # a name in the transcript
        "consultant": frozenset(),
        "questioner": frozenset(),
        "entry": frozenset({"name", "text"}),
        "opening": _ARGUES,
        "rebuttal": _ARGUES,
        "consult": _ARGUES,  # the consultant's later turns
        "criticise": _ARGUES | {"draft"},
        "refine": _ARGUES | {"draft", "critique"},
        "prefer": _SEEN | {"name", "position", "opposing", "draft"},
        "ask": _SEEN,
        "judge": _SEEN,
        "judge_cot": _SEEN,
        "mend_judgement": frozenset(),
        "mend_score": frozenset(),
    }
    LEARNERS = ("debater",)
    DEPARTURES = """
        Every argument is written once and stands as it is by default; the paper's debaters are optimised (best_of,
        critique).
        One debate is judged in both orders of its sides (swap), where the paper holds debates in both.
        A preference judge says a score from 0 to 10, the paper takes the probability a judge gives the answer.
        Of best_of arguments the chosen one alone is criticised and refined, once.
        A quote is verified by its words, so that punctuation, case and spacing may differ; the released code takes
        near misses for unverified. Marks of verification that a debater sets itself are taken off.
        Sides are drawn without a look at gold (assign: seeded); the paper assigns a right and a wrong answer
        (assign: gold).
        By default a consultant is asked questions and debaters are not (interactive); the paper holds both both ways.
    """

    @classmethod
    def check_cast(cls, settings: PersuasionSettings, cast: Mapping[str, tuple[Player, ...]]) -> None:
        wanted, number = 2 if settings.method == "debate" else 1, len(cast["debater"])
        if number != wanted:
            way_out = (
                "name one agent" if wanted == 1 else "name two, or one twice, to argue with itself (or set consultancy)"
            )
            raise ConfigError(
                f"cast.debater has {number} agents and protocol.method={settings.method} takes {wanted}; {way_out}"
            )
        if settings.critique and not cast.get("critic"):
            raise ConfigError("protocol.critique is on, so cast.critic needs an agent; it may be one of the debaters")

    @classmethod
    def max_asks(cls, settings: PersuasionSettings, cast: Mapping[str, Sequence[Any]]) -> int:
        scores = settings.best_of if settings.best_of > 1 and cast.get("preference") else 0
        turn = settings.best_of + scores + 2 * settings.critique
        questions = (settings.rounds - 1) * settings.asks_questions
        return len(cast["debater"]) * settings.rounds * turn + questions + len(cast["judge"]) * (1 + settings.swap)

    def check_task(self, task: Task) -> None:
        positions_of(task, self.settings.assign, self.rng("sides"))

    def script(self) -> Script:
        self.oracle = self.settings.assign == "gold"
        self._prepare()
        stop_reason = "rounds"
        at_once = self.settings.style == "simultaneous"
        moments: list[tuple[Side, ...]] = [self._seats] if at_once else [(seat,) for seat in self._seats]
        for number in range(self.settings.rounds):
            self.round = number
            if number and self.settings.asks_questions:
                question = self._question()
                yield _ASKING, [question]
                self._transcript += [[question]] if question.reply else []
            spoke = False
            for seats in moments:
                if said := (yield from self._arguments(seats)):
                    self._transcript.append(said)
                    spoke = True
            if not spoke:
                stop_reason = "failures"
                break
        if not self._transcript:  # the first round brought nothing, so there was no question either
            return self.conclude("no_replies")
        self._judgements += self._judge()
        yield _JUDGING, self._judgements
        decided = any(turn.answer.parsed for turn in self._judgements)
        return self.conclude(stop_reason if decided else "failures")

    def conclude(self, stop_reason: str) -> Verdict:
        """What the judgements so far decide: see ``decide``."""
        read = [self._judged(turn) for turn in self._judgements if turn.answer.parsed]
        decision = decide(read, tie_break=self.settings.tie_break, seed=derive_seed(self.seed, "tie"))
        details = {} if self.settings.method == "debate" else {"consultant": self._seats[0]}
        spoke = {turn.seat[0] for group in self._transcript for turn in group}
        if self._judgements and (silent := [seat for seat in self._seats if seat not in spoke]):
            details["silent"] = silent[0]  # the other one spoke, or there would be nothing to judge
        if decision is None:
            return self.verdict(None, stop_reason, aggregator="judge", details=details)
        position = self._positions[SIDES.index(decision.side)]
        return self.verdict(
            Answer(position.value, "judge"),
            stop_reason,
            aggregator="judge",
            support=decision.support,
            votes=decision.votes,
            tie=decision.tie,
            details={"side": decision.side, "position": position.text, "by": decision.by} | decision.details | details,
        )

    def _prepare(self) -> None:
        """What holds for the whole debate."""
        self._positions = positions_of(self.task, self.settings.assign, self.rng("sides"))
        answers = self._positions[0].text, self._positions[1].text
        self._stage = Stage(self.prompts, self.settings.method, answers, self.task.details.get("passage", ""))
        self._transcript: list[list[Turn]] = []  # what was said, the turns of one moment together
        self._judgements: list[Turn] = []
        drawn: Side = self.rng("consultant").choice(SIDES)
        self._seats: tuple[Side, ...] = SIDES if self.settings.method == "debate" else (drawn,)

    # A side's turn

    def _arguments(self, seats: Sequence[Side]) -> Generator[Step, None, list[Turn]]:
        """One turn of each of these sides, all at once. Returns: what each says in the end, where it says anything."""
        drafts = {seat: [self._argue(seat, number) for number in range(self.settings.best_of)] for seat in seats}
        yield _ARGUING, [draft for written in drafts.values() for draft in written]
        heard = {seat: [draft for draft in written if draft.reply] for seat, written in drafts.items()}
        chosen = yield from self._chosen({seat: written for seat, written in heard.items() if written})
        if self.settings.critique:
            chosen = yield from self._refined(chosen)
        return list(chosen.values())

    def _chosen(self, drafts: Mapping[Side, list[Turn]]) -> Generator[Step, None, dict[Side, Turn]]:
        """The argument of each side that the preference role likes best; the first of those it likes as much."""
        scored: dict[Side, list[Turn]] = {}
        if self.cast.get("preference"):
            scored = {
                seat: [self._score(seat, one) for one in written] for seat, written in drafts.items() if written[1:]
            }
        yield _PREFERRING, [score for scores in scored.values() for score in scores]
        best = {
            seat: max(range(len(scores)), key=lambda i: float(scores[i].answer.value or -1))
            for seat, scores in scored.items()
        }
        return {seat: written[best.get(seat, 0)] for seat, written in drafts.items()}

    def _refined(self, drafts: Mapping[Side, Turn]) -> Generator[Step, None, dict[Side, Turn]]:
        """The arguments, each refined where a critique of it came and the refinement did."""
        critiques = {seat: self._criticise(seat, draft) for seat, draft in drafts.items()}
        yield _CRITICISING, list(critiques.values())
        refined = {seat: self._refine(seat, drafts[seat], one) for seat, one in critiques.items() if one.reply}
        yield _REFINING, list(refined.values())
        return {seat: refined[seat] if seat in refined and refined[seat].reply else drafts[seat] for seat in drafts}

    def _argue(self, seat: Side, number: int) -> Turn:
        later = "rebuttal" if self.settings.method == "debate" else "consult"
        named = f"{seat}-{number + 1}" if self.settings.best_of > 1 else seat
        return self._ask_of(
            self._debater(seat), "debater", "argue", later if self._transcript else "opening", named, seat
        )

    def _score(self, seat: Side, draft: Turn) -> Turn:
        turn = self._ask_of(self.the("preference"), "preference", "prefer", "prefer", draft.seat, seat, draft=draft)
        turn.reads, turn.retries, turn.repair = read_score, 1, self.prompts.fill("mend_score")
        return turn

    def _criticise(self, seat: Side, draft: Turn) -> Turn:
        return self._ask_of(self.the("critic"), "critic", "criticise", "criticise", seat, seat, draft=draft)

    def _refine(self, seat: Side, draft: Turn, critique: Turn) -> Turn:
        return self._ask_of(
            self._debater(seat), "debater", "refine", "refine", seat, seat, draft=draft, critique=critique
        )

    def _debater(self, seat: Side) -> Player:
        return self.cast["debater"][self._seats.index(seat)]

    # The judge

    def _question(self) -> Turn:
        return self._ask_of(self.the("judge"), "judge", "question", "ask", "0")

    def _judge(self) -> list[Turn]:
        """Every judge, in one order of the sides or in both."""
        part = "judge" if self.settings.judge_style == "plain" else "judge_cot"
        turns = []
        for number, player in enumerate(self.cast["judge"]):
            for swapped in (False, True)[: 1 + self.settings.swap]:
                turn = self._ask_of(
                    player, "judge", "judge", part, f"{number}{_SWAPPED if swapped else ''}", swapped=swapped
                )
                turn.reads = partial(read_side, answers=self._stage.answers(swapped), names=self._stage.names)
                turn.retries, turn.repair = 1, self.prompts.fill("mend_judgement")
                turns.append(turn)
        return turns

    @staticmethod
    def _judged(turn: Turn) -> Judgement:
        """A judgement that could be read, of the sides as they are."""
        named_a, swapped = turn.answer.value == "A", turn.seat.endswith(_SWAPPED)
        sure = turn.answer.details.get("confidence")
        side = SIDES[0] if named_a != swapped else SIDES[1]
        return Judgement(turn.seat.removesuffix(_SWAPPED), side, named_a, float(sure) if sure else None)

    # Prompts

    def _ask_of(
        self,
        player: Player,
        role: str,
        step: str,
        part: str,
        seat: str,
        side: Side | None = None,
        *,
        draft: Turn | None = None,
        critique: Turn | None = None,
        swapped: bool = False,
    ) -> Turn:
        """A turn that shows the transcript so far; ``side`` is whom it is about, ``swapped`` exchanges the two."""
        shown = self._transcript if self.prompts.uses(part, "transcript") else []
        saw: list[tuple[Turn, EdgeKind]] = [(turn, "saw") for group in shown for turn in group]
        saw += [(draft, "saw")] if draft else []
        saw += [(critique, "critique")] if critique else []
        stage, own = self._stage, SIDES.index(side) if side else 0
        prompt = self.told(
            player,
            part,
            images=self.task.images if role in ("debater", "critic") else (),
            context={
                "transcript": stage.transcript(shown, swapped),
                "draft": [stage.verified(draft.text)] if draft else [],
                "critique": [critique.text] if critique else [],
            },
            question=self.task.question,  # without its choices: their letters are not those of the sides
            rules=stage.rules(swapped),
            background=stage.background,
            name=stage.name(side) if side else "",
            position=self._positions[own].text,
            opposing=self._positions[1 - own].text,
        )
        return Turn(player=player, role=role, step=step, seat=seat, prompt=prompt, saw=tuple(saw), part=part)
