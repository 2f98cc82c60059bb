"""The debate files of Society of Minds and MAFT: one JSON object, problem text -> [contexts, solution].

Sources: Du et al. 2023, arXiv:2305.14325; Subramaniam et al. 2025 (MAFT), arXiv:2501.05707; the layout is that of both
groups' released code, the biographies' (person -> contexts) included.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from protocols.answer import boxed, parse_answer
from protocols.errors import ConfigError
from protocols.formats.chats import Said, chain_of, folded, read_chat, seats, turns_of
from protocols.formats.common import Draft, expect, inexpressible, keep_rest, parse_json, with_rest
from protocols.graph import Debate, EdgeKind
from protocols.message import Message
from protocols.task import Task, stable_id
from protocols.vote import majority_vote

_COPY = re.compile(r"\n\[copy [0-9]{1,9}\]\Z")  # the file is keyed by text: what tells a question asked twice apart
_MAX_PLAIN_GOLD = 64  # characters; a longer solution without a box is no answer


def read_maft(source: str | Mapping[str, Any], where: str) -> list[Debate]:
    """The debates of a file, one a problem, in its order.

    Who saw whom is read from the prompts: a reply of the round before that stands in one was seen. A prompt with none
    of them was made from a summary that the file does not hold; every other's reply then leads to it as ``summary``.
    The verdict is the vote over the last replies, ties to the greatest string, as in MAFT's code.

    Raises: ConfigError: not such a file.
    """
    rows = expect(parse_json(source, where) if isinstance(source, str) else source, dict, where)
    found = []
    for number, (key, value) in enumerate(rows.items(), 1):
        place = f"{where}, problem {number}"
        question = _COPY.sub("", key)
        question = question if question in rows else key
        found.append(_debate(question, _entry(value, place), place))
    return found


def _entry(value: Any, where: str) -> dict[str, Any]:
    items = expect(value, list, where)
    if len(items) == 2 and not isinstance(items[1], list):
        return {"contexts": items[0], "solution": items[1]}
    return {"contexts": items}


def _debate(question: str, entry: Mapping[str, Any], where: str) -> Debate:
    contexts = expect(entry["contexts"], list, f"{where}, contexts")
    chats = [turns_of(read_chat(chat, f"{where}, agent {n}")) for n, chat in enumerate(contexts)]
    if not any(chats):
        raise ConfigError(f"{where}: holds no reply of any agent")
    gold = _gold(entry.get("solution"))
    task = Task(
        id=stable_id("maft", question),
        question=question,
        gold=(gold,) if gold else (),
        dataset="maft",
        answer_format="math",
    )
    agents = tuple(f"agent-{n}" for n in range(len(chats)))
    draft = Draft("society", task, {"generator": agents})
    ids: list[dict[int, str]] = []
    for number in range(max(map(len, chats))):
        ids.append({})
        for seat, chat in enumerate(chats):
            if number < len(chat):
                prompt, text = chat[number]
                ids[number][seat] = draft.say(
                    (number, "answer", str(seat)),
                    "critic" if number else "generator",
                    agents[seat],
                    text,
                    prompt=prompt,
                    saw=_saw(chats, ids, number, seat),
                    answer=parse_answer(text, "math"),
                )
    lasts = [parse_answer(chat[-1][1], "math") for chat in chats if chat]
    vote = majority_vote(lasts, tie_break="lexicographic", seed=0)
    debate = draft.close(vote.answer, "rounds", "majority_vote", support=vote.support, votes=vote.votes, tie=vote.tie)
    return keep_rest(debate, "maft", entry, _bare(debate))


def _saw(
    chats: list[list[Said]], ids: list[dict[int, str]], number: int, seat: int
) -> list[tuple[str | None, EdgeKind]]:
    if not number:
        return []
    own: list[tuple[str | None, EdgeKind]] = [(ids[number - 1].get(seat), "memory")]
    before = {other: node for other, node in ids[number - 1].items() if other != seat}
    prompt = "\n".join(message.text for message in chats[seat][number][0])
    shown = [node for other, node in before.items() if (said := chats[other][number - 1][1]) and said in prompt]
    if shown:
        return [*own, *((node, "saw") for node in shown)]
    return [*own, *((node, "summary") for node in before.values())]


def _gold(solution: Any) -> str | None:
    """What the solution's last box holds, or what follows "####"; a short text is an answer itself."""
    if not isinstance(solution, str):
        return None
    if (box := boxed(solution)) is not None:
        return box
    last = solution.rpartition("####")[2].strip()
    return last if 0 < len(last) <= _MAX_PLAIN_GOLD and "\n" not in last else None


def maft_entry(debate: Debate) -> list[Any]:
    """What stands beside the problem. Raises: GraphError: not a debate of agents who all answer, round by round."""
    entry = with_rest(debate, "maft", _bare(debate))
    return [entry["contexts"], entry["solution"]] if "solution" in entry else list(entry["contexts"])


def _bare(debate: Debate) -> dict[str, Any]:
    """Contexts and solution as the graph alone gives them."""
    places = seats(debate)
    for seat, nodes in places.items():
        if [node.round for node in nodes] != list(range(len(nodes))):
            raise inexpressible(debate, "MAFT's contexts", f"place {seat!r} does not answer once in every round")
    if not places:
        raise inexpressible(debate, "MAFT's contexts", "no agent answered")
    contexts = []
    for nodes in places.values():
        rows: list[dict[str, str]] = []
        for node in chain_of(debate, nodes):
            rows += ([_one(node.prompt)] if node.prompt else []) + [{"role": "assistant", "content": node.reply.text}]
        contexts.append(rows)
    gold = debate.task.gold
    return {"contexts": contexts, "solution": f"\\boxed{{{gold[0]}}}" if gold else ""}


def _one(prompt: tuple[Message, ...]) -> dict[str, str]:
    """A prompt as the one user message that these files have, since their readers count messages."""
    return {"role": "user", "content": folded(prompt)}


def write_maft(debates: Iterable[Debate]) -> Iterator[str]:
    """The file, piece by piece; a question that was there already gets a mark, as its key must be its own.

    Raises: GraphError: see ``maft_entry``.
    """
    opening, keys, asked = "{\n", set[str](), dict[str, int]()
    for debate in debates:
        question = key = debate.task.question
        while key in keys:
            asked[question] = asked.get(question, 1) + 1
            key = f"{question}\n[copy {asked[question]}]"
        keys.add(key)
        yield f"{opening}{json.dumps(key, ensure_ascii=False)}: {json.dumps(maft_entry(debate), ensure_ascii=False)}"
        opening = ",\n"
    yield "\n}\n" if opening != "{\n" else "{}\n"
