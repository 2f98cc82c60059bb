"""The protocols that recipes can name."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from protocols.errors import ConfigError
from protocols.machine import Machine, table_problems
from protocols.prompt import PromptSet, load_prompts
from protocols.society import SLOTS as SOCIETY_SLOTS
from protocols.society import Player, Society, SocietySettings


class ProtocolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One protocol as a recipe sees it: its machine, its settings, the slots of its prompts."""

    machine: type[Society]
    settings: type[SocietySettings]
    slots: Mapping[str, frozenset[str]]


PROTOCOLS: dict[str, ProtocolSpec] = {
    "society": ProtocolSpec(machine=Society, settings=SocietySettings, slots=SOCIETY_SLOTS),
}
"""Name in a recipe -> protocol. A new one adds its line here."""

for _name, _spec in PROTOCOLS.items():  # a table with holes must not get as far as a debate
    if _problems := table_problems(_spec.machine):
        raise ConfigError(f"protocol {_name!r} cannot be used: {'; '.join(_problems)}")


def load_protocol_prompts(name: str, settings: SocietySettings, *, text: str | None = None) -> PromptSet:
    """The prompt set that the settings name; ``text`` is its content where that is a user's file.

    Raises: ConfigError: see ``load_prompts``.
    """
    return load_prompts(settings.prompts, PROTOCOLS[name].slots, text=text)


def build_machine(
    name: str, settings: SocietySettings, cast: Mapping[str, tuple[Player, ...]], prompts: PromptSet
) -> Machine:
    """A fresh machine for one debate. Raises: ConfigError: the cast does not fit."""
    return PROTOCOLS[name].machine(settings, cast, prompts)
