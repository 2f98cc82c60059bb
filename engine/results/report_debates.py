"""How the debates of each stage went, as tables: made from counts, every one of them the same kind of thing to draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from engine.results.findings import count, percent
from engine.results.report_tables import MAX_NAMES, MAX_ROWS, Cell, Table, shaded, share, share_of
from engine.results.report_winners import backing, ends, influence, matchups, side_models, sides
from protocols.statistics import Agreement, Spend, Statistics
from trainers.tuning.likelihood import Likelihood

_STATES = ("right", "other right", "wrong", "other wrong", "unparsed", "ungraded", "other ungraded")
_FLIPS = ("right > wrong", "wrong > right", "wrong > other wrong")


class StageView(msgspec.Struct, frozen=True, kw_only=True):
    """One stage: what it comes to in a sentence, and its tables in groups that belong side by side."""

    label: str
    summary: str
    groups: tuple[tuple[Table, ...], ...]


def stage_views(
    stages: Iterable[tuple[str, Statistics]], likelihoods: Mapping[str, Sequence[Likelihood]] | None = None
) -> list[StageView]:
    """Every stage that held any debate; ``likelihoods`` are those of the stages that were scored, by label."""
    return [
        StageView(
            label=label,
            summary=_summary(found),
            groups=tuple(
                kept
                for group in (
                    (_agreement(found.rounds), _likelihoods((likelihoods or {}).get(label, ()))),
                    (_moves(found), influence(found)),
                    (_by_round(found),),
                    (_by_agent(found),),
                    (sides(found), side_models(found), matchups(found)),
                    (backing(found), ends(found)),
                    (_spending("Calls and tokens by role", "Role", found.roles),),
                    (_spending("Calls and tokens by agent", "Agent", found.agents),),
                )
                if (kept := tuple(table for table in group if table.rows))
            ),
        )
        for label, found in stages
        if found.num_debates
    ]


def overview(stages: Sequence[tuple[str, Statistics]]) -> Table | None:
    """The stages side by side, where there are several."""
    rows = []
    for label, found in stages:
        if not found.num_debates:
            continue
        last = found.rounds[max(found.rounds)] if found.rounds else Agreement()
        flips = _flips(found.moves.values())
        contested = sum(stance.contested for stance in found.stances.values())
        kept = sum(stance.kept for stance in found.stances.values())
        ratio = found.cost_ratio
        cells = [
            Cell(count(found.num_debates)),
            Cell(share(last.equal_pairs, last.pairs)),
            *(Cell(count(flips.get(flip, 0))) for flip in _FLIPS[:2]),
            Cell(share(kept, contested)),
            Cell("–" if ratio is None else f"{ratio:.1f} ×"),
        ]
        rows.append((label, tuple(cells)))
    if len(rows) < 2:
        return None
    head = ("Stage", "Debates", "Equal pairs, last round", "Right to wrong", "Wrong to right", "Held on", "Cost")
    caption = (
        "Held on: of the turns that most of what they saw spoke against. Cost: tokens of a debate over one answer's."
    )
    return Table(title="The stages side by side", caption=caption, head=head, rows=tuple(rows))


def _summary(found: Statistics) -> str:
    spent, number = found.spent, found.num_debates
    text = (
        f"{number:,} debate{'' if number == 1 else 's'}; {count(spent.calls / number)} replies and "
        f"{count(spent.completion_tokens / number)} generated tokens each"
    )
    if found.cost_ratio is not None:
        text += f", {found.cost_ratio:.1f} times the tokens of one opening answer"
    if found.num_failures:
        text += f"; {found.num_failures:,} asks brought no reply"
    return f"{text}."


def _agreement(rounds: Mapping[int, Agreement]) -> Table:
    shown = list(rounds.items())[:MAX_ROWS]
    return Table(
        title="Agreement by round",
        caption="Equal pairs: of all pairs of a round's answers. Largest group: its mean share of the answers. "
        "Entropy: of the readable answers, 0 where all are equal. An unparsed answer agrees with none. Wording: mean "
        "distance of two replies by their words and word pairs; 0 is alike, 1 has nothing in common.",
        head=(
            "Round",
            "Debates",
            "Equal pairs",
            "Largest group",
            "All equal",
            "Different answers",
            "Entropy (bits)",
            "Wording",
        ),
        rows=tuple(
            (
                str(number),
                (
                    Cell(count(one.debates)),
                    Cell(share(one.equal_pairs, one.pairs)),
                    Cell(percent(one.largest / one.debates)),
                    Cell(share(one.unanimous, one.debates)),
                    Cell(f"{one.distinct / one.debates:.2f}"),
                    Cell(f"{one.entropy_bits / one.debates:.2f}"),
                    Cell(f"{one.wording_distance / one.worded_pairs:.2f}" if one.worded_pairs else "–"),
                ),
            )
            for number, one in shown
        ),
        left_out=len(rounds) - len(shown),
    )


def _likelihoods(found: Sequence[Likelihood]) -> Table:
    readers = list(dict.fromkeys(one.reader for one in found))[:MAX_NAMES]
    speakers = list(dict.fromkeys(one.speaker for one in found))
    cells = {(one.speaker, one.reader): Cell(f"{one.nll:.2f}", f"KL {one.kl:.3f}") for one in found}
    return Table(
        title="How likely each finds what was said",
        caption="Rows spoke, columns read: nats a token, less is likelier. Small: KL(speaker || reader) over the whole "
        "vocabulary, in nats a token.",
        head=("Replies of", *(f"under {reader}" for reader in readers)),
        rows=tuple(
            (speaker, tuple(cells.get((speaker, reader), Cell("–")) for reader in readers))
            for speaker in speakers[:MAX_NAMES]
        ),
        left_out=max(0, len(speakers) - MAX_NAMES),
    )


def _moves(found: Statistics) -> Table:
    moves = _flips(found.moves.values())
    known = [tuple(move.split(" > ")) for move in moves]
    rows = [state for state in _STATES if any(source == state for source, _ in known)]
    columns = [state for state in _STATES if any(target == state for _, target in known)]
    return Table(
        title="From one answer to the next",
        caption="From the answer before (rows) to the one after (columns), in shares of the row. "
        "“Other” marks a changed answer.",
        head=("From", *(f"to {state}" for state in columns)),
        rows=tuple(
            (
                source,
                tuple(
                    shaded(moves.get(f"{source} > {target}", 0), sum(n for m, n in moves.items() if _from(m) == source))
                    for target in columns
                ),
            )
            for source in rows
        ),
    )


def _by_round(found: Statistics) -> Table:
    shown = list(found.moves.items())[:MAX_ROWS]
    return Table(
        title="Flips by round",
        caption="Into each round: turns that had an answer before them, and how many of those changed it.",
        head=("Into round", *_FLIP_HEAD),
        rows=tuple((str(number), _flip_cells(_flips([agents]))) for number, agents in shown),
        left_out=len(found.moves) - len(shown),
    )


def _by_agent(found: Statistics) -> Table:
    moves: dict[str, list[Mapping[str, int]]] = {}
    for agents in found.moves.values():
        for agent, one in agents.items():
            moves.setdefault(agent, []).append(one)
    rows = []
    for agent in list(moves)[:MAX_ROWS]:
        stance = found.stances.get(agent)
        held = Cell("–") if stance is None else share_of(stance.kept, stance.contested)
        rows.append((agent, (*_flip_cells(_sums(moves[agent])), held)))
    return Table(
        title="Flips by agent",
        caption="Held on: kept its answer, of the turns in which more than half of the answers it saw differed.",
        head=("Agent", *_FLIP_HEAD, "Held on"),
        rows=tuple(rows),
        left_out=len(moves) - len(rows),
    )


_FLIP_HEAD = ("Turns", "Changed", "Right to wrong", "Wrong to right", "Wrong to other wrong", "To unparsed")


def _flip_cells(moves: Mapping[str, int]) -> tuple[Cell, ...]:
    turns = sum(moves.values())
    changed = sum(n for move, n in moves.items() if move.partition(" > ")[2] != _from(move))
    silent = sum(n for move, n in moves.items() if move.endswith(" > unparsed") and _from(move) != "unparsed")
    counted = (*(moves.get(flip, 0) for flip in _FLIPS), silent)
    return Cell(count(turns)), Cell(share(changed, turns)), *(Cell(count(number)) for number in counted)


def _from(move: str) -> str:
    return move.partition(" > ")[0]


def _flips(rounds: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, int]:
    """Moves over all rounds and agents."""
    return _sums(moves for agents in rounds for moves in agents.values())


def _sums(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in counts:
        for name, number in one.items():
            total[name] = total.get(name, 0) + number
    return total


def _spending(title: str, who: str, spends: Mapping[str, Spend]) -> Table:
    total = sum(one.completion_tokens for one in spends.values())
    shown = list(spends.items())[:MAX_ROWS]
    return Table(
        title=title,
        caption="Unparsed: answers that could not be read, and other replies that were asked for again.",
        head=(who, "Calls", "Tokens in", "Tokens out", "Share of out", "Unparsed", "Second tries"),
        rows=tuple(
            (
                name,
                (
                    Cell(count(one.calls)),
                    Cell(count(one.prompt_tokens)),
                    Cell(count(one.completion_tokens)),
                    Cell(share(one.completion_tokens, total)),
                    Cell(count(one.unparsed)),
                    Cell(count(one.second_tries)),
                ),
            )
            for name, one in shown
        ),
        left_out=len(spends) - len(shown),
    )
