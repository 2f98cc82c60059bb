"""Rewrite: short-answered items become rich instruction/response pairs, and a judge keeps those that hold.

Source: Guo et al. 2024 (MAmmoTH-VL), arXiv:2412.05237, sec. 2: a rewriting prompt for each category of data, the
self-filter with its three criteria, scores of information and relevance, and the mix of 70% rewritten to 30% original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import msgspec

from protocols.answer import Answer
from protocols.conversation import Conversation, Flow, Player, ProtocolSettings, Reader, Role, Script, Turn
from protocols.errors import ConfigError, TaskError
from protocols.graph import Verdict
from protocols.machine import Phase
from protocols.message import ImagePart
from protocols.pairs import CATEGORIES, FilterRate, Pair, filter_rates, kept_pairs, mix
from protocols.structured import read_judge, read_pairs, scores_reader
from protocols.task import Task

__all__ = ["CATEGORIES", "FilterRate", "Pair", "Rewrite", "RewriteSettings", "filter_rates", "kept_pairs", "mix"]

SCORES = ("information", "relevance")  # 1 to 5 each
MOST = {"math": 1, "ocr": 5}  # pairs of one item, as published: a worked solution; a dialogue of five rounds at most


class RewritePhase(Phase):
    WAITING = "waiting"  # for the item
    REWRITING = "rewriting"  # the item becomes pairs, in one reply
    JUDGING = "judging"  # every pair is kept or dropped
    SCORING = "scoring"  # the original and what was kept are given marks, for analysis
    CLOSED = "closed"


_WAITING, _REWRITING, _JUDGING, _SCORING, _CLOSED = RewritePhase


class RewriteSettings(ProtocolSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The defaults are the paper's where it gives one. An item's category is its details' ``category``."""

    category: str = ""  # of items whose details name none: general, chart, math, caption or ocr
    pairs: int = 2  # asked for at least; an item of category math gives one
    min_pairs: int = 1  # a reply with fewer is asked for once more, then given up
    max_pairs: int = 8  # of one reply; what comes behind them is left out
    filter: bool = True  # the judge says of every pair whether it is kept
    scores: bool = False  # the scorer gives marks for information and relevance
    images: Literal["attach", "omit"] = "attach"  # omit: for text-only models; a caption in the details stands in
    answer_from: Literal["details", "gold"] = "details"  # the original answer: the details' response, or gold (oracle)
    prompts: str = "rewrite.en"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.min_pairs <= self.pairs <= self.max_pairs:
            raise ValueError(
                f"min_pairs={self.min_pairs}, pairs={self.pairs} and max_pairs={self.max_pairs} must rise from 1 up"
            )
        if self.category and self.category not in CATEGORIES:
            raise ValueError(f"category={self.category!r} must be one of {', '.join(CATEGORIES)}")


