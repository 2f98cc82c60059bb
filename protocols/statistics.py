"""How debates went, in numbers: who changed its answer, who convinced whom, how far all agreed, who won, what it cost.

Pure over debate graphs. Everything counted is a sum over debates, so any set of them can be counted, in any order, with
the same result to the last bit: shares are left to whoever shows them, and fractions are exact until the end.

What is counted as what:

* Only turns that answer the task (``Utterance.answers``) are answers. Whether two are equal, ``protocols.answer.same``
  says, within the task's tolerance; an unparsed one equals nothing.
* A turn is compared with the one before it in the same seat: a critic goes on from the generator it is paired with.
* An answer saw those that its edges lead from. What is no answer (a summary, a critique, a judgement) passes on what it
  saw itself. Of each other seat the latest answer seen counts; an agent's own earlier answers do not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

import msgspec

from protocols.answer import Answer, same
from protocols.diversity import wording, wording_distance
from protocols.graph import Debate, Utterance, Verdict

SIDES = (("affirmative", "negative"), ("a", "b"))  # the two that a judge chooses between, the first to speak first
OPEN = "open"  # the stop reason of a debate without a verdict


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent or a role used. Tokens are those that the backend reported."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unparsed: int = 0  # answers to the task that could not be read, and other replies that were asked for again
    second_tries: int = 0  # replies to being asked again


class Stance(msgspec.Struct, frozen=True, kw_only=True):
    """How an agent held out: turns in which more than half of the answers it saw differed from its own earlier one."""

    contested: int = 0
    kept: int = 0  # of those, the turns that gave the earlier answer again


class Influence(msgspec.Struct, frozen=True, kw_only=True):
    """What one agent made another say.

    Who changes to an answer that it saw was convinced: the credit of 1 is split evenly among all seats seen with that
    answer. An unparsed earlier answer is no position to be moved from, so such turns credit nobody.
    """

    credit: float = 0.0  # turns
    right: float = 0.0  # of the credit, what led to a right answer
    chances: int = 0  # turns that saw this agent differ from their own earlier answer


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """How far the answers of one round agreed, each seat's last one in it. All fields are sums over debates."""

    debates: int = 0
    answers: int = 0
    pairs: int = 0
    equal_pairs: int = 0
    unanimous: int = 0  # debates whose answers are all equal
    largest: float = 0.0  # of the largest group's share of the answers
    distinct: int = 0  # groups of equal answers, unparsed ones left out
    entropy_bits: float = 0.0  # of the groups' shares of the parsed answers
    worded_pairs: int = 0  # pairs whose wording was compared: all, of statistics that are not from before it was
    wording_distance: float = 0.0  # over those pairs, see ``protocols.diversity``


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """How often somebody was there when a verdict fell, and how often it was theirs."""

    played: int = 0
    won: int = 0


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """All counts of a set of debates. Keys are names as the debates have them, in sorted order."""

    num_debates: int = 0
    num_failures: int = 0  # asks that brought no reply
    moves: dict[int, dict[str, dict[str, int]]] = {}  # round entered -> agent -> "before > after", see ``move``
    stances: dict[str, Stance] = {}  # agent ->
    influence: dict[str, dict[str, Influence]] = {}  # who was convinced -> by whom ->
    rounds: dict[int, Agreement] = {}
    sides: dict[str, Score] = {}  # where a judge names the side that won
    side_models: dict[str, dict[str, Score]] = {}  # side -> model that spoke for it ->
    matchups: dict[str, dict[str, dict[str, dict[str, int]]]] = {}  # judging, first, second model -> side that won ->
    backing_agents: dict[str, Score] = {}  # agent -> how often a seat's last answer was the verdict's
    backing_roles: dict[str, Score] = {}
    backing_models: dict[str, Score] = {}
    stop_reasons: dict[str, int] = {}
    rounds_used: dict[int, int] = {}  # number of rounds -> debates
    agents: dict[str, Spend] = {}
    roles: dict[str, Spend] = {}
    openings: int = 0  # answers of round 0 that had seen no other
    opening_tokens: int = 0  # that those generated

    @property
    def spent(self) -> Spend:
        """By everybody together."""
        fields = Spend.__struct_fields__
        return Spend(**{name: sum(getattr(one, name) for one in self.roles.values()) for name in fields})

    @property
    def cost_ratio(self) -> float | None:
        """Tokens generated by a whole debate over those of one opening, means both; None without either."""
        if not self.num_debates or not self.opening_tokens:
            return None
        return self.spent.completion_tokens / self.num_debates / (self.opening_tokens / self.openings)


Fact = tuple[tuple[str | int, ...], int | Fraction]
"""Where in ``Statistics`` something is counted, and how much it adds."""


