"""Conversations as LLaVA and FastChat keep them, and LLaVA's mixtures of such files.

Sources: Liu et al. 2023 (LLaVA), arXiv:2304.08485; Zheng et al. 2023 (FastChat), arXiv:2306.05685; Guo et al. 2024
(MAmmoTH-VL), arXiv:2412.05237; fields and sampling strategies as in their released code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from protocols.answer import parse_answer
from protocols.errors import ConfigError
from protocols.formats.chats import Chat, chain_chat, chat_of, image_name, pair_chats, seats, text_of, turns_of
from protocols.formats.common import (
    Draft,
    expect,
    inexpressible,
    json_list,
    keep_rest,
    needed,
    parse_json,
    plain,
    with_rest,
)
from protocols.formats.m2d import CONDENSER
from protocols.graph import Debate, EdgeKind
from protocols.machine import derive_seed
from protocols.message import Message, assistant, system, user
from protocols.task import Task, stable_id

_FROM = {"human": user, "user": user, "gpt": assistant, "assistant": assistant, "system": system}
_TO = {"user": "human", "assistant": "gpt", "system": "system"}
_STRATEGY = re.compile(r"(first|end|random):([0-9]{1,12})(%?)")
_BRACES = re.compile(r"\{([^{}]*)\}")
MAX_FILES = 1000  # that one brace list may stand for
_T = TypeVar("_T")


def read_llava(source: str | list[Any], where: str) -> list[Debate]:
    """The conversations of a JSON list as debates of openings: one turn for each of the model's replies.

    Images are named, not read: their markers stay in the text. The verdict is what the last reply says, so that a
    conversation of one reply can be learned from as it is.

    Raises: ConfigError: not such a file.
    """
    items = expect(parse_json(source, where) if isinstance(source, str) else source, list, where)
    return [read_conversation(item, f"{where}, item {number}") for number, item in enumerate(items, 1)]


def read_conversation(value: Any, where: str) -> Debate:
    """One item. Raises: ConfigError: not such an item, or one without a reply."""
    item = expect(value, dict, where)
    chat = [
        _message(entry, f"{where}, message {number}")
        for number, entry in enumerate(needed(item, "conversations", list, where), 1)
    ]
    turns = turns_of(chat)
    if not turns:
        raise ConfigError(f"{where}: holds no reply (from: gpt)")
    question = next((message.text for message in chat if message.role == "user"), "")
    task = Task(
        id=stable_id("llava", plain(item.get("id")), question),
        question=question,
        dataset="llava",
        answer_format="text",
    )
    draft = Draft("conversation", task, {"generator": ("assistant",)})
    last: str | None = None
    for number, (prompt, text) in enumerate(turns):
        answer = parse_answer(text, "bracket" if text.rstrip().endswith("]") else "text")
        saw: list[tuple[str | None, EdgeKind]] = [(last, "memory")]
        place = (0, "answer", str(number))
        last = draft.say(place, "generator", "assistant", text, prompt=prompt, saw=saw, answer=answer)
    final = draft.debate.utterances[-1].answer
    votes = int(final.parsed)
    debate = draft.close(final, "rounds", "given", support=votes, votes=votes)
    return keep_rest(debate, "llava", item, _bare(debate, task.id, chat_of(debate, debate.turns())))


def _message(entry: Any, where: str) -> Message:
    row = expect(entry, dict, where)
    speaker, value = needed(row, "from", str, where), needed(row, "value", str, where)
    if speaker not in _FROM:
        raise ConfigError(f"{where}: from {speaker[:40]!r} must be one of {', '.join(_FROM)}")
    return _FROM[speaker](value)


def conversations(debate: Debate) -> Iterator[dict[str, Any]]:
    """A debate's conversations: what was made of it to train on, where that was its aim, else each debater's chat.

    A debate with a condenser leaves its chain, a rewritten item the pairs that were kept of it; either may leave none.

    Raises: GraphError: no debater replied.
    """
    for name, chat in _chats(debate).items():
        yield with_rest(debate, "llava", _bare(debate, name, chat))


def _chats(debate: Debate) -> dict[str, Chat]:
    """Chats by the id of their item."""
    task_id = debate.task.id
    if debate.verdict is not None and "kept" in debate.verdict.details:
        pairs = pair_chats(debate)
        return {task_id: pairs[0]} if len(pairs) == 1 else {f"{task_id}-{n}": chat for n, chat in enumerate(pairs)}
    if chain := chain_chat(debate):
        return {task_id: chain}
    if debate.cast.get(CONDENSER):
        return {}
    if debate.protocol == "conversation":
        return {task_id: chat_of(debate, debate.turns())}
    if places := seats(debate):
        return {f"{task_id}-{seat}": chat_of(debate, nodes) for seat, nodes in places.items()}
    raise inexpressible(debate, "conversations", "no debater replied")


def _bare(debate: Debate, name: str, chat: Chat) -> dict[str, Any]:
    rows = [{"from": _TO[message.role], "value": text_of(message)} for message in chat]
    images = [image_name(image) for image in debate.task.images]
    shown: dict[str, Any] = {"image": images[0] if len(images) == 1 else images} if images else {}
    return {"id": name, **shown, "conversations": rows}


def write_llava(debates: Iterable[Debate]) -> Iterator[str]:
    """The file, piece by piece. Raises: GraphError: see ``conversations``."""
    return json_list(item for debate in debates for item in conversations(debate))


# Mixtures


def mixture(value: Any, where: str) -> list[tuple[str, str]]:
    """(path, sampling strategy) of each file that a mixture names, brace lists spelled out.

    Raises: ConfigError: not a mixture, or a strategy that does not exist.
    """
    found = []
    for number, entry in enumerate(needed(expect(value, dict, where), "datasets", list, where), 1):
        place = f"{where}, datasets {number}"
        row = expect(entry, dict, place)
        path, strategy = needed(row, "json_path", str, place), row.get("sampling_strategy", "all")
        if not isinstance(strategy, str) or not (strategy == "all" or _STRATEGY.fullmatch(strategy)):
            raise ConfigError(
                f"{place}: sampling_strategy={str(strategy)[:40]!r} must be all, first:N, end:N or random:N, where N "
                "may be a percentage"
            )
        found += [(one, strategy) for one in expand_braces(path, place)]
    return found


def expand_braces(path: str, where: str) -> list[str]:
    """``/data/{a,b}.json`` -> both. Raises: ConfigError: more than ``MAX_FILES``."""
    found = [path]
    while any(_BRACES.search(one) for one in found):
        found = [
            f"{one[: match.start()]}{choice.strip()}{one[match.end() :]}" if match else one
            for one in found
            for match in [_BRACES.search(one)]
            for choice in (match[1].split(",") if match else [""])
        ]
        if len(found) > MAX_FILES:
            raise ConfigError(f"{where}: {path[:80]!r} stands for more than {MAX_FILES} files")
    return found


def sample(items: Sequence[_T], strategy: str, seed: int) -> list[_T]:
    """What a strategy takes of a file, in the file's order; a percentage is rounded up, as LLaVA's code does.

    Args:
        strategy: ``all``, ``first:N``, ``end:N`` or ``random:N``; checked by ``mixture``.
        seed: of ``random`` alone.
    """
    match = _STRATEGY.fullmatch(strategy)
    if match is None:
        return list(items)
    number = -(-int(match[2]) * len(items) // 100) if match[3] else int(match[2])
    number = min(number, len(items))
    if match[1] == "first":
        return list(items[:number])
    if match[1] == "end":
        return list(items[len(items) - number :])
    from random import Random

    drawn = Random(derive_seed(seed, "mixture")).sample(range(len(items)), number)
    return [items[index] for index in sorted(drawn)]


def read_mixture_file(parsed: Any, where: str) -> list[Mapping[str, Any]]:
    """The items of one file of a mixture. Raises: ConfigError: not a list of objects."""
    items = expect(parsed, list, where)
    return [expect(item, dict, f"{where}, item {number}") for number, item in enumerate(items, 1)]
