"""M2D's debate files: {args, debate_process: [...]}, and the list of the same items with a chain of debate each.

Source: the released code of M2D-DKTL (multimodal multi-agent debate, dialectical knowledge transfer); field names as
there. The training file made from the chains is one of LLaVA's: see ``protocols.formats.llava``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from protocols.answer import Answer, parse_answer, read_gold, same
from protocols.errors import ConfigError
from protocols.formats.chats import folded, image_name, seat_of
from protocols.formats.common import Draft, expect, inexpressible, keep_rest, needed, parse_json, plain, with_rest
from protocols.graph import Debate, EdgeKind, Utterance
from protocols.message import user
from protocols.structured import read_judge
from protocols.task import Task, render_question, stable_id

FORM = "M2D's debate file"
DEBATER, JUDGE, SUMMARISER, CONDENSER = "debater", "judge", "summariser", "condenser"
NO_ANSWER = "None"  # how the file says that there is none
MAX_CHOICES = 26
_SECRET = re.compile(r"key|secret|token|password|credential", re.IGNORECASE)
_AGENT = re.compile(r"Agent_([0-9]{1,3})")
_Sources = list[tuple[str | None, EdgeKind]]


def read_m2d(source: str | list[Any] | Mapping[str, Any], where: str) -> list[Debate]:
    """The debates of a file.

    After round 0 the debaters spoke one after another: each saw the others' latest reply and its own. The judge saw the
    answers of its round, the summariser the replies of the last, the condenser all of them. Options whose name speaks
    of a key, a secret or a token are dropped, numbers such as a token limit excepted. Images are named, not read.

    Raises: ConfigError: not such a file.
    """
    parsed = parse_json(source, where) if isinstance(source, str) else source
    args: Mapping[str, Any] = {}
    if isinstance(parsed, dict):
        args = without_secrets(expect(parsed.get("args", {}), dict, f"{where}, 'args'"))
        parsed = needed(parsed, "debate_process", list, where)
    kept = json.dumps(args, ensure_ascii=False) if args else ""
    items = expect(parsed, list, where)
    return [_debate(item, kept, f"{where}, item {number}") for number, item in enumerate(items, 1)]


def without_secrets(value: Any) -> Any:
    """Options without those that may be a secret, at any depth; a number or a switch is none."""
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: without_secrets(item)
        for name, item in value.items()
        if not _SECRET.search(name) or item is None or isinstance(item, bool | int | float)
    }


def _debate(value: Any, args: str, where: str) -> Debate:
    item = expect(value, dict, where)
    if "conversations" in item:
        raise ConfigError(f"{where}: is a LLaVA conversation; import it as llava")
    rounds: list[dict[str, Any]] = []
    while f"Round_{len(rounds)}" in item:
        rounds.append(needed(item, f"Round_{len(rounds)}", dict, where))
    seats = [match[1] for key in (rounds[0] if rounds else ()) if (match := _AGENT.fullmatch(key))]
    if not seats:
        raise ConfigError(f"{where}: holds no reply (Round_0 with Agent_0), so it is a task and not a debate")
    draft = Draft("dialectic", _task(item, args, where), _cast(item, seats))
    spoken = _rounds(draft, rounds, seats, where)
    last = [node for node in draft.debate.turns() if node.round == len(rounds) - 1]
    _say_optional(draft, item.get("Summary"), len(rounds) - 1, [node.id for node in last], where)
    details: dict[str, str] = {}
    if isinstance(chain := item.get("Chain_of_Debate"), str):
        place = (len(rounds) - 1, "condense", "0")
        asked = [user(render_question(draft.debate.task))]
        details["chain"] = draft.say(
            place, CONDENSER, CONDENSER, chain, prompt=asked, saw=[(node, "saw") for node in spoken]
        )
    given = item.get("llm_answer")
    answer = Answer()
    if isinstance(given, str) and given != NO_ANSWER:
        answer = msgspec.structs.replace(read_gold(given, draft.debate.task), how="given")
    judged = [node.answer.value for node in draft.debate.utterances if node.role == JUDGE]
    agreed = bool(judged) and judged[-1] == "yes"
    debate = draft.close(
        answer,
        "consistency" if agreed else "rounds",
        SUMMARISER,
        support=sum(same(node.answer, answer) for node in last),
        votes=sum(node.answer.parsed for node in last),
        details=details,
    )
    return keep_rest(debate, "m2d", item, _bare(debate))


def _cast(item: Mapping[str, Any], seats: list[str]) -> dict[str, tuple[str, ...]]:
    cast = {DEBATER: tuple(f"Agent_{seat}" for seat in seats), JUDGE: (JUDGE,), SUMMARISER: (SUMMARISER,)}
    return cast | ({CONDENSER: (CONDENSER,)} if "Chain_of_Debate" in item else {})


def _task(item: Mapping[str, Any], args: str, where: str) -> Task:
    question, listed = needed(item, "question", str, where), item.get("choices")
    choices = [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
    if choices != listed or len(choices) > MAX_CHOICES:
        choices = []
    domain, answer = item.get("data_domain"), item.get("answer")
    details = {"domain": domain} if isinstance(domain, str) else {}
    if source_id := plain(item.get("question_id")):
        details["source_id"] = source_id
    return Task(
        id=stable_id("m2d", plain(item.get("question_id")), question),
        question=question[: question.rfind("\nChoices")] if choices and "\nChoices" in question else question,
        gold=(plain(answer),) if plain(answer) else (),
        choices=tuple(choices),
        dataset="m2d",
        answer_format="bracket",
        details=details | ({"m2d.args": args} if args else {}),
    )


def _rounds(draft: Draft, rounds: list[dict[str, Any]], seats: list[str], where: str) -> list[str]:
    """The debaters' and judge's nodes. Returns: the debaters', in order."""
    latest: dict[str, str] = {}
    spoken: list[str] = []
    for number, held in enumerate(rounds):
        place = f"{where}, 'Round_{number}'"
        for seat in seats:
            if f"Agent_{seat}" not in held:
                continue
            saw: _Sources = [(node, "saw") for node in latest.values()] if number else []
            text = needed(held, f"Agent_{seat}", str, place)
            asked = [user(expect(held.get(f"User_{seat}", ""), str, place))]
            spot = (number, "answer", seat)
            latest[seat] = draft.say(
                spot,
                DEBATER,
                f"Agent_{seat}",
                text,
                prompt=asked,
                saw=saw,
                answer=parse_answer(text, "bracket", draft.debate.task.choices),
            )
            spoken.append(latest[seat])
        if isinstance(ruling := held.get("Judge_Response"), str):
            told = [user(expect(held.get("Judge_Instruction", ""), str, place))]
            now: _Sources = [(node, "saw") for node in latest.values()]
            read = read_judge(ruling)
            draft.say((number, "judge", "0"), JUDGE, JUDGE, ruling, prompt=told, saw=now, ruling=read)
    return spoken


