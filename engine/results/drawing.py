"""Where everything of a debate's graph goes on the page: steps in columns, who speaks in rows, edges as curves."""

from __future__ import annotations

import msgspec

from protocols.answer import same
from protocols.graph import Debate, Utterance

MAX_DRAWN_EDGES = 1200  # beyond these a drawing is a grey block
VOTING = "majority_vote"  # the aggregator whose votes are drawn

_LEFT, _TOP, _ROW, _RADIUS = 136.0, 48.0, 52.0, 12.0
_WIDE, _NARROW, _MANY = 190.0, 118.0, 5  # a column's width, and that of each of many
_LEGEND = {
    "memory": "its own chat so far",
    "saw": "was shown the reply",
    "summary": "was shown the summary",
    "critique": "was shown the critique",
    "reflection": "was shown the reflection",
    "verdict": "was shown the judgement",
    "vote": "vote for the verdict",
    "other": "vote for something else",
    "last": "last turn before the verdict",
}
_LEGEND_STEP, _LEGEND_COLUMNS = 200.0, 3


class Spot(msgspec.Struct, frozen=True):
    """A node's place, in user units."""

    node: Utterance
    x: float
    y: float


class Sample(msgspec.Struct, frozen=True):
    """A line of the legend and what it means, in user units."""

    kind: str
    x: float
    y: float
    meaning: str


