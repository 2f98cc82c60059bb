"""What a run has cost so far, read from its journals: replies, late ones too, and failed tries that may be billed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from actors.limits.prices import NOTHING, Amount
from actors.limits.tries import spent
from engine.record.folder import RunFolder
from engine.record.journal import NoteEntry, read_events, read_graphs, read_notes
from protocols.graph import Debate, decode_debate
from protocols.machine import AgentFailed, Event, Replied
from trainers.jobs.hosted import read_hosted
from trainers.record.registry import HOSTED_NAME

_EVENT = msgspec.msgpack.Decoder(Event)


class Totals(msgspec.Struct, kw_only=True):
    """Replies with their failed tries; tokens are those of prompts and replies."""

    cost_usd: float = 0.0
    tokens: int = 0
    replies: int = 0

    def add(self, amount: Amount) -> None:
        """One reply's."""
        self.cost_usd += amount.usd
        self.tokens += amount.tokens
        self.replies += 1

    def shown(self, num: int = 1) -> dict[str, float]:
        """Rounded; of so many, the mean."""
        if num == 1:
            return {"cost_usd": round(self.cost_usd, 6), "tokens": self.tokens, "replies": self.replies}
        return {
            "cost_usd": round(self.cost_usd / num, 6),
            "tokens": round(self.tokens / num, 1),
            "replies": round(self.replies / num, 2),
        }


def spent_so_far(folder: RunFolder) -> Amount:
    """Of a run's budget. Raises: JournalError: a journal is damaged."""
    asked = total(amount for path in _journals(folder) for amount in _amounts(path))
    return total([asked, Amount(trained_usd(folder), 0)])


def trained_usd(folder: RunFolder) -> float:
    """What services took for training the run's agents, US dollars."""
    files = folder.path.glob(f"adapters/*/*/{HOSTED_NAME}")
    return sum(result.cost_usd for file in files if (result := read_hosted(file.parent)))


def _journals(folder: RunFolder) -> list[Path]:
    return sorted((folder.path / "journal").glob("*/*.sqlite"))


def total(amounts: Iterable[Amount]) -> Amount:
    """All of it."""
    usd, tokens = NOTHING
    for amount in amounts:
        usd, tokens = usd + amount.usd, tokens + amount.tokens
    return Amount(usd, tokens)


def _amounts(journal: Path) -> Iterator[Amount]:
    yield from map(spent_on, read_events(journal))
    for note in read_notes(journal):
        if note.kind == "late":
            yield spent_on(_EVENT.decode(bytes.fromhex(note.text)))
        elif note.kind == "spent":
            yield Amount(*msgspec.json.decode(note.text, type=tuple[float, int]))


def spent_on(event: Event) -> Amount:
    """What came of an ask, with its failed tries; other events cost nothing."""
    if isinstance(event, Replied):
        return spent(event.reply)
    return spent(event.failure) if isinstance(event, AgentFailed) else NOTHING


def spent_note(amounts: Iterable[Amount], at: float) -> NoteEntry:
    """What stays of events that are dropped."""
    return NoteEntry("", at, "spent", msgspec.json.encode(total(amounts)).decode())


def money(folder: RunFolder, providers: Mapping[str, str]) -> dict[str, Any]:
    """The run's totals, and those by agent, role, model and provider; of a debate the mean, and the dearest.

    The totals hold all that was spent, by services for training too (``training_usd``); the shares only what is part of
    a closed debate, so they may add up to less.
    ``cached_replies`` of closed debates took nothing.

    Args:
        providers: agent -> who is paid for its replies.
    Raises: JournalError: a journal is damaged.
    """
    total = spent_so_far(folder)
    shares = _Shares(providers)
    for path in _journals(folder):
        for graph in read_graphs(path):
            shares.add(decode_debate(graph))
    told = {"cost_usd": round(total.usd, 6), "tokens": total.tokens, "cached_replies": shares.cached}
    training = {"training_usd": round(usd, 6)} if (usd := trained_usd(folder)) else {}
    return told | training | {"spending": shares.shown()}


class _Shares:
    """What closed debates took, in several ways to share it out."""

    def __init__(self, providers: Mapping[str, str]) -> None:
        self._providers = providers
        self._by: dict[str, dict[str, Totals]] = {key: {} for key in ("agent", "role", "model", "provider")}
        self._all, self._dearest, self._num_debates = Totals(), ("", Totals()), 0
        self.cached = 0

    def add(self, debate: Debate) -> None:
        whole = Totals()
        for said in debate.utterances:
            names = {"agent": said.agent, "role": said.role, "model": said.reply.model}
            names["provider"] = self._providers.get(said.agent, "")
            mine = [self._by[key].setdefault(name, Totals()) for key, name in names.items()]
            for totals in (*mine, self._all, whole):
                totals.add(spent(said.reply))
            self.cached += said.reply.cached
        self._num_debates += 1
        self._dearest = max(self._dearest, (debate.id, whole), key=lambda item: (item[1].cost_usd, item[1].tokens))

    def shown(self) -> dict[str, Any]:
        by: dict[str, Any] = {
            f"by_{key}": {name: totals.shown() for name, totals in share.items()} for key, share in self._by.items()
        }
        if self._num_debates:
            name, dearest = self._dearest
            by["by_debate"] = {"mean": self._all.shown(self._num_debates), f"dearest, {name}": dearest.shown()}
        return by