def statistics(debates: Iterable[Debate]) -> Statistics:
    """Count debates, one or many; each is read once and none is kept. Open ones count too, under ``OPEN``."""
    tree: dict[str | int, Any] = {}
    for debate in debates:
        for path, amount in _facts(debate):
            at = tree
            for name in path[:-1]:
                at = at.setdefault(name, {})
            at[path[-1]] = at.get(path[-1], 0) + amount
    return msgspec.convert(_settled(tree), Statistics)


def move(before: Utterance, after: Utterance, tolerance: float) -> str:
    """What a seat did from one answer to the next: ``"right > wrong"``, ``"wrong > other wrong"``, ...

    States are ``right``, ``wrong``, ``unparsed`` and ``ungraded`` (no gold); ``other`` says that the answer changed
    where the state did not.
    """
    source, target = _state(before), _state(after)
    if source == target != "unparsed" and not same(before.answer, after.answer, tolerance=tolerance):
        target = f"other {target}"
    return f"{source} > {target}"


def _state(node: Utterance) -> str:
    if not node.answer.parsed:
        return "unparsed"
    return "ungraded" if node.correct is None else "right" if node.correct else "wrong"


def _settled(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """In sorted order, exact fractions as floats."""
    return {
        key: _settled(value) if isinstance(value, dict) else float(value) if isinstance(value, Fraction) else value
        for key, value in sorted(tree.items())
    }


def _facts(debate: Debate) -> Iterator[Fact]:
    yield ("num_debates",), 1
    yield ("num_failures",), len(debate.failures)
    yield ("rounds_used", 1 + max((node.round for node in debate.utterances), default=-1)), 1
    yield ("stop_reasons", debate.verdict.stop_reason if debate.verdict else OPEN), 1
    seen = _Seen(debate)
    yield from _spending(debate, seen)
    yield from _agreement(debate)
    yield from _changes(debate, seen)
    if debate.verdict is not None:
        yield from _backing(debate, debate.verdict)
        yield from _winners(debate, debate.verdict)


def _seat(node: Utterance) -> str:
    """The last part of a node's id; a second try sits where the first did."""
    return node.id.partition("~")[0].rpartition(".")[2]


class _Seen:
    """Which answers a turn had seen."""

    def __init__(self, debate: Debate) -> None:
        self._nodes = {node.id: node for node in debate.utterances}
        self._place = {node.id: place for place, node in enumerate(debate.utterances)}
        self._sources: dict[str, list[str]] = {}
        for edge in debate.edges:
            self._sources.setdefault(edge.target, []).append(edge.source)

    def by(self, node: Utterance) -> list[Utterance]:
        """The latest answer of each other seat, in the order they were given."""
        latest: dict[str, Utterance] = {}
        known, waiting = {node.id}, [node.id]
        while waiting:
            for source in self._sources.get(waiting.pop(), ()):
                if source in known or source not in self._nodes:
                    continue
                known.add(source)
                found = self._nodes[source]
                if not found.answers:
                    waiting.append(source)
                elif (seat := _seat(found)) != _seat(node):
                    latest[seat] = max(found, latest.get(seat, found), key=self._order)
        return sorted(latest.values(), key=self._order)

    def _order(self, node: Utterance) -> int:
        return self._place[node.id]


def _spending(debate: Debate, seen: _Seen) -> Iterator[Fact]:
    again = {node.id.partition("~")[0] for node in debate.utterances if "~" in node.id}
    for node in debate.utterances:
        tried_again = node.id.partition("~")[0] in again
        unreadable = not node.answer.parsed if node.answers else tried_again and not node.answer.how
        counts = {
            "calls": 1,
            "prompt_tokens": node.reply.usage.prompt_tokens,
            "completion_tokens": node.reply.usage.completion_tokens,
            "unparsed": int(unreadable),
            "second_tries": int("~" in node.id),
        }
        for group, name in (("agents", node.agent), ("roles", node.role)):
            yield from (((group, name, field), amount) for field, amount in counts.items())
        if node.answers and node.round == 0 and not seen.by(node):
            yield ("openings",), 1
            yield ("opening_tokens",), node.reply.usage.completion_tokens


def _agreement(debate: Debate) -> Iterator[Fact]:
    rounds: dict[int, dict[str, Utterance]] = {}
    for node in debate.turns():
        rounds.setdefault(node.round, {})[_seat(node)] = node
    for number, nodes in rounds.items():
        found = _agreed([node.answer for node in nodes.values()], debate.task.tolerance)
        texts = [wording(node.reply.text) for node in nodes.values()]
        distance = math.fsum(wording_distance(one, other) for one, other in combinations(texts, 2))
        found |= {"worded_pairs": found["pairs"], "wording_distance": Fraction(distance)}
        yield from ((("rounds", number, field), amount) for field, amount in found.items())


def _agreed(answers: Sequence[Answer], tolerance: float) -> dict[str, int | Fraction]:
    """The fields of ``Agreement`` for one debate; there is at least one answer."""
    groups: list[list[Answer]] = []  # as a vote would have them
    for answer in filter(lambda answer: answer.parsed, answers):
        home = next((group for group in groups if same(group[0], answer, tolerance=tolerance)), None)
        if home is None:
            groups.append([answer])
        else:
            home.append(answer)
    pairs = list(combinations(answers, 2))
    largest = max(map(len, groups), default=0)
    parsed = sum(map(len, groups))
    shares = sorted(len(group) / parsed for group in groups)
    return {
        "debates": 1,
        "answers": len(answers),
        "pairs": len(pairs),
        "equal_pairs": sum(same(one, other, tolerance=tolerance) for one, other in pairs),
        "unanimous": int(largest == len(answers)),
        "largest": Fraction(largest, len(answers)),
        "distinct": len(groups),
        "entropy_bits": Fraction(math.fsum(-share * math.log2(share) for share in shares)),
    }


def _changes(debate: Debate, seen: _Seen) -> Iterator[Fact]:
    latest: dict[str, Utterance] = {}
    for node in debate.turns():
        before = latest.get(_seat(node))
        latest[_seat(node)] = node
        if before is not None:
            yield ("moves", node.round, node.agent, move(before, node, debate.task.tolerance)), 1
            if before.answer.parsed:
                yield from _pressure(before, node, seen.by(node), debate.task.tolerance)


def _pressure(before: Utterance, node: Utterance, seen: Sequence[Utterance], tolerance: float) -> Iterator[Fact]:
    """What the answers seen did to somebody who had one already."""

    def agree(one: Utterance, other: Utterance) -> bool:
        return same(one.answer, other.answer, tolerance=tolerance)

    parsed = [other for other in seen if other.answer.parsed]
    against = [other for other in parsed if not agree(other, before)]
    kept = agree(before, node)
    if 2 * len(against) > len(parsed):
        yield ("stances", node.agent, "contested"), 1
        yield ("stances", node.agent, "kept"), int(kept)
    convincing = [] if kept else [other for other in against if agree(other, node)]
    for other in against:
        yield ("influence", node.agent, other.agent, "chances"), 1
    for other in convincing:
        share = Fraction(1, len(convincing))
        yield ("influence", node.agent, other.agent, "credit"), share
        yield ("influence", node.agent, other.agent, "right"), share if node.correct else Fraction(0)


def _backing(debate: Debate, verdict: Verdict) -> Iterator[Fact]:
    """Whose last answer the verdict is."""
    for node in {_seat(node): node for node in debate.turns()}.values():
        won = int(same(node.answer, verdict.as_answer, tolerance=debate.task.tolerance))
        groups = {"backing_agents": node.agent, "backing_roles": node.role, "backing_models": node.reply.model}
        for group, name in groups.items():
            yield (group, name, "played"), 1
            yield (group, name, "won"), won


def _winners(debate: Debate, verdict: Verdict) -> Iterator[Fact]:
    """Which side a judge chose, and which models spoke for the sides. A debate that names no side counts nowhere.

    Who speaks for a side is told by role or seat, and by the role of the first who did: its critics do not. Where
    somebody else won (a third debater), both sides lost.
    """
    winner = verdict.details.get("side", "").strip().casefold()
    if not winner:
        return
    speakers = {side: _speakers(debate, side) for pair in SIDES for side in pair}
    pair = next((pair for pair in SIDES if winner in pair or any(map(speakers.get, pair))), ())
    for side in {*pair, winner}:
        yield ("sides", side, "played"), 1
        yield ("sides", side, "won"), int(side == winner)
    for side in pair:
        for model in {node.reply.model for node in speakers[side]}:
            yield ("side_models", side, model, "played"), 1
            yield ("side_models", side, model, "won"), int(side == winner)
    judges = [node.reply.model for node in debate.utterances if not _near(node) & set(pair)]
    if pair and judges:
        first, second = (", ".join(sorted({node.reply.model for node in speakers[side]})) for side in pair)
        yield ("matchups", judges[-1], first, second, winner), 1


def _speakers(debate: Debate, side: str) -> list[Utterance]:
    near = [node for node in debate.utterances if side in _near(node)]
    return [node for node in near if node.role == near[0].role]


def _near(node: Utterance) -> set[str]:
    """The sides that a node may have to do with: its role, its seat ("a"), what its seat begins with ("a-2")."""
    seat = _seat(node).casefold()
    return {node.role.casefold(), seat, seat.partition("-")[0]}
