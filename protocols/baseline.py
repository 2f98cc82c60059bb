"""What a debate has to beat: one agent alone, asked once, many times, or made to look at its own answer again.

Sources: Kojima et al. 2022, arXiv:2205.11916 (step by step); Wang et al. 2022, arXiv:2203.11171, sec. 2
(self-consistency); Madaan et al. 2023, arXiv:2303.17651, sec. 2, and Shinn et al. 2023, arXiv:2303.11366
(self-reflection); He et al. 2023 (MAPS), arXiv:2305.04118, sec. 3 (rerank; knowledge for translations).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import msgspec

from protocols.answer import Answer
from protocols.bounds import MAX_ROUNDS, MAX_SAMPLES, check_bounds
from protocols.conversation import Conversation, Flow, Player, ProtocolSettings, Role, Script, Turn
from protocols.errors import ConfigError
from protocols.graph import Verdict
from protocols.machine import Phase
from protocols.prompt import PromptSet

Method = Literal["single", "cot", "self_consistency", "majority", "self_reflect", "rerank", "maps"]


class BaselinePhase(Phase):
    WAITING = "waiting"  # for the task
    RECALLING = "recalling"  # maps: what the solver knows about the text is asked for
    ANSWERING = "answering"  # every sample at once
    REVIEWING = "reviewing"  # self_reflect: the answer is looked at again
    SCORING = "scoring"  # rerank, maps: every candidate at once
    CLOSED = "closed"


_WAITING, _RECALLING, _ANSWERING, _REVIEWING, _SCORING, _CLOSED = BaselinePhase

_KNOWLEDGE = ("keywords", "topics", "demonstration")
_PARTS: Mapping[str, tuple[str, ...]] = {  # what a method needs of the prompt set
    "single": ("answer",),
    "cot": ("step_by_step",),
    "self_consistency": ("step_by_step",),
    "majority": ("answer",),
    "self_reflect": ("answer", "review"),
    "rerank": ("answer", "score"),
    "maps": ("answer", *_KNOWLEDGE, "informed", "score"),
}


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The debate whose calls a baseline is to match: each of so many agents asked once in each of so many rounds."""

    agents: int
    rounds: int

    def __post_init__(self) -> None:
        check_bounds(self, agents=(1, MAX_ROUNDS), rounds=(1, MAX_ROUNDS))


