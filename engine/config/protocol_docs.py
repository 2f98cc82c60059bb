"""What can be said of a protocol from its class alone: phases, roles, settings, prompts, and its diagram."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from engine.config.named_protocol import find_protocol
from protocols.catalogue import PROTOCOLS
from protocols.conversation import Conversation, ProtocolSettings
from protocols.machine import mermaid
from protocols.prompt import prompt_names

BEGIN, END = "<!-- generated: moot protocols show --markdown -->", "<!-- end of what is generated -->"
_FIELD = re.compile(r"^\s+(\w+):.*?#\s*(.+)$")


def list_protocols() -> dict[str, Any]:
    """Name -> the first line of what it is."""
    return {"protocols": [f"{name}: {summary_of(machine)}" for name, machine in PROTOCOLS.items()]}


def show(name: str) -> dict[str, Any]:
    """Everything about one protocol, as plain data. Raises: ConfigError: no such protocol."""
    machine = find_protocol(name)
    return {
        "name": machine.NAME,
        "summary": summary_of(machine),
        "source": machine.SOURCE,
        "phases": {phase.value: [after.value for after in sorted(follows)] for phase, follows in machine.FLOW.items()},
        "roles": {role: f"{part.does} ({_how_many(part.least, part.most)})" for role, part in machine.ROLES.items()},
        "settings": {key: f"{default} — {text}" for key, default, text in settings_of(machine.SETTINGS)},
        "prompts": prompt_sets(machine),
        "parts": {part: " ".join(slots) for part, slots in parts_of(machine).items()},
        "learners": list(machine.LEARNERS),
        "departures": departures_of(machine),
        "diagram": mermaid(machine),
    }


def markdown(name: str) -> str:
    """One protocol as a section of the docs."""
    machine = find_protocol(name)
    lines = [f"## {machine.NAME}", "", summary_of(machine), "", f"Source: {machine.SOURCE}.", ""]
    lines += ["```mermaid", diagram(machine), "```", ""]
    lines += ["| role | plays | |", "|---|---|---|"]
    lines += [f"| `{role}` | {_how_many(p.least, p.most)} | {p.does} |" for role, p in machine.ROLES.items()]
    own = [row for row in settings_of(machine.SETTINGS) if row[0] not in _BASE or _changed(machine, row[0])]
    lines += ["", "| setting | default | |", "|---|---|---|"]
    lines += [f"| `{key}` | {default} | {text} |" for key, default, text in own]
    lines += ["", f"Prompt sets: {', '.join(f'`{name}`' for name in prompt_sets(machine)) or 'its own'}.", ""]
    parts = [
        f"`{part}`{': ' if slots else ''}{', '.join(f'`{slot}`' for slot in slots)}"
        for part, slots in parts_of(machine).items()
    ]
    lines += [f"Parts of one, and what may stand in each: {'; '.join(parts)}.", ""]
    if departures := departures_of(machine):
        lines += ["Departures from the source:", "", *(f"- {sentence}" for sentence in departures), ""]
    return "\n".join(lines)


def all_markdown() -> str:
    """What docs/protocols.md holds between its marks."""
    common = ["## What every protocol can be told", "", "| setting | default | |", "|---|---|---|"]
    common += [f"| `{key}` | {default} | {text} |" for key, default, text in settings_of(ProtocolSettings)]
    return "\n".join([BEGIN, "", *common, "", *(markdown(name) for name in PROTOCOLS), END])


def rewritten(page: str) -> str:
    """A page with the part between its marks made anew. Raises: ValueError: it has no marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN!r} or {END!r}")
    return before + all_markdown() + after


def summary_of(machine: type[Conversation]) -> str:
    """The first paragraph of its module's docstring, or of its own."""
    module = inspect.getmodule(machine)
    text = inspect.cleandoc((module.__doc__ if module else None) or machine.__doc__ or "")
    return " ".join(text.split("\n\n")[0].split())


def departures_of(machine: type[Conversation]) -> list[str]:
    """Its departures, one an item: a new one begins on a line of its own, behind a full stop."""
    text = inspect.cleandoc(machine.DEPARTURES)
    return [" ".join(part.split()) for part in re.split(r"(?<=[.)])\n(?=[A-Z])", text) if part]


def settings_of(kind: type[msgspec.Struct]) -> list[tuple[str, str, str]]:
    """(name, default, what it means) of every setting; the meaning is the comment beside the field."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if issubclass(base, msgspec.Struct) and base is not msgspec.Struct:
            meanings |= comments_of(base)
    fields = msgspec.structs.fields(kind)
    return [(field.name, _default(field), _values(field.type) + meanings.get(field.name, "")) for field in fields]


def _values(kind: Any) -> str:
    """The values that a setting may take, where they are few."""
    return "one of " + ", ".join(map(str, get_args(kind))) + "; " if get_origin(kind) is Literal else ""


def comments_of(kind: type) -> dict[str, str]:
    """Field -> the comment behind it in the source."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # made at run time, or built in
        return {}
    return {found[1]: found[2].strip() for line in source.splitlines() if (found := _FIELD.match(line))}


def diagram(machine: type[Conversation]) -> str:
    """The flow as a Mermaid state diagram: one arrow a pair of phases, however many events can take it."""
    lines = ["stateDiagram-v2", f"    [*] --> {machine.START.value}"]
    for phase, follows in machine.FLOW.items():
        lines += [f"    {phase.value} --> {after.value}" for after in sorted(follows)]
    return "\n".join([*lines, f"    {machine.END.value} --> [*]"])


def parts_of(machine: type[Conversation]) -> dict[str, list[str]]:
    """Part of a prompt set -> the slots that may stand in it, as a template writes them."""
    return {part: [f"${{{slot}}}" for slot in sorted(slots)] for part, slots in machine.SLOTS.items()}


def prompt_sets(machine: type[Conversation]) -> list[str]:
    return [name for name in prompt_names() if name.startswith(f"{machine.NAME}.")]


_BASE = {field.name for field in msgspec.structs.fields(ProtocolSettings)}


def _changed(machine: type[Conversation], name: str) -> bool:
    """Whether a protocol has another default than all have."""
    defaults = [
        {field.name: _default(field) for field in msgspec.structs.fields(kind)}
        for kind in (ProtocolSettings, machine.SETTINGS)
    ]
    return defaults[0][name] != defaults[1][name]


def _default(field: Any) -> str:
    if field.default is not msgspec.NODEFAULT:
        value = field.default
    elif field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    else:
        return "required"
    return msgspec.json.encode(value).decode() if not isinstance(value, str) else value or '""'


def _how_many(least: int, most: int | None) -> str:
    if most is None:
        return f"{least} or more"
    return str(least) if least == most else f"{least} to {most}"


def write_docs(path: Path) -> None:
    """Make the generated part of a page anew."""
    path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
