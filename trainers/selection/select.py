"""What to learn from: rules by name, and who learns by which. Pure: no model, no disk, no Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from protocols.errors import ConfigError
from protocols.graph import Debate
from trainers.selection.example import Example
from trainers.selection.maft import critic_examples, generator_examples, majority_examples
from trainers.selection.retold import chain_examples, rewritten_examples, teacher_examples
from trainers.selection.rule import Rule, RuleOptions

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "generator": generator_examples,
        "critic": critic_examples,
        "majority": majority_examples,
        "teacher": teacher_examples,
        "chain": chain_examples,
        "rewritten": rewritten_examples,
    }
)
"""Name in a recipe -> rule. A new one adds its line here."""

WITHOUT_LABEL = ("chain", "rewritten")  # rules that ask what a debate made of its task, not who was right
FOR_ONE = ("majority",)  # rules that pool what several agents said: two learners would become one model twice


class Selection(RuleOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who learns by which rule: all by ``rule``, or each by the rules of the roles that it plays."""

    rule: str = "generator"
    rules: Mapping[str, str | tuple[str, ...]] = msgspec.field(default_factory=dict)  # role -> one or several

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rules and self.rule != "generator":
            raise ValueError(f"rule={self.rule!r} and rules both say what is learned; leave one of them out")
        for key, name in self._named():
            if name not in RULES:
                raise ValueError(f"{key}={name!r} is not known; use one of: {', '.join(RULES)}")
            if name in WITHOUT_LABEL and self.label == "gold":
                raise ValueError(f"label='gold' has no part in {key}={name!r}; leave label out")

    @property
    def names(self) -> tuple[str, ...]:
        """All rules in use, each once."""
        return tuple(dict.fromkeys(name for _, name in self._named()))

    def rules_of(self, agent: str, cast: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """The rules by which an agent learns."""
        if not self.rules:
            return (self.rule,)
        own = (_several(names) for role, names in self.rules.items() if agent in cast.get(role, ()))
        return tuple(dict.fromkeys(name for names in own for name in names))

    def students(self, cast: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        """Who learns from what all said: ``agents``, else everybody in the cast who does not teach."""
        teaching = {name for role in self.teachers for name in cast.get(role, ())}
        everyone = dict.fromkeys(name for names in cast.values() for name in names)
        return self.agents or tuple(name for name in everyone if name not in teaching)

    def check_learners(self, learners: Sequence[str]) -> None:
        """Raises: ConfigError: several are to learn by a rule that is for one."""
        pooled = next((name for name in self.names if name in FOR_ONE), None)
        if pooled and len(learners) > 1:
            raise ConfigError(
                f"train: the rule {pooled!r} makes one model of what all agents said, but {', '.join(learners)} would "
                "learn; name the one in train.agents"
            )

    def _named(self) -> list[tuple[str, str]]:
        """(key in a recipe, rule), for all rules in use."""
        if not self.rules:
            return [("rule", self.rule)]
        return [(f"rules.{role}", name) for role, names in self.rules.items() for name in _several(names)]


def select(selection: Selection, debate: Debate) -> dict[str, list[Example]]:
    """The rows that a debate gives, by the agent that learns from them; agents without a row are left out.

    A task that is held out teaches nobody anything, whatever the rule. Which rows a debate gives depends on it alone,
    not on other debates: where rows are mixed in a share, ``trainers.selection.mix`` does that further on.
    """
    if debate.task.held_out:
        return {}
    agents = selection.agents or dict.fromkeys(agent for cast in debate.cast.values() for agent in cast)
    chosen = {
        agent: [row for name in selection.rules_of(agent, debate.cast) for row in RULES[name](debate, agent, selection)]
        for agent in agents
    }
    return {agent: examples for agent, examples in chosen.items() if examples}


def _several(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
