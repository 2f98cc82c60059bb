"""What a stage's debates are worth: accuracy with 95% intervals, consensus, and the paired change between two stages.

Pure over closed debate graphs: it runs nothing and stores nothing. A task counts once, however many replies it drew:

* An unparsed reply is wrong. A reply that never came is neither right nor wrong; ``num_failures`` tells of it.
* Where a task has one reply per figure (a vote, one agent alone), the interval is Wilson's.
* Where it has several (the mean over agents), they share the question, so the standard error is clustered by task.
* ``compare`` pairs by task: both stages met the same questions, and pairing takes their difficulty out of the noise.

Where nothing can be graded, accuracies and intervals are None; no number here is ever NaN.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from protocols.answer import grade
from protocols.graph import Debate, Utterance
from protocols.machine import derive_seed
from protocols.vote import TieBreak, VoteResult, majority_vote

Z = 1.959963984540054  # the 97.5% quantile of the standard normal: all intervals are 95%

SINGLE_AGENT = "single agent"
FINAL_VOTE = "final vote"

Interval = tuple[float, float]


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measure of one stage. Shares and accuracies are between 0 and 1; names are unique in an evaluation."""

    name: str
    accuracy: float | None = None  # mean over graded tasks of the task's share of right replies
    low: float | None = None
    high: float | None = None
    method: Literal["", "wilson", "clustered"] = ""  # how the interval was found
    num_tasks: int = 0  # tasks with a reply
    num_graded: int = 0  # of those, the ones with a gold answer
    num_replies: int = 0
    parsed_share: float | None = None  # of the replies
    accuracy_parsed: float | None = None  # right replies among those that are graded and parsed
    scores: dict[str, float] = {}  # graded task -> its share of right replies; what ``compare`` pairs


