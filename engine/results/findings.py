"""What a run's numbers allow to be said, in sentences and short cells. It claims no more than the intervals carry."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from engine.results.evaluate import FINAL_VOTE, SINGLE_AGENT, Difference, Figure
from engine.results.report_data import ReportData


def headline(data: ReportData) -> str:
    """The result in one sentence, computed from the numbers, with what the intervals allow to be said."""
    if not data.evaluations:
        return "Nothing was evaluated in this run."
    first, last = data.evaluations[0][1], data.evaluations[-1][1]
    held_out = data.held_out
    after = last.figure(SINGLE_AGENT) or last.figure(FINAL_VOTE)
    if after is None or after.accuracy is None:
        return (
            f"{_tasks(last.num_tasks, held_out=held_out)} were answered; none has a gold answer to grade against, "
            "so there is no accuracy."
        )
    subject = "a single agent" if after.name == SINGLE_AGENT else f"the {after.name}"
    before = first.figure(after.name) if len(data.evaluations) > 1 else None
    if before is None or before.accuracy is None:
        return f"Accuracy of {subject} is {describe(after)} on {_tasks(after.num_graded, held_out=held_out)}."
    tasks = f"{before.num_graded} and {_tasks(after.num_graded)}"
    if before.num_graded == after.num_graded:
        tasks = _tasks(after.num_graded)
    change = data.change.difference(after.name) if data.change else None
    moved = f"Accuracy of {subject} {_verb(before, after)} {describe(before)} to {describe(after)} on {tasks}"
    return f"{moved}; {_judgement(change)}." if change and change.overlap is not None else f"{moved}."


def notes(data: ReportData) -> list[str]:
    """What a careful reader asks next: was it the format, did the vote gain too, was training early, or late."""
    found = []
    if len(data.evaluations) > 1:
        first, last = data.evaluations[0][1], data.evaluations[-1][1]
        before, after = first.figure(SINGLE_AGENT), last.figure(SINGLE_AGENT)
        if before and after and before.accuracy_parsed is not None and after.accuracy_parsed is not None:
            found.append(
                f"{percent(before.parsed_share)} of the single agents' replies could be read before and "
                f"{percent(after.parsed_share)} after; of those, {percent(before.accuracy_parsed)} and "
                f"{percent(after.accuracy_parsed)} were right."
            )
        vote_before, vote_after = first.figure(FINAL_VOTE), last.figure(FINAL_VOTE)
        if vote_before and vote_after and vote_before.accuracy is not None and vote_after.accuracy is not None:
            found.append(
                f"The final vote {_verb(vote_before, vote_after)} {describe(vote_before)} to {describe(vote_after)}."
            )
    for iteration in data.iterations:
        lead = iteration.lead_s
        if lead is not None:
            when = f"{duration(lead)} before" if lead > 0 else f"{duration(-lead)} after"
            which = f"In iteration {iteration.iteration} the" if len(data.iterations) > 1 else "The"
            found.append(f"{which} first optimiser step was taken {when} the last debate closed.")
        if iteration.most_behind:
            found.append(
                f"In the debates of iteration {iteration.iteration} {percent(iteration.stale_share)} of what learners "
                f"said came from a version older than their newest, at most {iteration.most_behind} behind."
            )
    return found


def measures(data: ReportData) -> list[str]:
    """Every measure that any evaluation has, in reading order, once."""
    return list(
        dict.fromkeys(figure.name for _, evaluation in reversed(data.evaluations) for figure in evaluation.figures)
    )


def describe(figure: Figure | None) -> str:
    """``31.2% [28.0, 34.4]``, or a dash where there is no accuracy."""
    if figure is None or figure.accuracy is None or figure.low is None or figure.high is None:
        return "–"
    return f"{percent(figure.accuracy)} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def describe_change(change: Difference | None) -> str:
    """``+13.8 [10.2, 17.4]``, in points, or a dash."""
    if change is None or change.difference is None or change.low is None or change.high is None:
        return "–"
    return f"{signed(change.difference)} [{signed(change.low)}, {signed(change.high)}]"


def own_warnings(data: ReportData) -> list[str]:
    """What the numbers themselves warn of, beside the warnings that the run recorded."""
    found = []
    for label, evaluation in data.evaluations:
        if evaluation.num_oracle:
            found.append(
                f"{label}: {evaluation.num_oracle} debates used gold on the way; their accuracy is no measure of skill."
            )
        if evaluation.num_failures:
            found.append(
                f"{label}: {evaluation.num_failures} asks brought no reply; they count as neither right nor wrong."
            )
        if 0 < evaluation.num_graded < evaluation.num_tasks:
            found.append(
                f"{label}: {evaluation.num_tasks - evaluation.num_graded} of "
                f"{_tasks(evaluation.num_tasks, held_out=data.held_out)} have no gold answer "
                "and are in no accuracy."
            )
    if len(data.evaluations) > 1:
        graded = [figure.scores.keys() if (figure := e.figure(FINAL_VOTE)) else set() for _, e in data.evaluations]
        if any(tasks != graded[0] for tasks in graded):
            found.append("The evaluations graded different tasks; only the paired change compares like with like.")
    if any(not math.isfinite(point.loss) for training in data.trainings for point in training.points):
        found.append("Some training losses are not finite numbers; the plot leaves them out.")
    return found


def percent(share: float | None) -> str:
    """``31.2%``, or a dash."""
    return "–" if share is None else f"{100 * share:.1f}%"


def signed(share: float) -> str:
    """``+13.8`` or ``−1.0``, in percentage points."""
    points = round(100 * share, 1) + 0.0  # no "-0.0"
    return f"{'−' if points < 0 else '+' if points > 0 else ''}{abs(points):.1f}"


def duration(seconds: float) -> str:
    """``0.42 s``, ``61.0 s``, ``4 min 12 s``, ``3 h 5 min``."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 99.95:
        return f"{seconds:.2f} s" if abs(seconds) < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def moment(unix_s: float | None) -> str:
    """``2025-07-01 12:00:00 UTC``; a dash for none, or for a time no calendar has."""
    try:
        return "–" if unix_s is None else datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "–"


def count(number: float) -> str:
    """``1,234,567``; one decimal below 100 where there is a fraction."""
    if not math.isfinite(number):
        return "–"
    return f"{number:,.1f}" if abs(number) < 100 and number != int(number) else f"{number:,.0f}"


def _tasks(number: int, *, held_out: bool = True) -> str:
    return f"{number:,} {'held-out ' if held_out else ''}task{'' if number == 1 else 's'}"


def _verb(before: Figure, after: Figure) -> str:
    """By the numbers as they are shown, so that the word never contradicts them."""
    was, now = round(100 * (before.accuracy or 0.0), 1), round(100 * (after.accuracy or 0.0), 1)
    return "rose from" if now > was else "fell from" if now < was else "went from"


def _judgement(change: Difference) -> str:
    """Overlap of the two intervals, and the paired change, which is the sharper of the two."""
    overlap = "the intervals overlap" if change.overlap else "the intervals do not overlap"
    if change.difference is None:
        return f"{overlap}, and no task was graded both times"
    paired = f"the paired change of {describe_change(change)} points"
    if not change.clear:
        return f"{overlap}, {'and' if change.overlap else 'but'} {paired} does not exclude zero"
    return f"{overlap}, {'but' if change.overlap else 'and'} {paired} excludes zero"
