"""What the readers and writers of foreign formats share: careful JSON, and graphs built from what a file says.

A reader takes text (or an object parsed from it) and the place to name in errors; it returns debates. A writer takes
debates and yields text. Neither opens a file. What a file says and a graph has no place for is kept with the task, so
that writing what was read gives an equal file: ``keep_rest`` and ``with_rest``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import msgspec

from protocols.answer import Answer, grade
from protocols.errors import ConfigError, GraphError, unreadable
from protocols.graph import Debate, Edge, EdgeKind, Utterance, Verdict
from protocols.machine import Cast
from protocols.message import Message, Reply
from protocols.task import Task

MAX_NESTING = 64  # of JSON: far above any format here, far below where Python's own recursion ends
_T = TypeVar("_T")
_NAMES = {dict: "an object", list: "a list", str: "text", int: "a number", bool: "true or false"}


def parse_json(text: str, where: str) -> Any:
    """The value that a JSON text holds.

    Raises: ConfigError: not JSON, or JSON that cannot be kept: a key twice in one object, NaN, half a character, a
        number without end, nesting beyond ``MAX_NESTING``.
    """
    try:
        parsed = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
        _check_nesting(parsed)
        if "\\u" in text or not text.isascii():  # half a surrogate pair is no text and can be stored nowhere
            json.dumps(parsed, ensure_ascii=False).encode()
    except json.JSONDecodeError as err:
        raise ConfigError(f"{where}: is not valid JSON: {err.msg} in line {err.lineno}, column {err.colno}") from err
    except UnicodeEncodeError as err:
        raise ConfigError(f"{where}: holds an escape that is half a character; mend it") from err
    except (ValueError, RecursionError) as err:
        raise ConfigError(f"{where}: is JSON that cannot be read: {unreadable(err)}") from err
    return parsed


def parse_lines(lines: Iterable[str], where: str) -> Iterator[tuple[str, Any]]:
    """(place, value) of every line that is not empty. Raises: ConfigError: see ``parse_json``."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{where}, line {number}"
            yield place, parse_json(line, place)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice[:80]!r} stands twice in one object, so one would hide the other")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number that JSON has")


def _check_nesting(parsed: Any) -> None:
    """Level by level, so that no depth can exhaust Python's stack."""
    level = [parsed]
    for _ in range(MAX_NESTING):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError(f"it nests deeper than {MAX_NESTING} levels")


def expect(value: Any, kind: type[_T], where: str) -> _T:
    """``value``, known to be of a kind. Raises: ConfigError: it is not."""
    if not isinstance(value, kind):
        raise ConfigError(f"{where}: must be {_NAMES.get(kind, kind.__name__)}, not {_short(value)}")
    return value


def needed(row: Mapping[str, Any], key: str, kind: type[_T], where: str) -> _T:
    """A field that must be there. Raises: ConfigError: it is missing, or of another kind."""
    if key not in row:
        raise ConfigError(f"{where}: has no {key!r}; it has {', '.join(map(repr, list(row)[:8])) or 'nothing'}")
    return expect(row[key], kind, f"{where}, {key!r}")


def plain(value: Any) -> str:
    """A scalar as text; "" for anything else, whose text would depend on how the file is laid out."""
    return str(value) if isinstance(value, str | int | float) else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# Graphs


class Draft:
    """A debate while it is read from a file."""

    def __init__(self, protocol: str, task: Task, cast: Cast, *, model: str = "") -> None:
        self.debate = Debate(id=f"debate/{task.id}", task=task, protocol=protocol, seed=0, cast=cast)
        self.model = model

    def say(
        self,
        place: tuple[int, str, str],
        role: str,
        agent: str,
        text: str,
        *,
        prompt: Iterable[Message] = (),
        saw: Iterable[tuple[str | None, EdgeKind]] = (),
        answer: Answer | None = None,
        correct: bool | None = None,
        ruling: Answer = Answer(),  # noqa: B008  frozen
    ) -> str:
        """Add a node.

        Args:
            place: (round, step, seat).
            saw: (source, kind) of edges; sources that are None are left out.
            answer: marks a debater's answer to the task. It is graded, unless ``correct`` is what the file says.
            ruling: what anybody else's reply was read as; neither graded nor counted.
        Returns: its id.
        """
        number, step, seat = place
        node_id = f"{number}.{step}.{seat}"
        if answer is not None and correct is None:
            correct = grade(answer, self.debate.task)
        node = Utterance(
            id=node_id,
            agent=agent,
            role=role,
            round=number,
            phase=step,
            prompt=tuple(prompt),
            reply=Reply(ask_id=f"{self.debate.id}#{node_id}", text=text, model=self.model),
            answer=ruling if answer is None else answer,
            answers=answer is not None,
            correct=correct,
        )
        edges = (Edge(source, node_id, kind) for source, kind in saw if source is not None)
        self.debate.add(node, dict.fromkeys(edges))
        return node_id

    def close(
        self, answer: Answer, stop_reason: str, aggregator: str, *, oracle: bool = False, **fields: Any
    ) -> Debate:
        """End the debate with a graded verdict."""
        verdict = Verdict(
            answer=answer.value,
            stop_reason=stop_reason,
            aggregator=aggregator,
            oracle=oracle,
            correct=grade(answer, self.debate.task),
            canonical=answer.canonical,
            **fields,
        )
        self.debate.close(verdict)
        return self.debate


def renamed(debate: Debate, task_id: str) -> Debate:
    """The same debate about a task of another id."""
    debate_id = f"debate/{task_id}"
    return msgspec.structs.replace(
        debate,
        id=debate_id,
        task=msgspec.structs.replace(debate.task, id=task_id),
        utterances=[
            msgspec.structs.replace(node, reply=msgspec.structs.replace(node.reply, ask_id=f"{debate_id}#{node.id}"))
            for node in debate.utterances
        ],
    )


def inexpressible(debate: Debate, form: str, why: str) -> GraphError:
    return GraphError(f"debate {debate.id!r} cannot be written as {form}: {why}")


# What only the file knows


def keep_rest(debate: Debate, form: str, original: Mapping[str, Any], written: Mapping[str, Any]) -> Debate:
    """Keep, with the task, in what the file's row differs from what would be written of the debate."""
    put = {key: value for key, value in original.items() if key not in written or not _equal(value, written[key])}
    rest = {"set": put, "drop": sorted(key for key in written if key not in original)}
    if put or rest["drop"]:
        details = debate.task.details | {f"{form}.rest": json.dumps(rest, ensure_ascii=False, sort_keys=True)}
        debate.task = msgspec.structs.replace(debate.task, details=details)
    return debate


def with_rest(debate: Debate, form: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """What is written of a debate, as the file it was read from had it."""
    rest: dict[str, Any] = json.loads(debate.task.details.get(f"{form}.rest", '{"set": {}, "drop": []}'))
    return {**{key: value for key, value in written.items() if key not in rest["drop"]}, **rest["set"]}


def _equal(one: Any, other: Any) -> bool:
    """As JSON: 1, 1.0 and true are three things."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def json_list(items: Iterable[Any]) -> Iterator[str]:
    """A JSON list, piece by piece."""
    opening = "[\n"
    for item in items:
        yield opening + json.dumps(item, ensure_ascii=False, indent=2)
        opening = ",\n"
    yield "\n]\n" if opening != "[\n" else "[]\n"


def json_lines(items: Iterable[Any]) -> Iterator[str]:
    """JSON lines, piece by piece."""
    for item in items:
        yield json.dumps(item, ensure_ascii=False) + "\n"
