"""How far behind those who debated were, by the graphs and the registry alone: when what was published has no part."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

import msgspec

from protocols.graph import Debate
from trainers.record.registry import AdapterRecord

Turns = Mapping[tuple[str, str], int]
"""(agent, the version that spoke, "" for the base) -> turns."""


class Staleness(msgspec.Struct, frozen=True, kw_only=True):
    """Of an iteration's debates, against debates for which all iterations before had been waited for.

    ``stale_share``: of the learners' turns, those spoken as an older version than there was. ``most_behind``: by how
    many of the agent's versions at most, those of one iteration counted once.
    """

    stale_share: float
    most_behind: int


def turns_of(debates: Iterable[Debate], learners: Collection[str]) -> Turns:
    """The turns of those who learn: nobody else has versions."""
    return Counter(
        (node.agent, node.reply.adapter) for debate in debates for node in debate.utterances if node.agent in learners
    )


def staleness_of(turns: Turns, records: Iterable[AdapterRecord], iteration: int) -> Staleness:
    """Args: turns: of this iteration's debates. records: of all that was trained before it, and maybe of more."""
    trained_in: dict[str, int] = {}
    before: defaultdict[str, set[int]] = defaultdict(set)  # agent -> the earlier iterations that trained it
    for record in records:
        trained_in[record.name] = number = int(record.metrics["iteration"])
        if number < iteration:
            before[record.agent].add(number)
    behind: Counter[int] = Counter()
    for (agent, version), count in turns.items():
        spoke = trained_in.get(version, 0)  # 0: the base, which was there before all of them
        behind[sum(number > spoke for number in before[agent])] += count
    return Staleness(
        stale_share=1.0 - behind[0] / behind.total() if turns else 0.0,
        most_behind=max(behind, default=0),
    )
