"""MAD's logs: one JSON object a debate, in the published schema or in the one that the released code writes.

Source: Liang et al. 2023 (MAD), arXiv:2305.19118; field names as in the authors' released code and logs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from protocols.answer import Answer, as_number, parse_answer, same
from protocols.errors import ConfigError
from protocols.formats.chats import Said, chain_of, chat_of, read_chat, rows_of, seats, turns_of
from protocols.formats.common import Draft, expect, inexpressible, keep_rest, needed, parse_json, plain, with_rest
from protocols.graph import Debate, EdgeKind, Utterance
from protocols.machine import Cast
from protocols.mad_replies import read_stated, read_verdict
from protocols.structured import verdict_reader
from protocols.task import Task, stable_id

AFFIRMATIVE, NEGATIVE, MODERATOR, JUDGE, BASE = "affirmative", "negative", "moderator", "judge", "base"
PLAYERS = {
    "Affirmative side": AFFIRMATIVE,
    "Negative side": NEGATIVE,
    "Moderator": MODERATOR,
    "Judge": JUDGE,
    "Baseline": BASE,
}
"""A player's name in the file -> role."""
_NAMES = {role: name for name, role in PLAYERS.items()}


class _Schema(msgspec.Struct, frozen=True):
    """What the same things are called."""

    name: str
    question: str
    gold: str
    base: str
    final: str
    reason: str
    side: str = "Supported Side"
    success: str = "success"


_PUBLISHED = _Schema(
    "published", "source", "correct reference", "base translation", "debate translation", "reason", side="", success=""
)
_TRANSLATION = _Schema("translation", "source", "reference", "base_translation", "debate_translation", "Reason")
_QUESTION = _Schema("question", "debate_topic", "reference", "base_answer", "debate_answer", "Reason")
_PUBLISHED_VERDICT = verdict_reader(
    "Correct Translation",
    side_keys=("Supported Side",),
    reason_keys=("Reason",),
    preference_keys=("Whether there is a preference",),
)
_LANGUAGES = {"src_lng": "source_language", "tgt_lng": "target_language"}  # in the file -> in a task's details
_SCHEMAS = {schema.name: schema for schema in (_PUBLISHED, _TRANSLATION, _QUESTION)}


def read_mad(source: str | Mapping[str, Any], where: str) -> list[Debate]:
    """The one debate of a log.

    Rounds count from 0; where the affirmative side spoke once more than the negative, its first reply is the base
    answer. What a debater's turn answers is read only where it says so in so many words.

    Raises: ConfigError: not such a log.
    """
    row = expect(parse_json(source, where) if isinstance(source, str) else source, dict, where)
    schema = _schema_of(row)
    question = needed(row, schema.question, str, where)
    said: dict[str, list[Said]] = {}
    for name, chat in needed(row, "players", dict, where).items():
        if name not in PLAYERS:
            raise ConfigError(f"{where}: player {name[:40]!r} is not one of MAD's: {', '.join(PLAYERS)}")
        said[PLAYERS[name]] = turns_of(read_chat(chat, f"{where}, {name!r}"))
    if not said.get(AFFIRMATIVE):
        raise ConfigError(f"{where}: holds no reply of the affirmative side")
    gold = row.get(schema.gold)
    counted = schema is _QUESTION and isinstance(gold, str) and as_number(gold) is not None
    task = Task(
        id=stable_id("mad", question),
        question=question,
        gold=(gold,) if isinstance(gold, str) and gold else (),
        dataset="mad",
        answer_format="number" if counted else "text",
        details={"mad.schema": schema.name} | _languages(row),
    )
    debate = _closed(_spoken(row, task, said), row, schema, judged=bool(said.get(JUDGE)))
    return [keep_rest(debate, "mad", row, _bare(debate))]


def _languages(row: Mapping[str, Any]) -> dict[str, str]:
    return {name: row[key] for key, name in _LANGUAGES.items() if isinstance(row.get(key), str)}


def _schema_of(row: Mapping[str, Any]) -> _Schema:
    if _PUBLISHED.base in row or _PUBLISHED.final in row or _PUBLISHED.gold in row:
        return _PUBLISHED
    return _TRANSLATION if _TRANSLATION.question in row else _QUESTION


def _spoken(row: Mapping[str, Any], task: Task, said: Mapping[str, list[Said]]) -> Draft:
    """The nodes in the order they were spoken, and who saw whom: each side the other's last, the moderator both."""
    own_base = BASE not in said and len(said[AFFIRMATIVE]) > max(1, len(said.get(NEGATIVE, ())))
    cast: Cast = {role: (name,) for role, name in _NAMES.items() if role in said}
    if own_base:
        cast[BASE] = (_NAMES[AFFIRMATIVE],)
    draft = Draft("mad", task, cast, model=plain(row.get("model_name")))
    last: dict[str, str] = {}  # agent -> its latest node, which its chat goes on from

    def speak(
        role: str,
        place: tuple[int, str, str],
        turn: Said,
        seen: Iterable[str | None] = (),
    ) -> str:
        agent, (prompt, text) = cast[role][0], turn
        saw: list[tuple[str | None, EdgeKind]] = [(last.get(agent), "memory"), *((node, "saw") for node in seen)]
        if role in (MODERATOR, JUDGE):
            last[agent] = draft.say(place, role, agent, text, prompt=prompt, saw=saw, ruling=_ruling(text, task))
        else:
            answer = _stated(text, task, role)
            last[agent] = draft.say(place, role, agent, text, prompt=prompt, saw=saw, answer=answer)
        return last[agent]

    sides = {role: list(said.get(role, ())) for role in (AFFIRMATIVE, NEGATIVE, MODERATOR)}
    bases = [sides[AFFIRMATIVE].pop(0)] if own_base else said.get(BASE, [])
    base = None
    for number, turn in enumerate(bases):
        base = speak(BASE, (0, "base", str(number)), turn)
    openings: list[str | None] = []
    latest: dict[str, str | None] = {AFFIRMATIVE: None, NEGATIVE: None if own_base else base}
    for number in range(max(map(len, sides.values()))):
        for role, other in ((AFFIRMATIVE, NEGATIVE), (NEGATIVE, AFFIRMATIVE)):
            if number < len(sides[role]):
                seen = [latest[other]]
                latest[role] = speak(role, (number, "argue", role), sides[role][number], seen)
                openings += [latest[role]] if not number else []
        if number < len(sides[MODERATOR]):
            speak(MODERATOR, (number, "moderate", MODERATOR), sides[MODERATOR][number], latest.values())
    final = max(0, max(map(len, sides.values())) - 1)
    for number, turn in enumerate(said.get(JUDGE, ())):
        speak(JUDGE, (final, "judge", str(number)), turn, [] if number else openings)
    return draft


