"""D&R's multi-agent interaction graphs: JSON lines, one debate a line, with critiques and reflections.

Source: Zhou et al. 2025 (Debate, Reflect and Distill), arXiv:2506.03541; field names as in the authors' released code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from protocols.errors import ConfigError
from protocols.formats.chats import seat_of, text_of
from protocols.formats.common import Draft, expect, inexpressible, json_lines, keep_rest, parse_lines, with_rest
from protocols.formats.outputs import (
    agents_in,
    answers_by_round,
    close_by_vote,
    output_of,
    say_answer,
    task_of,
)
from protocols.graph import Debate, EdgeKind, Utterance

FORM = "D&R's MAG"
TEACHER = "teacher"  # the file does not say which of the agents is the student
_FEEDBACK = re.compile(r"\A\s*#{1,6} ?Feedback[^\n]*\n")
_Sources = list[tuple[str | None, EdgeKind]]


def read_mag(source: str | Iterable[str], where: str) -> Iterator[Debate]:
    """The debates of JSON lines, one by one.

    A right agent's critique of a wrong one and a wrong one's reflection are nodes of their own; all of them, and all
    answers, were shown to everybody in the next round. Gold decided who was right, so every verdict says ``oracle``;
    its answer, the vote of the last round, is ours, for the file has none. Of a prompt the file holds the question and
    the shared context alone: that is what the nodes hold.

    Raises: ConfigError: not such a file.
    """
    lines = source.split("\n") if isinstance(source, str) else source
    for place, row in parse_lines(lines, where):
        yield read_mag_row(row, place)


def read_mag_row(value: Any, where: str) -> Debate:
    """Raises: ConfigError: not such a row."""
    row = expect(value, dict, where)
    agents, rounds = agents_in(row, where)
    draft = Draft("reflect", task_of(row, "mag", where), {TEACHER: tuple(agents)})
    shown: _Sources = []
    for number in range(rounds):
        right = expect(row.get(f"right_{number}") or {}, dict, f"{where}, 'right_{number}'")
        context = row.get(f"debate_last_round_{number}")
        said: dict[str, str] = {}
        for seat in enumerate(agents):
            mark = right.get(seat[1])
            node = say_answer(
                draft,
                row,
                seat,
                number,
                shown,
                where,
                role=TEACHER,
                context=context if isinstance(context, str) else "",
                right=mark if isinstance(mark, bool) else None,
            )
            if node is not None:
                said[seat[1]] = node
        if not said:
            raise ConfigError(f"{where}: no agent answered in round {number}")
        shown = [(node, "saw") for node in said.values()]
        shown += _criticise(draft, row, agents, number, said, where)
    debate = close_by_vote(draft, "oracle" if row.get("stop") is True else "rounds", oracle=True)
    return keep_rest(debate, "mag", row, _bare(debate))


def _criticise(
    draft: Draft, row: Mapping[str, Any], agents: list[str], number: int, said: Mapping[str, str], where: str
) -> _Sources:
    """The nodes of a round's critique pool. Returns: those that could be read, as the next round saw them."""
    key = f"critique_pool_{number}"
    shown: _Sources = []
    for count, entry in enumerate(expect(row.get(key) or [], list, f"{where}, {key!r}"), 1):
        place = f"{where}, {key!r}, entry {count}"
        items = expect(entry, list, place)
        if len(items) != 4 or items[0] not in agents or items[1] not in agents:
            raise ConfigError(f"{place}: must be [from, to, text, raw] between agents of this debate")
        critic, wrong, text, raw = items
        full = raw if isinstance(raw, str) and raw not in ("", "None") else text
        if not isinstance(full, str):
            continue
        itself = critic == wrong
        index = agents.index(critic)
        spot = (number, "reflect", str(index)) if itself else (number, "critique", f"{index}-{agents.index(wrong)}")
        if any(node.id == ".".join(map(str, spot)) for node in draft.debate.utterances):
            raise ConfigError(f"{place}: stands there twice; an agent criticises another once a round")
        saw: _Sources = [(said.get(agent), "saw") for agent in dict.fromkeys((critic, wrong))]
        node = draft.say(spot, TEACHER, critic, full, saw=saw)
        if isinstance(text, str):
            shown.append((node, "reflection" if itself else "critique"))
    return shown


def mag_row(debate: Debate) -> dict[str, Any]:
    """One debate as a row. Raises: GraphError: not a debate of agents who each answer at most once a round."""
    return with_rest(debate, "mag", _bare(debate))


def _bare(debate: Debate) -> dict[str, Any]:
    """The row as the graph alone gives it."""
    agents, rounds = answers_by_round(debate, FORM)
    stopped = debate.verdict is not None and debate.verdict.stop_reason == "oracle"
    gold = debate.task.gold
    row: dict[str, Any] = {"id": debate.task.id, "question": debate.task.question}
    row["gold_answer"] = gold[0] if gold else ""
    for number, answers in enumerate(rounds):
        for agent in agents:
            node = answers.get(agent)
            row[f"{agent}_output_{number}"] = output_of(node)
            row[f"{agent}_raw_{number}"] = node.reply.text if node else "None"
        row[f"right_{number}"] = {agent: bool((node := answers.get(agent)) and node.correct) for agent in agents}
        if number:
            row[f"debate_last_round_{number}"] = _context(debate, next(iter(answers.values())))
        if not (stopped and number == len(rounds) - 1):
            row[f"critique_pool_{number}"] = _pool(debate, agents, number)
    return row | {"stop": stopped}


def _context(debate: Debate, node: Utterance) -> str:
    """What the round was shown beside the question, where that stands first; else all that it was told."""
    told = text_of(node.prompt[-1]) if node.prompt else ""
    return told.removeprefix(debate.task.question).removeprefix("\n\n")


def _pool(debate: Debate, agents: list[str], number: int) -> list[list[str | None]]:
    """A round's critiques, [from, to, text, raw]."""
    pool: list[list[str | None]] = []
    for node in debate.utterances:
        if node.round == number and not node.answers and node.phase.startswith(("critique", "reflect")):
            text = _FEEDBACK.sub("", node.reply.text).strip()
            about = about_whom(debate, node)
            if node.agent not in agents or about not in agents:
                raise inexpressible(debate, FORM, f"in {node.id!r} one of {node.agent!r} and {about!r} never answers")
            pool.append([node.agent, about, text, node.reply.text])
    return pool


def about_whom(debate: Debate, node: Utterance) -> str:
    """Whom a critique or a reflection is of: its place ends with theirs. Raises: GraphError: nobody sits there."""
    if node.phase.startswith("reflect"):
        return node.agent
    place = seat_of(node).rpartition("-")[2]
    sitting = {seat_of(turn): turn.agent for turn in debate.turns()}
    cast = [agent for agents in debate.cast.values() for agent in agents]
    if place in sitting:
        return sitting[place]
    if place.isdecimal() and int(place) < len(cast):
        return cast[int(place)]
    raise inexpressible(debate, FORM, f"{node.id!r} does not say whom it criticises")


def write_mag(debates: Iterable[Debate]) -> Iterator[str]:
    """JSON lines, one a debate. Raises: GraphError: see ``mag_row``."""
    return json_lines(mag_row(debate) for debate in debates)
