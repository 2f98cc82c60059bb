"""What is said of a value that does not fit: its key, what it is, the fix, as one who writes recipes says it."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from typing import Any

import msgspec
from msgspec.inspect import CollectionType, DictType, LiteralType, StructType, Type, UnionType

_PLACED = re.compile(r"(?s)(?P<said>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?")
_STEP = re.compile(r"\.(\w+)|\[(\d+|\.\.\.)\]")  # "...": some value of a mapping; msgspec does not say which
_TYPES = {"bool": bool, "int": int, "float": float, "str": str, "array": list, "object": dict, "null": type(None)}
WORDS = {
    "bool": "true or false", "int": "a whole number", "float": "a number", "str": "text", "array": "a list",
    "object": "a mapping of keys to values",
}  # fmt: skip


def in_words(err: msgspec.ValidationError, value: Any, kind: Any, at: str) -> str:
    """What msgspec has against a value, as one who writes recipes says it: the key, the value, the fix."""
    placed = _PLACED.fullmatch(str(err))
    assert placed is not None  # it matches any text
    said, steps = placed["said"], [name or index for name, index in _STEP.findall(placed["path"] or "")]
    expected, got = [*re.findall(r"`(.*?)`", said), "", ""][:2]
    reached = list(_reached(value, steps))
    fits = [pair for pair in reached if type(pair[1]) is _TYPES.get(got) or said.endswith(f"value {pair[1]!r}")]
    if not fits and len(reached) != 1:  # in some value of a mapping, and none can be told from the others
        fits = list(_reached(value, steps[: steps.index("...")])) if "..." in steps else [("", value)]
    path, found = [*fits, *reached][0]
    key, kinds = at + path, _kinds(msgspec.inspect.type_info(kind), steps)
    fields = [field.encode_name for part in kinds if isinstance(part, StructType) for field in part.fields]
    if (number := _not_finite(found)) is not None and "..." not in steps:
        other = _with(value, steps, number)
        with_range = _refusal(other, kind)
        if with_range is not None:
            return in_words(with_range, other, kind, at)
    if err.__cause__ is not None:  # the struct's own words, which begin with the setting where it is one alone
        return f"{key}.{said}" if re.split(r"[=.]", said)[0] in fields else f"{key}: {said}"
    if said.startswith("Object contains unknown"):
        given = f"={shown(found[expected])}" if expected in found else ""
        return f"{key}.{expected}{given} is not known; {meant(expected, fields, key)}"
    if said.startswith("Object missing"):
        return f"{key}.{expected} is missing"
    if placed["key"]:
        keys = [word for part in kinds if isinstance(part, DictType) for word in _literals(part.key_type)]
        return (
            f"{key}: {said.rpartition(' ')[2]} is not known; {_one_of(keys)}" if keys else f"{key}: names must be text"
        )
    if said.startswith("Invalid enum"):
        return _unknown(key, found, [word for part in kinds for word in _literals(part)])
    if got:
        return _mistyped(key, found, [name for name in expected.split(" | ") if name != "null"], kinds, fields)
    return f"{key}={shown(found)}: {said}"


def _mistyped(key: str, found: Any, names: list[str], kinds: list[Type], fields: list[str]) -> str:
    """``names``: the types that it may be of; ``kinds``: the same, with what they hold; ``fields``: of its structs."""
    words = [word for part in kinds for word in _literals(part)]
    must = " or ".join(WORDS.get(name, name) for name in names if not (name == "int" and "float" in names))
    if words and names == ["str"]:
        return f"{key} is empty; {_one_of(words)}" if found is None else _unknown(key, found, words)
    if found is None:
        return f"{key} is empty; it must be {must}"
    return f"{key}={shown(found)} must be {must}{_fix(found, names, words, fields)}"


def _fix(found: Any, names: list[str], words: list[str], fields: list[str]) -> str:
    """How a value of the wrong type becomes one of the right type, where that can be told."""
    if isinstance(found, list | dict):
        return f", not {WORDS['array' if isinstance(found, list) else 'object']}"
    if "str" in names:
        return "; put it in quotes"
    if "array" in names:
        return f" of: {', '.join(sorted(words))}" if words else f", for instance [{found}]" * isinstance(found, str)
    if "object" in names:
        return f"; its keys: {', '.join(fields)}" if fields else ""
    if not {"int", "float"} & set(names) or isinstance(found, bool):
        return ""
    try:
        number = float(found)
    except (TypeError, ValueError):  # a date, say
        return ""
    if not math.isfinite(number):
        return ", a finite one"
    if "float" not in names and not number.is_integer():
        return ""
    return f"; write {found.strip() if 'float' in names else int(number)}" + " without quotes" * isinstance(found, str)


def _reached(value: Any, steps: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """What msgspec's path may mean in plain data: each as a path of keys, with what is there."""
    if not steps:
        yield "", value
    elif isinstance(value, dict):
        for key in value if steps[0] == "..." else value.keys() & {steps[0]}:
            yield from ((f".{key}{path}", found) for path, found in _reached(value[key], steps[1:]))
    elif isinstance(value, list):
        yield from ((f"[{steps[0]}]{path}", found) for path, found in _reached(value[int(steps[0])], steps[1:]))


def _refusal(value: Any, kind: Any) -> msgspec.ValidationError | None:
    """What the struct says, which knows the range that a number may be in."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as err:
        return err
    return None


def _not_finite(value: Any) -> float | None:
    """The number that a text means which YAML reads as none: nan, inf."""
    with suppress(ValueError):
        if isinstance(value, str) and not math.isfinite(number := float(value)):
            return number
    return None


def _with(value: Any, steps: Sequence[str], new: Any) -> Any:
    """Plain data with another value at the end of a path."""
    if not steps:
        return new
    if isinstance(value, dict):
        return value | {steps[0]: _with(value[steps[0]], steps[1:], new)}
    return [_with(item, steps[1:], new) if number == int(steps[0]) else item for number, item in enumerate(value)]


def _kinds(kind: Type, steps: Sequence[str]) -> list[Type]:
    """The types that a path leads to."""
    if isinstance(kind, UnionType):
        return [found for part in kind.types for found in _kinds(part, steps)]
    if not steps:
        return [kind]
    if isinstance(kind, StructType):
        return [
            found for field in kind.fields if field.encode_name == steps[0] for found in _kinds(field.type, steps[1:])
        ]
    if isinstance(kind, DictType):
        return _kinds(kind.value_type, steps[1:])
    return _kinds(kind.item_type, steps[1:]) if isinstance(kind, CollectionType) else []


def _literals(kind: Type) -> list[str]:
    """The words that a type, or what it holds, is one of."""
    if isinstance(kind, CollectionType):
        return [word for part in _kinds(kind.item_type, ()) for word in _literals(part)]
    return [word for word in kind.values if isinstance(word, str) and word] if isinstance(kind, LiteralType) else []


def _unknown(key: str, found: Any, words: Iterable[str]) -> str:
    return f"{key}={shown(found)} is not known; {_one_of(words)}"


def _one_of(words: Iterable[str]) -> str:
    return f"use one of: {', '.join(sorted(words))}"


def shown(value: Any) -> str:
    """As YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, date) else repr(value)


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


def meant(key: str, known: Any, at: str) -> str:
    word = _OTHER_WORDS.get(key, key)
    if word in known:
        return f"did you mean {word!r}?"
    place = "" if "." in at else _ELSEWHERE.get(word, "")  # a model's or an agent's keys are its own
    return f"did you mean {place}?" if place else suggest(key, known)


def suggest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else f"there is: {', '.join(sorted(known))}"
