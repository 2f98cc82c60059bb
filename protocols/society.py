"""The symmetric society: N agents answer alone, then revise M - 1 times having seen the others; the majority decides.

Sources: Du et al. 2023, arXiv:2305.14325, sec. 2.1 (the debate); Subramaniam et al. 2025 (MAFT), arXiv:2501.05707, sec.
2 (summaries of the others, a generator for round 0 and a critic after it, the vote over the last round).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from protocols.bounds import MAX_ROUNDS, UP, check_bounds
from protocols.conversation import Conversation, Flow, Player, ProtocolSettings, Role, Script, Turn
from protocols.errors import ConfigError
from protocols.graph import EdgeKind, Verdict
from protocols.machine import Phase, derive_seed


class SocietyPhase(Phase):
    WAITING = "waiting"  # for the task
    ANSWERING = "answering"  # everyone answers: alone in round 0, having seen others after it
    SUMMARISING = "summarising"  # the others' replies are condensed, once for each agent
    CLOSED = "closed"


_WAITING, _ANSWERING, _SUMMARISING, _CLOSED = SocietyPhase


class SocietySettings(ProtocolSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The society's settings; the defaults are MAFT's but for summaries, which double the calls."""

    rounds: int = 2  # the opening included
    memory: Literal["chat", "stateless"] = "chat"  # stateless: each turn is one message; its own last reply is a slot
    visibility: Literal["snapshot", "sequential"] = "snapshot"  # sequential: sees who spoke before it, too
    topology: Literal["full", "ring", "star", "sparse"] = "full"  # who sees whom after round 0
    degree: int = 2  # of a sparse topology: how many others each sees, drawn once a debate
    max_peers: int = 5  # others shown at most, drawn at random
    summarize: bool = False  # show each agent a summary of the others instead of their replies
    prompts: str = "society.number.en"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self, rounds=(1, MAX_ROUNDS), max_peers=(1, UP), degree=(1, UP))


