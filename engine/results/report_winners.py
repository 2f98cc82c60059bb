"""Who convinced whom, which side and whose answer won, and how debates ended, as tables."""

from __future__ import annotations

from collections.abc import Iterable

from engine.results.findings import count
from engine.results.report_tables import MAX_NAMES, MAX_ROWS, Cell, Table, share_of
from protocols.statistics import SIDES, Score, Statistics


def influence(found: Statistics) -> Table:
    """A matrix of credit."""
    names = sorted({*found.influence, *(name for by in found.influence.values() for name in by)})
    rows = [name for name in names if name in found.influence]
    columns = [name for name in names if any(name in by for by in found.influence.values())]
    return Table(
        title="Who convinced whom",
        caption="Rows took over an answer of the columns: turns, of those in which the two differed. Several who were "
        "seen with it share the credit. Small: of the credit, what led to a right answer.",
        head=("Convinced", *columns[:MAX_NAMES]),
        rows=tuple(
            (
                row,
                tuple(
                    Cell("")
                    if (one := found.influence[row].get(column)) is None
                    else Cell(
                        f"{count(one.credit)} of {count(one.chances)}",
                        f"{count(one.right)} to right" if one.credit else "",
                        one.credit / one.chances,
                    )
                    for column in columns[:MAX_NAMES]
                ),
            )
            for row in rows[:MAX_NAMES]
        ),
        left_out=max(0, len(rows) - MAX_NAMES) + max(0, len(columns) - MAX_NAMES),
    )


def sides(found: Statistics) -> Table:
    """How often each side won."""
    shown = _in_order(found.sides)[:MAX_NAMES]
    undecided = found.num_debates - sum(score.won for score in found.sides.values())
    rows = [(side, (share_of(found.sides[side].won, found.num_debates),)) for side in shown]
    if rows:
        rows.append(("no side", (share_of(undecided, found.num_debates),)))
    return Table(
        title="Which side won",
        caption="As the verdict names it, of all debates.",
        head=("Side", "Won"),
        rows=tuple(rows),
        left_out=len(found.sides) - len(shown),
    )


def side_models(found: Statistics) -> Table:
    """Wins by side and by the model that spoke for it."""
    models = sorted({model for by in found.side_models.values() for model in by})
    shown = _in_order(found.side_models)[:MAX_NAMES]
    return Table(
        title="Sides crossed with models",
        caption="Won, of the decided debates in which the model spoke for the side.",
        head=("Side", *models[:MAX_NAMES]),
        rows=tuple(
            (side, tuple(_score(found.side_models[side].get(model)) for model in models[:MAX_NAMES])) for side in shown
        ),
        left_out=max(0, len(models) - MAX_NAMES) + len(found.side_models) - len(shown),
    )


def matchups(found: Statistics) -> Table:
    """Wins by side for every judging model and pair of models."""
    rows = [
        (judge, first, second, wins)
        for judge, firsts in found.matchups.items()
        for first, seconds in firsts.items()
        for second, wins in seconds.items()
    ]
    named = _in_order({side for *_, wins in rows for side in wins})
    return Table(
        title="Who judged whom",
        caption="Does a judge favour the side that its own model speaks for? First and second: in speaking order.",
        head=("Judge", "First", "Second", *(f"{side} won" for side in named)),
        rows=tuple(
            (judge, (Cell(first or "–"), Cell(second or "–"), *(Cell(count(wins.get(side, 0))) for side in named)))
            for judge, first, second, wins in rows[:MAX_ROWS]
        ),
        left_out=max(0, len(rows) - MAX_ROWS),
    )


def _in_order(sides: Iterable[str]) -> list[str]:
    """The side that speaks first comes first."""
    known = [side for pair in SIDES for side in pair]
    return sorted(sides, key=lambda side: (known.index(side) if side in known else len(known), side))


def backing(found: Statistics) -> Table:
    """Whose last answers the verdicts were."""
    groups = (("role", found.backing_roles), ("model", found.backing_models), ("agent", found.backing_agents))
    rows = [(f"{group} {name}", (_score(score),)) for group, by in groups for name, score in by.items()]
    return Table(
        title="Whose answer the verdict was",
        caption="Last answers that are the verdict's.",
        head=("Who", "Verdict"),
        rows=tuple(rows[:MAX_ROWS]),
        left_out=max(0, len(rows) - MAX_ROWS),
    )


def ends(found: Statistics) -> Table:
    """Stop reasons and numbers of rounds."""
    reasons = sorted(found.stop_reasons.items(), key=lambda item: (-item[1], item[0]))
    rows = [(f"by {reason.replace('_', ' ')}", (share_of(number, found.num_debates),)) for reason, number in reasons]
    rows += [
        (f"after {rounds} round{'' if rounds == 1 else 's'}", (share_of(number, found.num_debates),))
        for rounds, number in found.rounds_used.items()
    ]
    return Table(
        title="How debates ended",
        caption="By what, and after how many rounds.",
        head=("Ended", "Debates"),
        rows=tuple(rows[:MAX_ROWS]),
        left_out=max(0, len(rows) - MAX_ROWS),
    )


def _score(score: Score | None) -> Cell:
    return Cell("–") if score is None else share_of(score.won, score.played)
