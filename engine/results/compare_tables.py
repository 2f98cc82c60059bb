"""What ``moot compare`` found, as plain tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.live.units import duration, money
from engine.results.compare import Change, Compared, Side
from engine.results.findings import count, describe, describe_change, percent
from engine.results.report import in_columns

Rows = list[tuple[str, ...]]


def compare_text(found: Compared) -> str:
    """All tables that have a row, then the notes."""
    tables = (_accuracy(found), _controls(found.controls), _diversity(found), _likelihoods(found), _cost(found))
    blocks = ["\n".join(in_columns(rows)) for rows in tables if len(rows) > 1]
    return "\n\n".join([*blocks, *(f"note: {note}" for note in found.notes)]) + "\n"


def _accuracy(found: Compared) -> Rows:
    names = dict.fromkeys(figure.name for side in reversed(found.sides) for figure in side.evaluation.figures)
    others = [side.label for side in found.sides[1:]]
    changes = {(change.after, change.after_measure): change for change in found.changes}
    head = ("accuracy", *(side.label for side in found.sides), *(f"{label}, paired" for label in others))
    return [
        head,
        *(
            (
                name,
                *(describe(side.evaluation.figure(name)) for side in found.sides),
                *(_changed(changes.get((label, name))) for label in others),
            )
            for name in names
        ),
    ]


def _controls(changes: Sequence[Change]) -> Rows:
    head = ("final vote against", "in", "control", "final vote", "difference, paired")
    return [
        head,
        *(
            (
                change.before_measure,
                change.after,
                percent(change.difference.before),
                percent(change.difference.after),
                _changed(change),
            )
            for change in changes
        ),
    ]


def _changed(change: Change | None) -> str:
    """``+13.8 [+10.2, +17.4] p=0.00021 of 400``."""
    if change is None or (p_value := change.difference.p_value) is None:
        return "–"
    shown = "<1e-6" if p_value < 1e-6 else f"={p_value:.2g}"
    return f"{describe_change(change.difference)} p{shown} of {change.difference.num_tasks}"


DIVERSITY = ("round", "consensus", "unequal pairs", "entropy (bits)", "wording")


def diversity_cells(side: Side) -> Iterator[tuple[str, ...]]:
    """A row a round, under ``DIVERSITY``."""
    for number, one in side.diversity.items():
        shares = (percent(one.consensus), percent(one.pairwise_disagreement))
        yield (str(number), *shares, f"{one.entropy_bits:.2f}", _number(one.wording_distance))


def _diversity(found: Compared) -> Rows:
    rows = ((side.label, *cells) for side in found.sides for cells in diversity_cells(side))
    return [("diversity", *DIVERSITY), *rows]


def _likelihoods(found: Compared) -> Rows:
    head = ("likelihood", "replies of", "under", "nats a token", "KL, nats a token", "tokens")
    return [
        head,
        *(
            (side.label, one.speaker, one.reader, f"{one.nll:.3f}", f"{one.kl:.3f}", count(one.tokens))
            for side in found.sides
            for one in side.likelihoods
        ),
    ]


def _cost(found: Compared) -> Rows:
    head = ("cost of a debate", "replies", "read", "said", "in openings", "money", "stage took", "said a second")
    return [head, *map(_spent, found.sides)]


def _spent(side: Side) -> tuple[str, ...]:
    cost = side.cost
    return (
        side.label,
        _number(cost.replies, 1),
        _number(cost.prompt_tokens, 0),
        _number(cost.completion_tokens, 0),
        _number(cost.openings, 1),
        "–" if cost.usd is None else money(cost.usd),
        "–" if cost.wall_s is None else duration(cost.wall_s),
        _number(cost.completion_tokens_per_s, 0),
    )


def _number(value: float | None, places: int = 2) -> str:
    return "–" if value is None else f"{value:.{places}f}"