class BaselineSettings(ProtocolSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which baseline, and how much of it."""

    method: Method = "self_consistency"
    samples: int = 5  # of self_consistency, majority and rerank; Wang et al. draw 40
    match: Match | None = None  # of self_consistency and majority: as many samples as this debate has answers
    rounds: int = 2  # of self_reflect, the first answer included
    prompts: str = "baseline.number.en"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, samples=(1, MAX_SAMPLES), rounds=(1, MAX_ROUNDS))
        if self.match and self.method not in ("self_consistency", "majority"):
            raise ValueError(f"match gives a number of votes, and method={self.method} does not vote; leave it out")
        if self.stop and (self.method != "self_reflect" or "unanimity" in self.stop):
            raise ValueError(
                f"stop={list(self.stop)} has nothing to stop in method={self.method}; leave it out (self_reflect alone "
                "goes by rounds, and takes [oracle])"
            )

    @property
    def num_samples(self) -> int:
        """Answers asked for at once."""
        if self.method in ("single", "cot", "self_reflect"):
            return 1
        return self.match.agents * self.match.rounds if self.match else self.samples


class Baseline(Conversation):
    """One solver, and for some methods a scorer.

    The samples are asked for under one prompt with seeds of their own. A sample that fails or cannot be read does not
    vote and is not scored. Where no score can be read the samples are put to the vote, and the verdict's aggregator
    says ``majority_vote``.
    """

    NAME = "baseline"
    SOURCE = (
        "Kojima et al. 2022, arXiv:2205.11916; Wang et al. 2022, arXiv:2203.11171; Madaan et al. 2023, "
        "arXiv:2303.17651; He et al. 2023 (MAPS), arXiv:2305.04118"
    )
    SETTINGS = BaselineSettings
    FLOW: ClassVar[Flow] = {
        _WAITING: frozenset({_RECALLING, _ANSWERING}),
        _RECALLING: frozenset({_ANSWERING}),
        _ANSWERING: frozenset({_REVIEWING, _SCORING, _CLOSED}),
        _REVIEWING: frozenset({_REVIEWING, _CLOSED}),
        _SCORING: frozenset({_CLOSED}),
        _CLOSED: frozenset(),
    }
    ROLES: ClassVar[Mapping[str, Role]] = {
        "solver": Role("answers"),
        "scorer": Role("scores candidates, for rerank and maps; default: the solver", 0, 1),
    }
    SLOTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "system": frozenset(),
        "answer": frozenset({"question"}),
        "step_by_step": frozenset({"question"}),
        "review": frozenset({"question"}),
        "score": frozenset({"question", "reply"}),
        "repair": frozenset(),  # what is said, once, where no score can be read
        "keywords": frozenset({"question"}),
        "topics": frozenset({"question"}),
        "demonstration": frozenset({"question"}),
        "informed": frozenset({"question", "knowledge"}),
    }
    LEARNERS = ("solver",)
    DEPARTURES = """
        By default self_consistency draws 5 samples, Wang et al. 40; a tie is broken with the debate's seed.
        With cot the solver is asked once for reasons and answer; Kojima et al. ask for the answer in a second prompt.
        The method majority is self_consistency under the plain prompt; its match setting counts a debate's answers, not
        its summaries.
        With self_reflect the solver always goes its rounds, in one chat, with no tool and no verdict of another to go
        by; what is wrong and the better answer come in one reply, where Madaan et al. ask for each by itself.
        By default rerank draws 5 candidates; the tables of MAD (arXiv:2305.19118) have 4.
        Both rerank and maps have an agent score each candidate from 0 to 100, where MAPS uses a trained quality
        estimator; equal scores are settled by a vote among those that have the highest.
        Under maps the solver is asked for its knowledge without worked examples.
    """

    def __init__(self, settings: BaselineSettings, cast: Mapping[str, tuple[Player, ...]], prompts: PromptSet) -> None:
        super().__init__(settings, cast, prompts)
        for part in _PARTS[settings.method]:
            if not prompts.has(part):
                raise ConfigError(
                    f"protocol.method={settings.method} needs the part {part!r}, which prompt set {prompts.name!r} "
                    "leaves empty; choose another set or method"
                )
        self._scores: list[tuple[Turn, Turn]] = []  # candidate, and the turn that scores it

    @classmethod
    def check_cast(cls, settings: BaselineSettings, cast: Mapping[str, tuple[Player, ...]]) -> None:
        solver = cast["solver"][0]
        if settings.num_samples > 1 and settings.method != "maps" and solver.sampling.temperature == 0:
            raise ConfigError(
                f"agents.{solver.name}.temperature=0 draws the same answer {settings.num_samples} times; set it above "
                f"0, or protocol.method: single instead of {settings.method}"
            )
        if cast.get("scorer") and settings.method not in ("rerank", "maps"):
            raise ConfigError(f"cast.scorer has nothing to do in protocol.method={settings.method}; leave it out")

    @classmethod
    def max_asks(cls, settings: BaselineSettings, cast: Mapping[str, Sequence[Any]]) -> int:
        if settings.method == "self_reflect":
            return settings.rounds
        if settings.method == "maps":
            return len(_KNOWLEDGE) + 2 * (len(_KNOWLEDGE) + 1)
        return settings.num_samples * (2 if settings.method == "rerank" else 1)

    def script(self) -> Script:
        method = self.settings.method
        recalled: list[Turn] = []
        if method == "maps":
            recalled = [self.turn("solver", part, part, images=self.task.images) for part in _KNOWLEDGE]
            yield _RECALLING, recalled
        turns = self._candidates(recalled) if method == "maps" else self._samples()
        yield _ANSWERING, turns
        if not self.latest:
            return self.conclude("no_replies")
        if method == "self_reflect":
            return (yield from self._reviews(turns[0]))
        if method in ("rerank", "maps"):
            readable = [turn for turn in turns if turn.answer.parsed]
            self._scores = [(turn, self._score(turn)) for turn in readable]
            yield _SCORING, [score for _, score in self._scores]
        return self.conclude("rounds")

    def conclude(self, stop_reason: str) -> Verdict:
        """The candidates with the highest score, or all that were given, put to the vote."""
        ranked = self.settings.method in ("rerank", "maps")
        scored = [(int(score.answer.value), turn) for turn, score in self._scores if score.answer.value is not None]
        if not scored:
            verdict = self.vote(self.latest.values(), stop_reason)
            return verdict if ranked else msgspec.structs.replace(verdict, aggregator=self.settings.method)
        highest = max(score for score, _ in scored)
        verdict = self.vote((turn for score, turn in scored if score == highest), stop_reason)
        return msgspec.structs.replace(verdict, aggregator=self.settings.method, details={"score": str(highest)})

    def _samples(self) -> list[Turn]:
        part = _PARTS[self.settings.method][0]
        thread = "solver" if self.settings.method == "self_reflect" else ""
        return [
            self.turn("solver", "answer", part, seat=str(number), thread=thread, images=self.task.images, answers=True)
            for number in range(self.settings.num_samples)
        ]

    def _candidates(self, recalled: Sequence[Turn]) -> list[Turn]:
        """maps: the plain answer, and one with each piece of knowledge that came."""
        known = [turn for turn in recalled if turn.text.strip()]
        return [
            self.turn("solver", "answer", "answer", seat="plain", images=self.task.images, answers=True),
            *(
                self.turn(
                    "solver",
                    "answer",
                    "informed",
                    seat=turn.step,
                    shows={"knowledge": [turn]},
                    images=self.task.images,
                    answers=True,
                )
                for turn in known
            ),
        ]

    def _reviews(self, turn: Turn) -> Script:
        """self_reflect: the same chat, round by round; an answer stands where its review does not come."""
        for number in range(1, self.settings.rounds):
            if rule := self.settled([turn]):
                return self.conclude(rule)
            self.round = number
            turn = self.turn("solver", "answer", "review", thread="solver", answers=True)
            yield _REVIEWING, [turn]
            if turn.reply is None:
                return self.conclude("failures")
        return self.conclude(self.settled([turn]) or "rounds")

    def _score(self, candidate: Turn) -> Turn:
        role = "scorer" if self.cast.get("scorer") else "solver"
        shows = {"reply": [candidate]}
        score = self.turn(
            role, "score", "score", seat=candidate.seat, shows=shows, images=self.task.images, reads=read_score
        )
        score.retries, score.repair = 1, self.prompts.fill("repair")
        return score


_RANGE = re.compile(r"\(?\b0\s{0,3}(?:-|–|to)\s{0,3}100\b\)?|(?:/|\bout of)\s{0,3}100\b", re.IGNORECASE)
_SCORE_IS = re.compile(r"\bscore\b\W{0,8}(?:(?:is|of)\b\W{0,4})?(?<!-)(\d{1,3})(?![\d.,]*\d)", re.IGNORECASE)
_WHOLE = re.compile(r"(?<![\d.,/-])\d{1,3}(?![\d/]|[.,]\d)")


def read_score(text: str) -> Answer:
    """A whole number from 0 to 100: behind the last "score", else the only one there is. Never raises.

    A reply with several numbers and no "score" is not read: any of them might be anything.
    """
    text = _RANGE.sub(" ", text)
    named = [found for found in _SCORE_IS.findall(text) if int(found) <= 100]
    if named:
        return Answer(str(int(named[-1])), "score")
    whole = {int(found) for found in _WHOLE.findall(text) if int(found) <= 100}
    return Answer(str(whole.pop()), "only_number") if len(whole) == 1 else Answer()
