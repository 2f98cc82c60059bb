"""The vocabulary of debates and the state machines that run them: pure, no model, no disk, no Ray."""

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
