"""The vocabulary of debates and the state machines that run them: pure, no model, no disk, no Ray.

A name's module is imported when the name is first used: who needs an error alone does not load every protocol.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protocols.answer import Answer, equivalent, grade, parse_answer
    from protocols.catalogue import PROTOCOLS, build_machine
    from protocols.conversation import Conversation, Flow, Player, ProtocolSettings, Role, Script, Turn
    from protocols.graph import Debate, Edge, Utterance, Verdict, decode_debate, encode_debate, to_networkx
    from protocols.machine import (
        AgentFailed,
        BudgetSpent,
        Close,
        DeadlinePassed,
        Machine,
        Opened,
        Phase,
        Record,
        Replied,
        Request,
        derive_seed,
    )
    from protocols.message import Ask, Failure, ImagePart, Message, Reply, Sampling, TextPart, Usage
    from protocols.society import Society, SocietySettings
    from protocols.task import Task, stable_id
    from protocols.vote import VoteResult, majority_vote

_NAMES = {
    "answer": "Answer equivalent grade parse_answer",
    "catalogue": "PROTOCOLS build_machine",
    "conversation": "Conversation Flow Player ProtocolSettings Role Script Turn",
    "graph": "Debate Edge Utterance Verdict decode_debate encode_debate to_networkx",
    "machine": "AgentFailed BudgetSpent Close DeadlinePassed Machine Opened Phase Record Replied Request derive_seed",
    "message": "Ask Failure ImagePart Message Reply Sampling TextPart Usage",
    "society": "Society SocietySettings",
    "task": "Task stable_id",
    "vote": "VoteResult majority_vote",
}  # by module
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return [*globals(), *_MODULES]


__all__ = [
    "PROTOCOLS",
    "AgentFailed",
    "Answer",
    "Ask",
    "BudgetSpent",
    "Close",
    "Conversation",
    "DeadlinePassed",
    "Debate",
    "Edge",
    "Failure",
    "Flow",
    "ImagePart",
    "Machine",
    "Message",
    "Opened",
    "Phase",
    "Player",
    "ProtocolSettings",
    "Record",
    "Replied",
    "Reply",
    "Request",
    "Role",
    "Sampling",
    "Script",
    "Society",
    "SocietySettings",
    "Task",
    "TextPart",
    "Turn",
    "Usage",
    "Utterance",
    "Verdict",
    "VoteResult",
    "build_machine",
    "decode_debate",
    "derive_seed",
    "encode_debate",
    "equivalent",
    "grade",
    "majority_vote",
    "parse_answer",
    "stable_id",
    "to_networkx",
]
