"""Prompt sets: data files with named slots, one a protocol, answer format and language.

A set is a TOML file of templates; ``${slot}`` marks a slot. Values are put in once and never read again for slots, so
nothing that a model wrote can open one. Where a part asks for a JSON object, ``[schema.PART]`` is its JSON Schema.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from string import Template
from typing import Any

import msgspec

from protocols.errors import ConfigError
from protocols.message import Message, assistant, user


class PromptSet:
    """Checked templates of one protocol.

    Args:
        name: what a recipe calls it; also where errors point.
        templates: part name -> text with slots.
        slots: part name -> the slots its protocol fills; a part named here must be there, with no other slots.
        examples: part name -> worked examples, shown as earlier chat turns.
        schemas: part name -> JSON Schema of an object: what a reply to the part is.
    Raises: ConfigError: a part is missing or unknown, or a slot is, or a schema is of something else.
    """

    def __init__(
        self,
        name: str,
        templates: Mapping[str, str],
        slots: Mapping[str, frozenset[str]],
        examples: Mapping[str, tuple[Message, ...]] | None = None,
        schemas: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        self.name = name
        self._examples = dict(examples or {})
        for what, table in (("examples", self._examples), ("a schema", schemas or {})):
            for part in table.keys() - slots.keys():
                raise ConfigError(
                    f"prompt set {name!r} has {what} for an unknown part {part!r}; parts: {sorted(slots)}"
                )
        for part in slots.keys() - templates.keys():
            raise ConfigError(f"prompt set {name!r} has no part {part!r}; it needs {sorted(slots)}")
        for part, text in templates.items():
            if part not in slots:
                raise ConfigError(f"prompt set {name!r} has an unknown part {part!r}; it may have {sorted(slots)}")
            if not Template(text).is_valid():
                raise ConfigError(f"prompt set {name!r}, part {part!r}: a $ opens no slot; write $$ for a dollar sign")
            if unknown := set(Template(text).get_identifiers()) - slots[part]:
                raise ConfigError(
                    f"prompt set {name!r}, part {part!r}: unknown slot {min(unknown)!r}; "
                    f"it may use {sorted(slots[part])}, and $$ for a dollar sign"
                )
        self._pieces = {part: _pieces(text.strip()) for part, text in templates.items()}
        self._text = dict(templates)
        self._schemas = {part: _object_schema(name, part, schema) for part, schema in (schemas or {}).items()}
        told = [self._text, self._examples, *filter(None, [self._schemas])]
        self.digest = hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()  # of all it says

    @staticmethod
    def slots_of(text: str) -> frozenset[str]:
        """The slots that a template uses."""
        return frozenset(Template(text).get_identifiers())

    def fill(self, part: str, **values: str) -> str:
        """The part with its slots filled; "" for an empty part."""
        return "".join([values[text] if is_slot else text for text, is_slot in self._pieces[part]])

    def examples(self, part: str) -> tuple[Message, ...]:
        """Worked examples as chat turns, to go before the part; () where there are none."""
        return self._examples.get(part, ())

    @property
    def parts(self) -> frozenset[str]:
        """Names of what it can be asked for."""
        return frozenset(self._text)

    @property
    def schemas(self) -> Mapping[str, str]:
        """Part name -> the JSON Schema of its replies, as text; of parts that ask for an object alone."""
        return self._schemas

    def uses(self, part: str, slot: str) -> bool:
        """Whether the part shows what is put into the slot."""
        return (slot, True) in self._pieces[part]

    def has(self, part: str) -> bool:
        """Whether the part says anything."""
        return bool(self._text[part].strip())


def _pieces(text: str) -> tuple[tuple[str, bool], ...]:
    """A valid template as literal texts and slots, in order, each with whether it is a slot.

    Prompts are filled for every turn of every debate; ``Template.substitute`` parses its text each time.
    """
    found, at = [], 0
    for match in Template.pattern.finditer(text):
        slot = match["named"] or match["braced"]
        found.append((text[at : match.start()] + ("" if slot else "$"), False))
        if slot:
            found.append((slot, True))
        at = match.end()
    return (*found, (text[at:], False))


def prompt_names() -> list[str]:
    """The prompt sets that moot ships, by name."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in files("protocols.prompts").iterdir()
        if entry.name.endswith(".toml")
    )


def load_prompts(name: str, slots: Mapping[str, frozenset[str]], *, text: str | None = None) -> PromptSet:
    """The shipped set of this name, or the one that ``text`` (the content of a user's file) holds.

    Raises: ConfigError: no such set, not TOML, or parts and slots that do not fit.
    """
    if text is None:
        if name not in prompt_names():  # a name is never a path
            raise ConfigError(f"no prompt set {name!r}; there are {prompt_names()}, or give the path of a .toml file")
        text = (files("protocols.prompts") / f"{name}.toml").read_text(encoding="utf-8")
    try:
        templates = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"prompt set {name!r} is not valid TOML: {err}") from err
    examples = _read_examples(name, templates.pop("examples", {}))
    schemas = _read_schemas(name, templates.pop("schema", {}))
    for part, value in templates.items():
        if not isinstance(value, str):
            raise ConfigError(f"prompt set {name!r}: part {part!r} must be text, not {type(value).__name__}")
    return PromptSet(name, templates, slots, examples, schemas)


def _read_examples(name: str, table: object) -> dict[str, tuple[Message, ...]]:
    """Raises: ConfigError: not a table of pairs."""
    try:
        pairs = msgspec.convert(table, dict[str, list[tuple[str, str]]])
    except msgspec.ValidationError as err:
        raise ConfigError(
            f"prompt set {name!r}: examples must be pairs of question and reply for a part: {err}"
        ) from err
    return {part: tuple(m for q, a in shown for m in (user(q), assistant(a))) for part, shown in pairs.items()}


def _read_schemas(name: str, table: object) -> dict[str, dict[str, Any]]:
    """Tables, or JSON as text. Raises: ConfigError: neither."""
    try:
        given = msgspec.convert(table, dict[str, dict[str, Any] | str])
        return {
            part: msgspec.json.decode(schema, type=dict[str, Any]) if isinstance(schema, str) else schema
            for part, schema in given.items()
        }
    except msgspec.MsgspecError as err:
        raise ConfigError(f"prompt set {name!r}: a schema must be a table or JSON text for a part: {err}") from err


def _object_schema(name: str, part: str, schema: dict[str, Any]) -> str:
    """As text; the order of fields is kept, since models write them in it. Raises: ConfigError: not of an object."""
    fields = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(fields, dict) or not fields:
        raise ConfigError(f"prompt set {name!r}, schema.{part}: must have type = 'object' and properties")
    if unknown := set(schema.get("required", ())) - fields.keys():
        raise ConfigError(
            f"prompt set {name!r}, schema.{part}: requires {min(unknown)!r}, which properties do not have"
        )
    return msgspec.json.encode(schema).decode()