class Drawing(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything goes, in user units. A column is one step of one round, or its second tries."""

    width: float
    height: float
    left: float  # where the names end
    columns: tuple[tuple[float, str, str], ...]  # (x, round, step)
    rows: tuple[tuple[float, str], ...]
    spots: tuple[Spot, ...]
    lines: tuple[tuple[str, str], ...]  # (path, kind): an edge's kind, or how the verdict was come by, see ``_LEGEND``
    legend: tuple[Sample, ...]
    verdict: tuple[float, float]


class _Row(msgspec.Struct):
    """Turns of one agent: those of one seat, and what else it did in the same role."""

    agent: str
    seats: set[str]
    roles: list[str]
    taken: set[int]


Column = tuple[int, str, str]
"""Round, step, and which try: "" for the first."""


def graph_drawing(debate: Debate) -> Drawing | None:
    """The layout of one debate; None where it is too large to be read, or empty."""
    if not debate.utterances or max(len(debate.edges), len(debate.utterances)) > MAX_DRAWN_EDGES:
        return None
    columns: dict[Column, int] = {}
    rows: list[_Row] = []
    places: dict[str, tuple[int, int]] = {}
    for node in debate.utterances:
        column = columns.setdefault((node.round, node.phase, node.id.partition("~")[2]), len(columns))
        places[node.id] = column, _row_for(node, column, rows)
    firsts = [row.agent for row in rows]
    order = sorted(range(len(rows)), key=lambda at: (firsts.index(rows[at].agent), at))  # an agent's rows together
    rows = [rows[at] for at in order]
    places = {node_id: (column, order.index(at)) for node_id, (column, at) in places.items()}
    step = _WIDE if len(columns) <= _MANY else _NARROW
    spots = {
        node.id: Spot(node, _LEFT + step * places[node.id][0], _TOP + _ROW * (places[node.id][1] + 0.5))
        for node in debate.utterances
    }
    end = (_LEFT + step * len(columns), _TOP + _ROW * len(rows) / 2)
    lines = [(_path(spots[e.source], spots[e.target].x, spots[e.target].y, step), str(e.kind)) for e in debate.edges]
    lines += [(_path(spots[node_id], *end, step), kind) for node_id, kind in _endings(debate)]
    legend, bottom = _legend({kind for _, kind in lines}, _TOP + _ROW * len(rows) + 8)
    return Drawing(
        width=max(end[0] + 62, 30 + _LEGEND_STEP * min(_LEGEND_COLUMNS, len(legend))),
        left=_LEFT - 2 * _RADIUS,
        height=bottom,
        columns=tuple(
            (
                _LEFT + step * at,
                f"round {number}",
                f"{phase}, try {int(again) + 1}" if again.isdecimal() and len(again) < 4 else phase,
            )
            for (number, phase, again), at in columns.items()
        ),
        rows=tuple((_TOP + _ROW * (at + 0.5), _name(row, rows)) for at, row in enumerate(rows)),
        spots=tuple(spots.values()),
        lines=tuple(lines),
        legend=legend,
        verdict=end,
    )


def _row_for(node: Utterance, column: int, rows: list[_Row]) -> int:
    """The row of the same seat, else one of the same agent in the same role that is free there, else a new one."""
    seat = node.id.partition("~")[0].rpartition(".")[2]
    free = [(at, row) for at, row in enumerate(rows) if row.agent == node.agent and column not in row.taken]
    fitting = [(at, row) for at, row in free if seat in row.seats]
    if not fitting and not node.answers:
        fitting = [(at, row) for at, row in free if node.role in row.roles]
    if not fitting:
        rows.append(_Row(node.agent, set(), [], set()))
        fitting = [(len(rows) - 1, rows[-1])]
    at, row = fitting[0]
    row.taken.add(column)
    row.seats |= {seat} if node.answers or not row.seats else set()
    row.roles += [node.role] if node.role not in row.roles else []
    return at


def _name(row: _Row, rows: list[_Row]) -> str:
    """The agent, and its role where that tells its rows apart."""
    others = {other.roles[0] for other in rows if other.agent == row.agent}
    return f"{row.roles[0]}: {row.agent}" if len(others) > 1 else row.agent


def _endings(debate: Debate) -> list[tuple[str, str]]:
    """What leads to the verdict: (node id, kind of line). Votes are drawn where it was voted, and nowhere else."""
    verdict = debate.verdict
    if verdict is None:
        return []
    if verdict.aggregator != VOTING:
        return [(debate.utterances[-1].id, "last")]
    turns = list(debate.turns())
    if verdict.stop_reason != "budget":  # who was silent in the last round has left; a budget ends a round midway
        turns = [node for node in turns if node.round == turns[-1].round]
    latest = {node.id.partition("~")[0].rpartition(".")[2]: node for node in turns}
    agreed = {
        node.id: same(node.answer, verdict.as_answer, tolerance=debate.task.tolerance) for node in latest.values()
    }
    return [(node_id, "vote" if agrees else "other") for node_id, agrees in agreed.items()]


def _legend(kinds: set[str], top: float) -> tuple[tuple[Sample, ...], float]:
    """A sample of every kind of line that is there, and where the drawing ends."""
    shown = [kind for kind in _LEGEND if kind in kinds]
    samples = tuple(
        Sample(kind, 16 + _LEGEND_STEP * (at % _LEGEND_COLUMNS), top + 14 + 20 * (at // _LEGEND_COLUMNS), _LEGEND[kind])
        for at, kind in enumerate(shown)
    )
    return samples, (samples[-1].y if samples else top) + 12


def _path(source: Spot, x: float, y: float, step: float) -> str:
    """A curve from a node's right to a place's left; it goes around what may stand between."""
    start, end = source.x + _RADIUS, x - _RADIUS
    if source.x == x:  # the same step: out to the right and back
        bow = start + 0.25 * step
        return f"M{start:.1f} {source.y:.1f}C{bow:.1f} {source.y:.1f} {bow:.1f} {y:.1f} {start:.1f} {y:.1f}"
    if source.y == y and x - source.x > 1.5 * step:
        return f"M{start:.1f} {y:.1f}C{start + 30:.1f} {y - 26:.1f} {end - 30:.1f} {y - 26:.1f} {end:.1f} {y:.1f}"
    middle = (start + end) / 2
    return f"M{start:.1f} {source.y:.1f}C{middle:.1f} {source.y:.1f} {middle:.1f} {y:.1f} {end:.1f} {y:.1f}"
