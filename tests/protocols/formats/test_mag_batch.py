"""D&R's batch requests of a debate worked by hand: which file, which id, what is asked."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from protocols.conversation import Player
from protocols.errors import GraphError
from protocols.formats.mag_batch import batch_lines
from protocols.graph import Debate
from protocols.message import Sampling
from protocols.reflect import Reflect, ReflectSettings
from protocols.task import Task
from tests.fakes import by_node, play
from tests.protocols import test_dialectic
from tests.protocols.test_reflect import PLAIN, TASK, saying


def debate(*agents: str, task: Task = TASK) -> Debate:
    """Two rounds: in the first only the first agent is right, in the second all are."""
    cast = {"teacher": tuple(Player(name=name) for name in agents[:-1]), "student": (Player(name=agents[-1]),)}
    answers = saying(" ".join(["43"] + ["44"] * (len(agents) - 1)), "43")
    return play(Reflect(ReflectSettings(), cast, PLAIN), task, answers).debate


def requests(*debates: Debate, **sampling: Sampling) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for file, line in batch_lines(debates, sampling):
        assert line.endswith("\n") and line.count("\n") == 1
        found.setdefault(file, []).append(json.loads(line))
    return found


def test_a_file_holds_what_one_agent_was_asked_in_one_round_and_phase() -> None:
    found = requests(debate("ada", "bo", "cy"))
    assert {file: [request["custom_id"] for request in lines] for file, lines in found.items()} == {
        "0.answer.ada": ["t"],
        "0.answer.bo": ["t"],
        "0.answer.cy": ["t"],
        "0.critique.ada": ["t_ada_bo", "t_ada_cy"],
        "0.critique.bo": ["t_bo_bo"],
        "0.critique.cy": ["t_cy_cy"],
        "1.answer.ada": ["t"],
        "1.answer.bo": ["t"],
        "1.answer.cy": ["t"],
    }


def test_a_request_says_what_was_sent_and_how_it_was_drawn() -> None:
    found = requests(debate("ada", "bo"), bo=Sampling(temperature=0.3, max_tokens=1000, stop=("###",)))
    assert found["0.critique.ada"] == [
        {
            "custom_id": "t_ada_bo",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "fake",
                "messages": [
                    {
                        "role": "user",
                        "content": "Q What is 24 + 19? RIGHT [0.answer.0] answer: 43 WRONG [0.answer.1] answer: 44",
                    }
                ],
            },
        }
    ]
    (request,) = found["0.answer.bo"]
    drawn = {key: value for key, value in request["body"].items() if key not in ("model", "messages")}
    assert drawn == {"temperature": 0.3, "top_p": 1.0, "max_tokens": 1000, "stop": ["###"]}


def test_ids_are_unique_in_each_file_over_many_debates() -> None:
    debates = [debate("ada", "bo", "cy", task=msgspec.structs.replace(TASK, id=f"q_{n}")) for n in range(3)]
    for lines in requests(*debates).values():
        ids = [request["custom_id"] for request in lines]
        assert len(set(ids)) == len(ids) >= 3
        assert {custom_id.rsplit("_", 2)[0] for custom_id in ids if custom_id.count("_") > 1} <= {"q_0", "q_1", "q_2"}


def test_further_tries_are_not_requests_of_their_own() -> None:
    cast = {"teacher": (Player(name="ada"),), "student": (Player(name="bo"),)}
    machine = Reflect(ReflectSettings(rounds=1), cast, PLAIN)
    played = play(machine, TASK, lambda ask: "42?" if "~" in ask.id else "no idea")
    assert "0.answer.1~1" in played.asked()
    assert {file: len(lines) for file, lines in requests(played.debate).items()} == {
        "0.answer.ada": 1,
        "0.answer.bo": 1,
    }


@pytest.mark.parametrize(
    ("agents", "task", "said"),
    [
        (("ada", "b_o"), TASK, r"ids are cut at '_', which agent 'b_o' has in its name; name agents without it$"),
        (("ada", "ada"), TASK, "'ada' sits in several places"),
        (("ada", "bo"), msgspec.structs.replace(TASK, images=(test_dialectic.IMAGE,)), "was shown images"),
    ],
)
def test_what_has_no_request_is_refused_by_name(agents: tuple[str, ...], task: Task, said: str) -> None:
    with pytest.raises(GraphError, match=rf"^debate 'd' cannot be written as D&R's batch requests: .*{said}"):
        requests(debate(*agents, task=task))


def test_a_debate_of_another_kind_is_refused() -> None:
    task = msgspec.structs.replace(test_dialectic.TASK, images=())
    played = play(test_dialectic.dialectic(), task, test_dialectic.saying(test_dialectic.WORKED))
    with pytest.raises(GraphError, match="is neither an answer nor a critique nor a reflection"):
        requests(played.debate)
    silent = play(test_dialectic.dialectic(), task, by_node())
    assert requests(silent.debate) == {}