class RoundConsensus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a round's agents agreed: the mean over debates of the share whose answer is that of the round's vote."""

    round: int
    consensus: float  # an unparsed reply agrees with nobody
    num_debates: int
    num_ties: int  # debates whose vote in this round was tied


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """All measures of one stage, in the order they are best read."""

    num_tasks: int = 0
    num_graded: int = 0  # tasks with a gold answer
    num_debates: int = 0
    figures: tuple[Figure, ...] = ()
    rounds: tuple[RoundConsensus, ...] = ()
    num_ties: int = 0  # tasks whose final vote was tied
    num_failures: int = 0  # asks that brought no reply
    num_oracle: int = 0  # debates that used gold on the way: their accuracy is no measure of skill

    def figure(self, name: str) -> Figure | None:
        return next((figure for figure in self.figures if figure.name == name), None)


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One measure's change on the tasks that both stages graded; the rest is None where there are none."""

    name: str
    num_tasks: int
    before: float | None = None  # accuracy on the common tasks
    after: float | None = None
    difference: float | None = None  # after - before
    low: float | None = None
    high: float | None = None
    overlap: bool | None = None  # whether the two stages' own intervals, each over all its tasks, share a point
    gained: int = 0  # tasks whose score rose
    lost: int = 0  # tasks whose score fell
    p_value: float | None = None  # of no difference, two-sided
    test: Literal["", "mcnemar", "z"] = ""  # where it is from: scores that are all right or wrong, or shares

    @property
    def clear(self) -> bool:
        """Whether the paired interval excludes zero."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """The change of every measure that both stages have."""

    differences: tuple[Difference, ...] = ()

    def difference(self, name: str) -> Difference | None:
        return next((change for change in self.differences if change.name == name), None)


def wilson_interval(share: float, count: int) -> Interval:
    """95% interval of a proportion, never outside [0, 1] and never of no width.

        (p + z^2/2n  -+  z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n)

    Args:
        share: p, between 0 and 1.
        count: n >= 1, independent trials.
    Source: Wilson 1927, J. Am. Stat. Assoc. 22:209; recommended by Brown, Cai and DasGupta 2001, Stat. Sci. 16:101.
    """
    scale = 1 + Z**2 / count
    centre = (share + Z**2 / (2 * count)) / scale
    half = Z * math.sqrt(max(share * (1 - share), 0.0) / count + Z**2 / (4 * count**2)) / scale
    return max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0)


def clustered_interval(means: Sequence[float]) -> Interval:
    """95% interval of the mean over tasks, a cluster each: m -+ z sqrt(sum (m_i - m)^2 / (n - 1) / n), in [0, 1].

    With the same number of replies for every task this is the usual cluster-robust error of the mean over replies.
    One task, or tasks that are all alike, would give a width of none or zero; there Wilson's interval over the n tasks
    stands in (ours).

    Args:
        means: [n] share of right replies of each task, n >= 1.
    Source: Miller 2024, "Adding error bars to evals", arXiv:2411.00640 (clustered standard errors).
    """
    mean = _mean(means)
    if min(means) == max(means):
        return wilson_interval(mean, len(means))
    half = Z * _standard_error(means)
    return max(mean - half, 0.0), min(mean + half, 1.0)


def paired_interval(differences: Sequence[float]) -> Interval:
    """95% interval of the mean difference over tasks: d -+ z sqrt(sum (d_i - d)^2 / (n - 1) / n), in [-1, 1].

    One task, or differences that are all alike, would claim certainty; there, as Bonett and Price do for paired
    proportions, one task gained and one lost are added to the n before the error is taken: with them the mean is
    d' = sum d_i / (n + 2) and its variance (sum d_i^2 / (n + 2) - d'^2) / (n + 2).

    Args:
        differences: [n] after - before of each task, between -1 and 1, n >= 1.
    Sources: Miller 2024, arXiv:2411.00640 (paired differences); Bonett and Price 2012, J. Educ. Behav. Stat. 37:479.
    """
    mean, error = _paired_mean(differences)
    return max(mean - Z * error, -1.0), min(mean + Z * error, 1.0)


def _paired_mean(differences: Sequence[float]) -> tuple[float, float]:
    """The mean that an interval is put around, and its standard error, which is never 0."""
    if min(differences) < max(differences):
        return _mean(differences), _standard_error(differences)
    count = len(differences) + 2
    mean = math.fsum(differences) / count
    squares = (math.fsum(d * d for d in differences) + 2) / count
    return mean, math.sqrt((squares - mean**2) / count)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p of so many tasks gained and lost where either is as likely: the exact binomial test.

    Source: McNemar 1947, Psychometrika 12:153; exact as in Fagerland, Lydersen and Laake 2013, BMC Med. Res. Methodol.
    13:91.
    """
    number = gained + lost
    tail = sum(math.comb(number, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / (1 << number))


def round_vote(debate: Debate, number: int, *, tie_break: TieBreak = "seeded") -> VoteResult:
    """The vote over one round's replies, ties broken as the debate's own final vote breaks them."""
    ballots = [node.answer for node in _answers(debate) if node.round == number]
    seed, tolerance = derive_seed(debate.seed, "tie"), debate.task.tolerance
    return majority_vote(ballots, tie_break=tie_break, seed=seed, tolerance=tolerance)


def evaluate(debates: Iterable[Debate], *, tie_break: TieBreak = "seeded") -> Evaluation:
    """Measure one stage. Reads its debates once, in any order, and keeps none of them.

    Figures, in order: the single agent (round 0, all who were shown nobody's reply), each agent alone (the same), the
    vote of round 0; then of each later round the replies and their vote; then the final vote, as the verdicts have it.
    "Replies, round 0" are those who were shown another's. A debate without a reply in a round has no vote there.

    Args:
        debates: closed ones; a task may have several, which then form one cluster.
        tie_break: that of the protocol; used for the votes of single rounds.
    Raises: ValueError: a debate has no verdict.
    """
    book = _Book(tie_break)
    for debate in debates:
        book.add(debate)
    return book.evaluation()


def compare(before: Evaluation, after: Evaluation) -> Comparison:
    """The change of every measure that both have, paired by task over the tasks that both graded."""
    pairs = ((before.figure(figure.name), figure) for figure in after.figures)
    return Comparison(differences=tuple(paired(first, second) for first, second in pairs if first is not None))


def paired(before: Figure, after: Figure) -> Difference:
    """One figure against another, of another stage or run or of the same, over the tasks that both graded.

    Where every score is 0 or 1, as with votes, the test is McNemar's; else the mean difference over its standard error
    is taken for normal.
    """
    common = sorted(before.scores.keys() & after.scores.keys())
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return Difference(name=after.name, num_tasks=0)
    overlap = before.low <= after.high and after.low <= before.high
    if not common:
        return Difference(name=after.name, num_tasks=0, overlap=overlap)
    changes = [after.scores[task] - before.scores[task] for task in common]
    gained, lost = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    whole = all(score in (0, 1) for figure in (before, after) for score in map(figure.scores.__getitem__, common))
    mean, error = _paired_mean(changes)
    low, high = paired_interval(changes)
    return Difference(
        name=after.name,
        num_tasks=len(common),
        before=_mean([before.scores[task] for task in common]),
        after=_mean([after.scores[task] for task in common]),
        difference=_mean(changes),
        low=low,
        high=high,
        overlap=overlap,
        gained=gained,
        lost=lost,
        p_value=mcnemar(gained, lost) if whole else math.erfc(abs(mean) / error / math.sqrt(2)),
        test="mcnemar" if whole else "z",
    )


class _Tally:
    """The replies that one figure counts, by task: (correct, parsed) each."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.marks: dict[str, list[tuple[bool | None, bool]]] = {}

    def add(self, task_id: str, correct: bool | None, parsed: bool) -> None:
        self.marks.setdefault(task_id, []).append((correct, parsed))

    def figure(self) -> Figure:
        replies = [mark for marks in self.marks.values() for mark in marks]
        graded = {
            task: grades for task, marks in self.marks.items() if (grades := [c for c, _ in marks if c is not None])
        }
        scores = {task: sum(grades) / len(grades) for task, grades in graded.items()}
        readable = [correct for correct, parsed in replies if parsed and correct is not None]
        figure = Figure(
            name=self.name,
            num_tasks=len(self.marks),
            num_graded=len(scores),
            num_replies=len(replies),
            parsed_share=sum(parsed for _, parsed in replies) / len(replies),
            accuracy_parsed=sum(readable) / len(readable) if readable else None,
            scores=scores,
        )
        if not scores:
            return figure
        accuracy = _mean(list(scores.values()))
        wilson = all(len(grades) == 1 for grades in graded.values()) or len(set(scores.values())) == 1
        low, high = wilson_interval(accuracy, len(scores)) if wilson else clustered_interval(list(scores.values()))
        return msgspec.structs.replace(
            figure, accuracy=accuracy, low=low, high=high, method="wilson" if wilson else "clustered"
        )


class _Book:
    """All tallies of a stage. A figure's key orders it: (block, round, place in the round, name)."""

    def __init__(self, tie_break: TieBreak) -> None:
        self._tie_break = tie_break
        self._tallies: dict[tuple[int, int, int, str], _Tally] = {}
        self._agreement: dict[int, list[tuple[float, bool]]] = {}  # round -> (share with the vote, tie) of each debate
        self._graded: dict[str, bool] = {}  # task -> has a gold answer
        self._tied: set[str] = set()
        self._num_debates = self._num_failures = self._num_oracle = 0

    def add(self, debate: Debate) -> None:
        verdict, task = debate.verdict, debate.task
        if verdict is None:
            raise ValueError(f"debate {debate.id!r} has no verdict; evaluate closed debates only")
        self._num_debates += 1
        self._num_failures += len(debate.failures)
        self._num_oracle += verdict.oracle
        self._graded[task.id] = bool(task.gold)
        if verdict.tie:
            self._tied.add(task.id)
        rounds: dict[int, int] = {}
        influenced = {edge.target for edge in debate.edges if edge.kind != "memory"}  # by what somebody else said
        for node in _answers(debate):
            rounds[node.round] = rounds.get(node.round, 0) + 1
            self._count_reply(task.id, node, alone=node.id not in influenced)
        for number, num_replies in rounds.items():
            self._count_vote(debate, number, num_replies)
        self._tally(3, 0, 0, FINAL_VOTE).add(task.id, verdict.correct, verdict.answer is not None)

    def _count_reply(self, task_id: str, node: Utterance, *, alone: bool) -> None:
        if node.round == 0 and alone:
            tallies = [self._tally(0, 0, 0, SINGLE_AGENT), self._tally(1, 0, 0, f"{node.agent} alone")]
        else:
            tallies = [self._tally(2, node.round, 0, f"replies, round {node.round}")]
        for tally in tallies:
            tally.add(task_id, node.correct, node.answer.parsed)

    def _count_vote(self, debate: Debate, number: int, num_replies: int) -> None:
        vote = round_vote(debate, number, tie_break=self._tie_break)
        correct = grade(vote.answer, debate.task)
        self._tally(2, number, 1, f"vote, round {number}").add(debate.task.id, correct, vote.answer.parsed)
        self._agreement.setdefault(number, []).append((vote.support / num_replies, vote.tie))

    def _tally(self, block: int, number: int, place: int, name: str) -> _Tally:
        return self._tallies.setdefault((block, number, place, name), _Tally(name))

    def evaluation(self) -> Evaluation:
        return Evaluation(
            num_tasks=len(self._graded),
            num_graded=sum(self._graded.values()),
            num_debates=self._num_debates,
            figures=tuple(self._tallies[key].figure() for key in sorted(self._tallies)),
            rounds=tuple(
                RoundConsensus(
                    round=number,
                    consensus=_mean([share for share, _ in debates]),
                    num_debates=len(debates),
                    num_ties=sum(tie for _, tie in debates),
                )
                for number, debates in sorted(self._agreement.items())
            ),
            num_ties=len(self._tied),
            num_failures=self._num_failures,
            num_oracle=self._num_oracle,
        )


def _answers(debate: Debate) -> list[Utterance]:
    """The turns that answer the task: those graded, or all where there is no gold to grade against."""
    return [node for node in debate.turns() if node.correct is not None or not debate.task.gold]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float:
    """sqrt(s^2 / n) with the sample variance s^2 over n - 1; n >= 2."""
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
