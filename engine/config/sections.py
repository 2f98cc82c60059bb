"""Plain data, as YAML gives it, made into checked structs; what is wrong is one sentence with the key and the fix."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

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
        text, _, inside = str(err).partition(" - at `$")
        deeper = inside.rstrip("`")
        text += _hint(_at(value, deeper), text) + _allowed(kind, deeper)
        shown = "" if isinstance(value, dict) and not deeper else f"={_at(value, deeper)!r}"
        cause = err.__cause__
        raise ConfigError(f"{where}: {at}{deeper}{'' if cause else shown}: {text}") from err


def _allowed(kind: Any, path: str) -> str:
    """What a setting may be, where that is one of a few words."""
    name = path.strip(".").partition("[")[0].partition(".")[0]
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)} if _is_struct(kind) else {}
    words = sorted(_words(fields.get(name)))
    return f"; use one of: {', '.join(words)}" if words else ""


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _words(kind: Any) -> set[str]:
    """The words that a type is made of, however deep."""
    if get_origin(kind) is Literal:
        return {word for word in get_args(kind) if isinstance(word, str)}
    return set().union(*map(_words, get_args(kind)))


def _hint(value: Any, said: str) -> str:
    """What was put into quotes is text."""
    if not isinstance(value, str) or not said.startswith(("Expected `int", "Expected `float")):
        return ""
    try:
        number = float(value)
    except ValueError:
        return "; write a number"
    return f"; write {f'{number:.1e}' if 'e' in value.lower() else value.strip()} without quotes"


def _at(value: Any, path: str) -> Any:
    """The part of plain data that msgspec's path points at; the whole where it cannot be followed."""
    for step in path.strip(".").replace("[", ".").replace("]", "").split("."):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
    return value


def known_keys(section: Mapping[str, Any], known: Any, where: str, at: str) -> None:
    for key in section:
        if key not in known:
            place = f"{at}.{key}" if at else str(key)
            raise ConfigError(f"{where}: {place}={section[key]!r} is not known; {_meant(str(key), known, at)}")


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


_ELSEWHERE = {
    "epochs": "sft.epochs", "learning_rate": "sft.learning_rate", "batch_size": "sft.batch_size", "rank": "sft.rank",
    "rounds": "protocol.rounds", "prompts": "protocol.prompts", "stop": "protocol.stop",
    "iterations": "loop.iterations", "init_from": "loop.init_from", "staleness": "loop.staleness",
    "max_open": "run.max_open", "budget": "run.budget", "colocate": "run.colocate",
    "rules": "train.rules", "label": "train.label", "base_model": "train.base_model",
    "beta": "tree_dpo.beta",
}  # fmt: skip
"""Key -> where it belongs: what people give at the top of a recipe, or in another section."""
_OTHER_WORDS = {"lr": "learning_rate", "num_epochs": "epochs", "num_train_epochs": "epochs", "lora_rank": "rank"}


def _meant(key: str, known: Any, at: str) -> str:
    word = _OTHER_WORDS.get(key, key)
    if word in known:
        return f"did you mean {word!r}?"
    place = "" if "." in at else _ELSEWHERE.get(word, "")  # a model's or an agent's keys are its own
    return f"did you mean {place}?" if place else suggest(key, known)


def suggest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"there is: {', '.join(sorted(known))}"


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
        raise ConfigError(f"{where}: {at}={value!r} must be a mapping of keys to values{shape and f': {at}: {shape}'}")
    return value


def mapping(data: Mapping[str, Any], key: str, where: str, what: str) -> Mapping[str, Any]:
    section = table(data[key], where, key)
    if not section:
        raise ConfigError(f"{where}: {key} is empty: {what}")
    for name in section:
        if not isinstance(name, str):  # YAML reads a bare `no` or `1` as something else
            raise ConfigError(f"{where}: {key}.{name}: a name must be text; put it in quotes")
    return section
