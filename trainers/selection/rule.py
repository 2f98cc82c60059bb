"""What a selection rule is, and what every one can be told."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from protocols.formats.rows import Label, is_right
from protocols.graph import Debate, Utterance
from trainers.selection.example import Example

Loss = Literal["last", "all"]
Form = Literal["as_said", "sections"]


class RuleOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Each rule reads those that concern it; what they mean is the same for all.

    ``label``: what makes an answer right, the debate's own vote or gold. ``loss``: which replies of a chat are learned,
    its last alone or all of them.
    """

    agents: tuple[str, ...] = ()  # who learns; default: whom the rules find rows for
    min_support: int = 1  # votes the winning answer needs before anything is learned from a debate; consensus alone
    label: Label = "consensus"
    loss: Loss = "last"
    teachers: tuple[str, ...] = ("teacher",)  # roles whose right answers teach the others
    form: Form = "as_said"  # of another's answer; sections: "### Answer", the reasoning, "Final answer: ..."

    def __post_init__(self) -> None:
        if self.min_support < 1:
            raise ValueError(f"min_support={self.min_support} must be at least 1; use 1 to take every verdict")


class Rule(Protocol):
    """A rule sees one debate and one agent, and returns that agent's rows in the order of the debate."""

    def __call__(self, debate: Debate, agent: str, options: RuleOptions = ...) -> list[Example]: ...


def right(debate: Debate, node: Utterance, options: RuleOptions) -> bool | None:
    """Whether the label calls an answer right; None where it cannot tell, or the debate teaches nothing.

    By consensus that is a debate without an answer, with too little support, or that used gold on the way
    (``oracle``); neither gold nor a node's ``correct`` is looked at. What could not be read is wrong.
    """
    verdict = debate.verdict
    if options.label == "consensus" and verdict is not None and verdict.support < options.min_support:
        return None
    return is_right(debate, node, label=options.label)
