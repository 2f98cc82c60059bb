"""The protocols that recipes can name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocols.baseline import Baseline
from protocols.conversation import Conversation, Player, ProtocolSettings, flow_problems
from protocols.dialectic import Dialectic
from protocols.errors import ConfigError
from protocols.machine import table_problems
from protocols.mad import Mad
from protocols.persuasion import Persuasion
from protocols.prompt import PromptSet, load_prompts
from protocols.reflect import Reflect
from protocols.rewrite import Rewrite
from protocols.society import Society


def checked(machine: type[Conversation]) -> type[Conversation]:
    """A protocol whose contract holds. Raises: ConfigError: its table has holes, or something is undeclared."""
    problems = [f"{name} is not declared" for name in ("NAME", "SOURCE", "FLOW", "ROLES") if not hasattr(machine, name)]
    if problems := problems or flow_problems(machine.FLOW) or table_problems(machine):
        name = getattr(machine, "NAME", machine.__name__)
        raise ConfigError(f"protocol {name!r} cannot be used: {'; '.join(problems)}")
    return machine


PROTOCOLS: dict[str, type[Conversation]] = {
    machine.NAME: checked(machine) for machine in (Society, Mad, Dialectic, Reflect, Rewrite, Persuasion, Baseline)
}
"""Name in a recipe -> protocol. A new one adds itself here."""


def prompts_of(machine: type[Conversation], settings: ProtocolSettings, *, text: str | None = None) -> PromptSet:
    """The prompt set that the settings name; ``text`` is its content where that is a user's file.

    Raises: ConfigError: see ``load_prompts``.
    """
    if not settings.prompts and text is None:
        return PromptSet(machine.NAME, machine.TEMPLATES, machine.SLOTS)
    return load_prompts(settings.prompts, machine.SLOTS, text=text)


def load_protocol_prompts(name: str, settings: ProtocolSettings) -> PromptSet:
    """The same for a protocol of moot's, by its name."""
    return prompts_of(PROTOCOLS[name], settings)


def build_machine(name: str, settings: Any, cast: Mapping[str, tuple[Player, ...]], prompts: PromptSet) -> Conversation:
    """A fresh machine for one debate. Raises: ConfigError: the cast does not fit."""
    return PROTOCOLS[name](settings, cast, prompts)