def _say_optional(draft: Draft, summary: Any, number: int, saw: list[str], where: str) -> None:
    if summary is None:
        return
    held = expect(summary, dict, f"{where}, 'Summary'")
    text, asked = needed(held, "Assistant", str, where), expect(held.get("User", ""), str, where)
    sources: _Sources = [(node, "saw") for node in saw]
    draft.say((number, "summarise", "0"), SUMMARISER, SUMMARISER, text, prompt=[user(asked)], saw=sources)


def m2d_item(debate: Debate) -> dict[str, Any]:
    """One debate as an item. Raises: GraphError: it has other roles, or no debater replied in round 0."""
    return with_rest(debate, "m2d", _bare(debate))


def _bare(debate: Debate) -> dict[str, Any]:
    """The item as the graph alone gives it."""
    task, verdict = debate.task, debate.verdict
    turns = list(debate.turns())
    if not any(node.round == 0 for node in turns):
        raise inexpressible(debate, FORM, "no debater replied in round 0")
    for node in debate.utterances:
        if node.role not in (DEBATER, JUDGE, SUMMARISER, CONDENSER):
            raise inexpressible(debate, FORM, f"it has the role {node.role!r}")
    last = max(node.round for node in turns)
    item: dict[str, Any] = {
        "data_domain": task.details.get("domain", task.dataset),
        "question_id": task.details.get("source_id", task.id),
        "question_type": "multi_choice" if task.choices else "open",
        "question": render_question(task),
        "choices": list(task.choices),
        "answer": task.gold[0] if task.gold else "",
        "image_path": [image_name(image) for image in task.images],
        "stop_round": last,
    }
    order = list(dict.fromkeys(seat_of(node) for node in turns))
    for number in range(last + 1):
        item[f"Round_{number}"] = _round(debate, order, number)
    for node in _of(debate, SUMMARISER):
        item["Summary"] = {"User": folded(node.prompt), "Assistant": node.reply.text}
    item["llm_answer"] = NO_ANSWER if verdict is None or verdict.answer is None else verdict.answer
    for node in _of(debate, CONDENSER):
        item["Chain_of_Debate"] = node.reply.text
    return item


def _round(debate: Debate, order: list[str], number: int) -> dict[str, str]:
    row: dict[str, str] = {}
    for node in debate.turns(round=number):
        index = order.index(seat_of(node))
        row |= {f"User_{index}": folded(node.prompt), f"Agent_{index}": node.reply.text}
    for node in _of(debate, JUDGE):
        if node.round == number:
            row |= {"Judge_Instruction": folded(node.prompt), "Judge_Response": node.reply.text}
    return row


def _of(debate: Debate, role: str) -> list[Utterance]:
    return [node for node in debate.utterances if node.role == role]


def write_m2d(debates: Iterable[Debate]) -> Iterator[str]:
    """The file, piece by piece. ``args`` are the options that all of its debates were held with, never a secret.

    Raises: GraphError: see ``m2d_item``.
    """
    args: dict[str, Any] | None = None
    opening = '{\n"debate_process": [\n'
    for debate in debates:
        own = without_secrets(json.loads(debate.task.details.get("m2d.args", "{}")))
        common = own if args is None else args
        args = {name: value for name, value in common.items() if name in own and own[name] == value}
        yield opening + json.dumps(m2d_item(debate), ensure_ascii=False, indent=2)
        opening = ",\n"
    head = "" if opening == ",\n" else opening
    yield f'{head}\n],\n"args": {json.dumps(args or {}, ensure_ascii=False, indent=2)}\n}}\n'
