"""Plain data, as YAML gives it, made into checked structs; what is wrong is one sentence with the key and the fix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from engine.config.refusals import WORDS, in_words, meant, shown, suggest
from protocols.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)
K = TypeVar("K")


def read_section(value: Any, kind: type[T], where: str, at: str, *, also: set[str] | frozenset[str] = frozenset()) -> T:
    """One section as its struct. ``also``: keys that the section may hold beside the struct's.

    Raises: ConfigError: unknown key (with the nearest known one), wrong type, or a value its struct refuses.
    """
    section = table(value, where, at)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    known_keys(section, {*fields, *also}, where, at)
    for name, field in fields.items():
        if field.required and name not in section:
            raise ConfigError(f"{where}: {at}.{name} is missing")
    return typed(section, kind, where, at)


def typed(value: Any, kind: type[K], where: str, at: str) -> K:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as err:
        raise ConfigError(f"{where}: {in_words(err, value, kind, at)}") from err


def known_keys(section: Mapping[str, Any], known: Any, where: str, at: str) -> None:
    for key in section:
        if key not in known:
            place = f"{at}.{key}" if at else str(key)
            raise ConfigError(f"{where}: {place}={shown(section[key])} is not known; {meant(str(key), known, at)}")


def named(section: Mapping[str, Any], key: str, known: Any, where: str, at: str, *, also: str = "") -> str:
    """Which of some kinds a section is of. ``also``: advice for a name that is not known.

    Raises: ConfigError: it does not say, or names none of them.
    """
    name = section.get(key)
    if name is None:
        raise ConfigError(f"{where}: {at}.{key} is missing; there is: {', '.join(sorted(known))}")
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"{where}: {at}.{key}={name!r} is not known; {suggest(str(name), known)}{also}")
    return name


_SHAPES = (
    ("protocol", "{name: society}"),
    ("cast", "{generator: [ada, bo]}, with the protocol's roles"),
    ("tasks", "{source: file, path: FILE}"),
    (r"agents\.[^.]+", "{model: NAME}"),
    (r"models\.[^.]+", "{backend: vllm, model: ./FOLDER}"),
)  # fmt: skip
"""Part of a recipe -> the least that it may be."""


def table(value: Any, where: str, at: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        shape = next((shape for pattern, shape in _SHAPES if re.fullmatch(pattern, at)), "")
        begin = f"{at} is empty; it" if value is None else f"{at}={shown(value)}"
        raise ConfigError(f"{where}: {begin} must be {WORDS['object']}{shape and f': {at}: {shape}'}")
    return value


def mapping(data: Mapping[str, Any], key: str, where: str, what: str) -> Mapping[str, Any]:
    section = table(data[key], where, key)
    if not section:
        raise ConfigError(f"{where}: {key} is empty: {what}")
    for name in section:
        if not isinstance(name, str):  # YAML reads a bare `no` or `1` as something else
            raise ConfigError(f"{where}: {key}.{name}: a name must be text; put it in quotes")
    return section
