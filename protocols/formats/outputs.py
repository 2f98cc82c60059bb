"""What D&R's and MAGDi's interaction graphs share: fields ``<agent>_output_<round>`` of {reasoning, answer}."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from protocols.answer import Answer
from protocols.errors import ConfigError
from protocols.formats.common import Draft, expect, inexpressible, needed, plain
from protocols.graph import Debate, EdgeKind, Utterance
from protocols.message import user
from protocols.task import Task, stable_id
from protocols.vote import majority_vote

MARK = "Final answer:"
_OUTPUT = re.compile(r"(.{1,200})_output_([0-9]{1,3})")
_HEADER = re.compile(r"\A\s*#{1,6} ?Answer[^\n]*\n")


def task_of(row: Mapping[str, Any], dataset: str, where: str) -> Task:
    """The question of a row, with its gold answer where it has one."""
    question = needed(row, "question", str, where)
    gold = row.get("gold_answer")
    return Task(
        id=stable_id(dataset, question),
        question=question,
        gold=(plain(gold),) if plain(gold) else (),
        dataset=dataset,
        answer_format="final",
    )


def agents_in(row: Mapping[str, Any], where: str) -> tuple[list[str], int]:
    """Agents in the order of the row's keys, and how many rounds were held. Raises: ConfigError: none were."""
    found = [match for key in row if (match := _OUTPUT.fullmatch(key))]
    if not found:
        raise ConfigError(f"{where}: holds no reply (<agent>_output_<round>), so it is a task and not a debate")
    agents = dict.fromkeys(match[1] for match in found)
    rounds = {int(match[2]) for match in found}
    if rounds != set(range(len(rounds))):
        raise ConfigError(f"{where}: holds rounds {sorted(rounds)[:20]}; they must run from 0 without a gap")
    return list(agents), len(rounds)


def say_answer(
    draft: Draft,
    row: Mapping[str, Any],
    seat: tuple[int, str],
    number: int,
    saw: Iterable[tuple[str | None, EdgeKind]],
    where: str,
    *,
    role: str,
    context: str = "",
    right: bool | None = None,
) -> str | None:
    """Add an agent's answer of a round; None where it gave none. Without a raw text it is put together again."""
    index, agent = seat
    key = f"{agent}_output_{number}"
    output = expect(row.get(key) or {}, dict, f"{where}, {key!r}")
    reasoning, answer, raw = output.get("reasoning"), output.get("answer"), row.get(f"{agent}_raw_{number}")
    text = raw if isinstance(raw, str) and raw not in ("", "None") else _composed(reasoning, answer)
    if text is None:
        return None
    shown = f"{draft.debate.task.question}\n\n{context}" if context else draft.debate.task.question
    read = Answer(plain(answer), "given") if plain(answer) else Answer()
    place = (number, "answer", str(index))
    return draft.say(place, role, agent, text, prompt=[user(shown)], saw=saw, answer=read, correct=right)


def _composed(reasoning: Any, answer: Any) -> str | None:
    if reasoning is None and not plain(answer):
        return None
    head = reasoning if isinstance(reasoning, str) else ""
    return f"{head}\n{MARK} {plain(answer)}" if plain(answer) else head


def output_of(node: Utterance | None) -> dict[str, Any]:
    """{reasoning, answer} of an answer: the reasoning is what stands before the final answer."""
    if node is None:
        return {"reasoning": None, "answer": None}
    reasoning = _HEADER.sub("", node.reply.text).partition(MARK)[0].strip()
    return {"reasoning": reasoning, "answer": node.answer.value}


def answers_by_round(debate: Debate, form: str) -> tuple[list[str], list[dict[str, Utterance]]]:
    """Those cast to answer, in the cast's order, and each round's answers by agent.

    Raises: GraphError: an agent answers twice in a round, or nobody answers in one.
    """
    rounds: list[dict[str, Utterance]] = []
    for node in debate.turns():
        while len(rounds) <= node.round:
            rounds.append({})
        if node.agent in rounds[node.round]:
            raise inexpressible(debate, form, f"agent {node.agent!r} answers twice in round {node.round}")
        rounds[node.round][node.agent] = node
    if not rounds or not all(rounds):
        raise inexpressible(
            debate, form, "there is a round in which no agent answered" if rounds else "nobody answered"
        )
    roles = {node.role for node in debate.turns()}
    cast = [agent for role, agents in debate.cast.items() if role in roles for agent in agents]
    return list(dict.fromkeys([*cast, *(agent for answers in rounds for agent in answers)])), rounds


def close_by_vote(draft: Draft, stop_reason: str, *, oracle: bool) -> Debate:
    """End with the vote of the last round, which the files leave to their readers."""
    nodes = list(draft.debate.turns())
    if not nodes:
        return draft.close(Answer(), "no_replies", "majority_vote", oracle=oracle)
    last = max(node.round for node in nodes)
    vote = majority_vote([node.answer for node in nodes if node.round == last], tie_break="first", seed=0)
    fields = {"support": vote.support, "votes": vote.votes, "tie": vote.tie}
    return draft.close(vote.answer, stop_reason, "majority_vote", oracle=oracle, **fields)
