"""What a run has cost so far, read from its journals: replies, late ones too, and failed tries that may be billed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from actors.prices import NOTHING, Amount
from actors.tries import spent
from engine.folder import RunFolder
from engine.journal import read_journal, read_notes
from protocols.graph import decode_debate
from protocols.machine import AgentFailed, Event, Replied
from protocols.message import Outcome

_EVENT = msgspec.msgpack.Decoder(Event)


class Totals(msgspec.Struct, kw_only=True):
    """Replies with their failed tries; tokens are those of prompts and replies."""

    cost_usd: float = 0.0
    tokens: int = 0
    replies: int = 0


def spent_so_far(folder: RunFolder) -> Amount:
    """Of a run's budget. Raises: JournalError: a journal is damaged."""
    usd, tokens = NOTHING
    for outcome in _outcomes(folder):
        amount = spent(outcome)
        usd, tokens = usd + amount.usd, tokens + amount.tokens
    return Amount(usd, tokens)


def _outcomes(folder: RunFolder) -> Iterator[Outcome]:
    for path in sorted((folder.path / "journal").glob("*/*.sqlite")):
        for recorded in read_journal(path):
            for _, event in recorded.events:
                if (outcome := _outcome(event)) is not None:
                    yield outcome
        for note in read_notes(path):
            if note.kind == "late" and (outcome := _outcome(_EVENT.decode(bytes.fromhex(note.text)))) is not None:
                yield outcome


def _outcome(event: Event) -> Outcome | None:
    if isinstance(event, Replied):
        return event.reply
    return event.failure if isinstance(event, AgentFailed) else None


def money(folder: RunFolder) -> dict[str, Any]:
    """The run's totals, and those by agent, role and model.

    The totals hold all that was spent; the shares only what is part of a closed debate, so they may add up to less.
    ``cached_replies`` of closed debates took nothing.
    Raises: JournalError: a journal is damaged.
    """
    total = spent_so_far(folder)
    shares: dict[str, dict[str, Totals]] = {"agent": {}, "role": {}, "model": {}}
    cached = 0
    for path in sorted((folder.path / "journal").glob("*/*.sqlite")):
        for recorded in read_journal(path):
            if recorded.graph is not None:
                cached += _add(recorded.graph, shares)
    by = {f"by_{key}": {name: _shown(totals) for name, totals in share.items()} for key, share in shares.items()}
    return {"cost_usd": round(total.usd, 6), "tokens": total.tokens, "cached_replies": cached, "spending": by}


def _shown(totals: Totals) -> dict[str, Any]:
    return {"cost_usd": round(totals.cost_usd, 6), "tokens": totals.tokens, "replies": totals.replies}


def _add(graph: bytes, shares: dict[str, dict[str, Totals]]) -> int:
    """Returns: how many of the replies came from a cache."""
    utterances = decode_debate(graph).utterances
    for said in utterances:
        amount = spent(said.reply)
        for key, name in (("agent", said.agent), ("role", said.role), ("model", said.reply.model)):
            totals = shares[key].setdefault(name, Totals())
            totals.cost_usd += amount.usd
            totals.tokens += amount.tokens
            totals.replies += 1
    return sum(said.reply.cached for said in utterances)