class Rewrite(Conversation):
    """One item. The question is the original instruction; ``details`` may hold ``category``, ``caption``, ``response``.

    The rewriter, the judge and the scorer see the images, but for category caption, which is rewritten from text alone:
    there the caption is the item, or the question where the details hold none. A judge that fails or cannot be read
    drops its pair. The verdict has no answer: its details hold what was ``kept`` (see ``kept_pairs``), its votes are
    rulings.
    """

    NAME = "rewrite"
    SOURCE = "Guo et al. 2024 (MAmmoTH-VL), arXiv:2412.05237"
    SETTINGS = RewriteSettings
    FLOW: ClassVar[Flow] = {
        _WAITING: frozenset({_REWRITING}),
        _REWRITING: frozenset({_JUDGING, _SCORING, _CLOSED}),
        _JUDGING: frozenset({_SCORING, _CLOSED}),
        _SCORING: frozenset({_CLOSED}),
        _CLOSED: frozenset(),
    }
    ROLES: ClassVar[Mapping[str, Role]] = {
        "rewriter": Role("writes the pairs", 1, 1),
        "judge": Role("says of each pair whether it is kept; the same model as the rewriter in the paper", 0, 1),
        "scorer": Role("gives marks, where scores is on", 0, 1),
    }
    SLOTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "system": frozenset(),
        "original": frozenset({"question", "answer"}),
        "unanswered": frozenset({"question"}),  # the same where no original answer is known
        "pictured": frozenset({"caption"}),  # stands in for images; "" without a caption
        **dict.fromkeys(CATEGORIES, frozenset({"item", "pairs"})),  # item: the original, and what stands in for images
        "repair": frozenset({"pairs"}),
        "judge": frozenset({"pictured", "instruction", "response"}),
        "score": frozenset({"pictured", "instruction", "response"}),
    }
    LEARNERS = ("rewriter",)
    DEPARTURES = """
        A reply without enough readable pairs is asked for once more, then the item is given up as unreadable.
        The rounds of a dialogue (category ocr) are judged and kept one by one, like any other pairs.
        Of category math the question is the item's own, whatever the reply repeats.
        A question that a reply asks twice counts once.
        A caption without an image is judged and scored by the caption; the paper's judge sees every image.
        Scores are given to what was kept and to the original; the paper scores a sample of 1,000.
        Five of the paper's categories have prompts here; its collection and screening of datasets is not part of it.
        Images may be left out for models that see none (images: omit), with a caption in their place.
    """

    @classmethod
    def check_cast(cls, settings: RewriteSettings, cast: Mapping[str, tuple[Player, ...]]) -> None:
        for name, role in (("filter", "judge"), ("scores", "scorer")):
            if getattr(settings, name) and not cast.get(role):
                raise ConfigError(
                    f"protocol.{name} is on, so cast.{role} needs an agent; cast one (the rewriter may play it too), "
                    f"or set protocol.{name}: false"
                )

    @classmethod
    def max_asks(cls, settings: RewriteSettings, cast: Mapping[str, Sequence[Any]]) -> int:
        return 1 + settings.filter * settings.max_pairs + settings.scores * (settings.max_pairs + 1)

    def check_task(self, task: Task) -> None:
        if (category := self._category(task)) not in CATEGORIES:
            raise TaskError(
                f"task {task.id!r}: category={category!r} must be one of {', '.join(CATEGORIES)}; give it in the "
                "task's details, or set protocol.category for all that name none"
            )

    def script(self) -> Script:
        answered = self.settings.answer_from == "gold" and bool(self.task.gold)
        self.oracle = self.oracle or answered
        given = self.task.gold[0] if answered else self.task.details.get("response", "")
        self._original = Pair(self.question, given)
        self._rulings: list[Turn] = []
        self._marks: dict[str, Turn] = {}  # by seat: "original", or the number of a pair
        self._rewrite = self._rewriting()
        yield _REWRITING, [self._rewrite]
        if self._rewrite.reply is None:
            return self.conclude("no_replies")
        if not self._rewrite.answer.how:
            return self.conclude("unreadable")
        if self.settings.filter:
            self._rulings = [self._about("judge", seat, pair, read_judge) for seat, pair in enumerate(self._pairs())]
            yield _JUDGING, self._rulings
        if self.settings.scores:
            reads = scores_reader(*SCORES)
            scored: dict[str, Pair] = {str(seat): pair for seat, pair in self._kept().items()}
            if self._original.response and self._category(self.task) != "caption":
                scored = {"original": self._original, **scored}
            self._marks = {seat: self._about("score", seat, pair, reads) for seat, pair in scored.items()}
            yield _SCORING, list(self._marks.values())
        return self.conclude("rewritten")

    def conclude(self, stop_reason: str) -> Verdict:
        """What was kept so far: where pairs are filtered, those that a judge said yes to."""
        pairs, kept = self._pairs(), list(self._kept().values())
        rulings = [turn for turn in self._rulings if turn.answer.parsed]
        details = {
            "category": self._category(self.task),
            "produced": str(len(pairs)),
            "dropped": str(len(pairs) - len(kept)),
            "kept": msgspec.json.encode(kept).decode(),
        }
        return self.verdict(
            None,
            stop_reason,
            aggregator="self_filter" if self.settings.filter else "unfiltered",
            support=sum(turn.answer.value == "yes" for turn in rulings),
            votes=len(rulings),
            details=details | self._mean_marks(),
        )

    def _category(self, task: Task) -> str:
        return task.details.get("category", "") or str(self.settings.category)

    def _most(self) -> int:
        """Pairs that one reply may give."""
        most: int = self.settings.max_pairs
        return min(most, MOST.get(self._category(self.task), most))

    def _rewriting(self) -> Turn:
        player, category = self.the("rewriter"), self._category(self.task)
        wanted = str(min(self.settings.pairs, self._most()))
        item = [self._pictured("rewrite")] if category == "caption" else [self._shown(), self._pictured("rewrite")]
        return Turn(
            player=player,
            role="rewriter",
            step="rewrite",
            seat="0",
            prompt=self.told(
                player, category, images=self._images("rewrite"), item="\n\n".join(filter(None, item)), pairs=wanted
            ),
            reads=self._enough,
            part=category,
            retries=1,
            repair=self.prompts.fill("repair", pairs=wanted),
        )

    def _shown(self) -> str:
        """The original pair, its answer where one is known."""
        if not self._original.response:
            return self.prompts.fill("unanswered", question=self._original.instruction)
        return self.prompts.fill("original", question=self._original.instruction, answer=self._original.response)

    def _enough(self, text: str) -> Answer:
        found = len(self._pairs_in(text))
        return Answer(None, "pairs") if found >= min(self.settings.min_pairs, self._most()) else Answer()

    def _pairs_in(self, text: str) -> list[Pair]:
        pairs: dict[str, Pair] = {}
        for instruction, response in read_pairs(text):
            asks = self._original.instruction if self._category(self.task) == "math" else instruction
            pairs.setdefault(" ".join(asks.split()).casefold(), Pair(asks, response))
        return list(pairs.values())[: self._most()]

    def _pairs(self) -> list[Pair]:
        """What the rewriter gave; none where its reply could not be read."""
        return self._pairs_in(self._rewrite.text) if self._rewrite.answer.how else []

    def _kept(self) -> dict[int, Pair]:
        """Seat -> pair."""
        pairs = dict(enumerate(self._pairs()))
        if not self.settings.filter:
            return pairs
        return {seat: pairs[seat] for seat, turn in enumerate(self._rulings) if turn.answer.value == "yes"}

    def _about(self, step: str, seat: int | str, pair: Pair, reads: Reader) -> Turn:
        """A ruling or marks on one pair."""
        role = {"judge": "judge", "score": "scorer"}[step]
        player, written = self.the(role), {"instruction": [pair.instruction], "response": [pair.response]}
        prompt = self.told(
            player, step, head="", images=self._images(step), context=written, pictured=self._pictured(step)
        )
        turn = Turn(player=player, role=role, step=step, seat=str(seat), prompt=prompt, reads=reads, part=step)
        if seat != "original":
            turn.saw = ((self._rewrite, "saw"),)
        return turn

    def _images(self, step: str) -> tuple[ImagePart, ...]:
        read = step == "rewrite" and self._category(self.task) == "caption"  # by a model of text alone, as published
        return self.task.images if self.settings.images == "attach" and not read else ()

    def _pictured(self, step: str) -> str:
        """What stands in for the images; "" where they are seen themselves."""
        caption = self.task.details.get("caption", "")
        if self._category(self.task) == "caption":
            caption = "" if self._images(step) else caption or self.question
        elif self.settings.images == "attach":
            caption = ""
        return self.prompts.fill("pictured", caption=caption) if caption else ""

    def _mean_marks(self) -> dict[str, str]:
        """Score -> its mean over the original, and over the pairs kept, as far as they could be read."""
        means: dict[str, str] = {}
        for whose in ("original", "rewritten"):
            turns = [turn for seat, turn in self._marks.items() if (seat == "original") == (whose == "original")]
            read = [turn.answer.details for turn in turns if turn.answer.how]
            if read:
                means |= {f"{name}_{whose}": f"{sum(float(m[name]) for m in read) / len(read):.2f}" for name in SCORES}
        return means