class Society(Conversation):
    """One debate of the society.

    The critics revise what the generators opened with, paired by index; without critics the generators revise
    themselves. An agent that fails or is late leaves the debate and the others go on.
    """

    NAME = "society"
    SOURCE = "Du et al. 2023, arXiv:2305.14325; Subramaniam et al. 2025 (MAFT), arXiv:2501.05707"
    SETTINGS = SocietySettings
    FLOW: ClassVar[Flow] = {
        _WAITING: frozenset({_ANSWERING}),
        _ANSWERING: frozenset({_ANSWERING, _SUMMARISING, _CLOSED}),
        _SUMMARISING: frozenset({_ANSWERING}),
        _CLOSED: frozenset(),
    }
    ROLES: ClassVar[Mapping[str, Role]] = {
        "generator": Role("answers alone in round 0", 1, None),
        "critic": Role("revises after round 0, having seen the others; default: the generators", 0, None),
        "summariser": Role("condenses the others' replies, where summarize is on", 0, 1),
    }
    SLOTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "system": frozenset({"agent"}),
        "opening": frozenset({"question", "agent"}),
        "revise": frozenset({"question", "peers", "own", "agent"}),
        "self_check": frozenset({"question", "own", "agent"}),
        "peer": frozenset({"number", "reply"}),
        "summarise": frozenset({"question", "peers"}),
    }
    LEARNERS = ("generator",)
    DEPARTURES = """
        Rounds are strict snapshots, summaries included: MAFT's released code also summarises what was said earlier in
        the same round (visibility: sequential).
        Summaries are made only where they are asked for (summarize: true), as in MAFT's experiments but for one
        ablation; its code has a cap on peers in the untuned debate alone (max_peers).
        An unparsed reply does not vote, and a tie is broken with the debate's seed: MAFT's code takes the greatest
        string (tie_break: lexicographic), that of Du et al. the first (tie_break: first).
        Peers are shown in an order drawn for each agent and round; Du et al. show them in the cast's.
        An agent that fails is shown and votes no more; in the released codes a request is repeated until it succeeds.
        By default training tunes the generators; MAFT, and recipes/maft.yaml, the critics as well.
    """

    @classmethod
    def check_cast(cls, settings: SocietySettings, cast: Mapping[str, tuple[Player, ...]]) -> None:
        generators, critics = cast["generator"], cast.get("critic", ())
        if critics and len(critics) != len(generators):
            raise ConfigError(
                f"cast.critic has {len(critics)} agents and cast.generator {len(generators)}; they are paired by "
                "index, so give as many critics, or none to let the generators revise"
            )
        for opens, goes_on in zip(generators, critics, strict=False) if settings.memory == "chat" else ():
            if goes_on.persona not in ("", opens.persona):
                raise ConfigError(
                    f"agents.{goes_on.name}.persona would never be told: with protocol.memory=chat a critic goes on "
                    f"with the chat of its generator ({opens.name}); leave it out, or set protocol.memory: stateless"
                )
        if settings.summarize and not cast.get("summariser"):
            raise ConfigError("protocol.summarize is on, so cast.summariser needs exactly one agent")

    @classmethod
    def max_asks(cls, settings: SocietySettings, cast: Mapping[str, Sequence[Any]]) -> int:
        members, rounds = len(cast["generator"]), settings.rounds
        return members * rounds + (members * (rounds - 1) if settings.summarize and members > 1 else 0)

    def script(self) -> Script:
        self._members = list(range(len(self.cast["generator"])))  # still in the debate
        for number in range(self.settings.rounds):
            self.round = number
            turns: dict[int, Turn] = {}
            for speakers in self._speakers():
                summaries = self._summaries(speakers)
                yield _SUMMARISING, list(summaries.values())
                now = {member: self._answer(member, summaries.get(member)) for member in speakers}
                yield _ANSWERING, list(now.values())
                turns |= now
            still = [member for member in self._members if turns[member].reply is not None]
            if not still:  # what was said before still counts
                return self.conclude("failures" if self.latest else "no_replies")
            self._members = still
            if rule := self.settled([turns[member] for member in still]):
                return self.conclude(rule)
        return self.conclude("rounds")

    def conclude(self, stop_reason: str) -> Verdict:
        """A vote over the latest answer of everyone still there."""
        known = [self.latest[str(member)] for member in self._members if str(member) in self.latest]
        return self.vote(known, stop_reason)

    def _speakers(self) -> list[list[int]]:
        """Who speaks at once: everybody, or one after another."""
        if self.settings.visibility == "snapshot":
            return [list(self._members)]
        return [[member] for member in self._members]

    def _answer(self, member: int, summary: Turn | None) -> Turn:
        chat = self.settings.memory == "chat"
        seat = str(member)
        own = self.latest.get(seat)
        thread = seat if chat else ""
        if self.round == 0 and own is None:
            player, role = self.cast["generator"][member], "generator"
        else:
            player, role = (self.cast.get("critic") or self.cast["generator"])[member], "critic"
        peers = self._peers(member) if summary is None or summary.reply is None else []
        saw: list[tuple[Turn, EdgeKind]] = [(turn, "saw") for turn in peers]
        shown = [self._block(number, turn) for number, turn in enumerate(peers, 1)]
        part = "revise" if peers else "opening" if own is None else "self_check"
        if summary is not None and summary.reply is not None:
            part, shown, saw = "revise", [summary.text], [(summary, "summary")]  # in no agent's name
        if own is not None and not chat and self.prompts.uses(part, "own"):
            saw.insert(0, (own, "saw"))
        images = self.task.images if own is None or not chat else ()
        prompt = self.told(
            player,
            part,
            thread=thread,
            images=images,
            context={"peers": shown, "own": [own.text] if own else []},
            agent=str(member + 1),
        )
        return Turn(
            player=player,
            role=role,
            step="answer",
            seat=seat,
            prompt=prompt,
            thread=thread,
            saw=tuple(saw),
            answers=True,
            part=part,
        )

    def _summaries(self, speakers: Sequence[int]) -> dict[int, Turn]:
        """For each of these members one of what the others said last; none for who sees nobody."""
        if not self.round or not self.settings.summarize:
            return {}
        return {member: self._summary(member, peers) for member in speakers if (peers := self._peers(member))}

    def _summary(self, member: int, peers: Sequence[Turn]) -> Turn:
        player = self.the("summariser")
        shown = [self._block(number, turn) for number, turn in enumerate(peers, 1)]
        return Turn(
            player=player,
            role="summariser",
            step="summarise",
            seat=str(member),
            prompt=self.told(player, "summarise", head="", context={"peers": shown}),
            saw=tuple((turn, "saw") for turn in peers),
            part="summarise",
        )

    def _peers(self, member: int) -> list[Turn]:
        """The latest turns of those whom a member sees, in an order drawn for it and this round."""
        if not self.latest:
            return []
        neighbours = self._neighbours(member)
        others = [str(other) for other in self._members if other in neighbours]
        others.sort(key=lambda other: derive_seed(self.seed, "peers", self.round, member, other))
        return [self.latest[seat] for seat in others if seat in self.latest][: self.settings.max_peers]

    def _neighbours(self, member: int) -> set[int]:
        """Whom the topology lets a member see; those who left leave a gap."""
        everyone = len(self.cast["generator"])
        if self.settings.topology == "ring":
            return {(member - 1) % everyone, (member + 1) % everyone} - {member}
        others = set(range(everyone)) - {member}
        if self.settings.topology == "star":  # the first is the hub
            return others if member == 0 else {0}
        if self.settings.topology == "sparse":
            return set(self.rng("topology", member).sample(sorted(others), min(self.settings.degree, len(others))))
        return others

    def _block(self, number: int, turn: Turn) -> str:
        return self.prompts.fill("peer", number=str(number), reply=turn.text)