def _stated(text: str, task: Task, role: str) -> Answer:
    """What a debater's turn answers: a number where the task's answer is one, else what it says so in so many words."""
    if task.answer_format == "number":
        return parse_answer(text, "number")
    return Answer(text.strip(), "given") if role == BASE else read_stated(text)


def _ruling(text: str, task: Task) -> Answer:
    """What a moderator or a judge decided."""
    read = read_verdict(text, task)
    return read if read.how else _PUBLISHED_VERDICT(text)


def _closed(draft: Draft, row: Mapping[str, Any], schema: _Schema, *, judged: bool) -> Debate:
    final = row.get(schema.final)
    answer = Answer(final, "given") if isinstance(final, str) and final else Answer()
    last = [nodes[-1].answer for nodes in seats(draft.debate).values() if nodes[-1].role != BASE]
    fields = {"reason": row.get(schema.reason), "side": row.get(schema.side)}
    details = {key: value for key, value in fields.items() if isinstance(value, str) and value}
    aggregator = JUDGE if judged else MODERATOR
    return draft.close(
        answer,
        "rounds" if judged or not answer.parsed else "verdict",
        aggregator,
        support=sum(same(said, answer) for said in last),
        votes=sum(said.parsed for said in last),
        details=details,
    )


def mad_log(debate: Debate) -> dict[str, Any]:
    """One debate as a log. Raises: GraphError: it is none of two sides before a moderator."""
    return with_rest(debate, "mad", _bare(debate))


def _bare(debate: Debate) -> dict[str, Any]:
    """The log as the graph alone gives it."""
    schema = _schema_for(debate)
    verdict = debate.verdict
    spoken = _by_role(debate)
    base = spoken.get(BASE) or spoken[AFFIRMATIVE]
    details = verdict.details if verdict else {}
    row: dict[str, Any] = {"model_name": debate.utterances[0].reply.model, "num_players": 3}
    if schema.success:
        row[schema.success] = verdict is not None and verdict.answer is not None
    row |= {key: debate.task.details[name] for key, name in _LANGUAGES.items() if name in debate.task.details}
    row[schema.question] = debate.task.question
    row[schema.gold] = debate.task.gold[0] if debate.task.gold else ""
    row[schema.base] = base[0].answer.value or base[0].reply.text
    row[schema.final] = (verdict.answer if verdict else None) or ""
    row[schema.reason] = details.get("reason", "")
    if schema.side:
        row[schema.side] = details.get("side", "").capitalize()
    row["players"] = _players(debate, spoken)
    return row


def _schema_for(debate: Debate) -> _Schema:
    known = debate.task.details.get("mad.schema", "")
    return _SCHEMAS.get(known) or (_TRANSLATION if "target_language" in debate.task.details else _QUESTION)


def _by_role(debate: Debate) -> dict[str, list[Utterance]]:
    found: dict[str, list[Utterance]] = {}
    for node in debate.utterances:
        if node.role not in _NAMES:
            raise inexpressible(debate, "a MAD log", f"it has the role {node.role!r}; MAD's are {', '.join(_NAMES)}")
        if any(other.agent != node.agent for other in found.get(node.role, ())):
            raise inexpressible(debate, "a MAD log", f"several agents play {node.role}")
        found.setdefault(node.role, []).append(node)
    if AFFIRMATIVE not in found:
        raise inexpressible(debate, "a MAD log", "its affirmative side never spoke")
    return found


def _players(debate: Debate, spoken: Mapping[str, list[Utterance]]) -> dict[str, list[dict[str, str]]]:
    """Each player's chat; a base answer that the affirmative side's chat begins with is no player of its own."""
    within = {node.id for node in chain_of(debate, spoken[AFFIRMATIVE])}
    players = {}
    for name, role in PLAYERS.items():
        nodes = spoken.get(role, [])
        if nodes and not (role == BASE and nodes[-1].id in within):
            players[name] = rows_of(chat_of(debate, nodes))
    return players


def write_mad(debates: Iterable[Debate]) -> Iterator[tuple[str, str]]:
    """(name that a file may have, its text) of each debate. Raises: GraphError: see ``mad_log``."""
    for debate in debates:
        yield debate.task.id, json.dumps(mad_log(debate), ensure_ascii=False, indent=4) + "\n"
