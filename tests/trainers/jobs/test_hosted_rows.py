"""Rows in the service's format: each reply says whether it is learned, and a row that cannot be said is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from protocols.catalogue import build_machine, load_protocol_prompts
from protocols.conversation import Player
from protocols.errors import TrainerError
from protocols.message import Ask, ImagePart, assistant, system, user
from protocols.society import SocietySettings
from protocols.task import Task
from tests.fakes import node_of, play
from tests.trainers.conftest import MakeExample
from trainers.jobs.hosted_rows import hosted_rows
from trainers.record.registry import Registry, hosted_base_hash
from trainers.selection.example import EarlierReply
from trainers.selection.select import Selection, select


def lines(data: bytes) -> list[list[dict[str, Any]]]:
    return [json.loads(line)["messages"] for line in data.splitlines()]


CHAT = (system("Add."), user("1?"), assistant("1."), user("2?"), assistant("2."), user("3?"))


def test_only_what_the_rule_learns_has_weight(make_example: MakeExample) -> None:
    last = make_example(0, prompt=CHAT, completion="3.")
    every = make_example(1, prompt=CHAT, completion="3.", earlier=(EarlierReply(2), EarlierReply(4)))
    one = make_example(2, prompt=CHAT, completion="3.", earlier=(EarlierReply(4),))
    rows = hosted_rows([last, every, one])
    assert rows.examples == [last, every, one] and rows.refused == []
    weights = [[message.get("weight") for message in row] for row in lines(rows.lines)]
    assert weights == [
        [None, None, 0, None, 0, None, 1],
        [None, None, 1, None, 1, None, 1],
        [None] * 2 + [0, None, 1, None, 1],
    ]
    assert lines(rows.lines)[0][1:3] == [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "1.", "weight": 0},
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": (user("What is it?", [ImagePart(sha256="0" * 64)]),)}, "shows an image"),
        ({"weight": 0.5}, "it weighs 0.5"),
        ({"completion": " \n"}, "its reply is empty"),
        ({"finish_reason": "length"}, "cut off at max_tokens"),
        ({"prompt": CHAT, "earlier": (EarlierReply(2, ended=False),)}, "cut off at max_tokens"),
    ],
)
def test_a_row_that_would_be_learned_otherwise_is_left_out(
    make_example: MakeExample, changes: dict[str, Any], told: str
) -> None:
    good, bad = make_example(0), make_example(1, **changes)
    rows = hosted_rows([bad, good])
    assert rows.examples == [good] and len(lines(rows.lines)) == 1
    ((name, reason),) = rows.refused
    assert name == bad.id and told in reason


@pytest.mark.parametrize("loss", ["last", "all"])
def test_a_critic_s_row_of_a_real_debate(loss: Any) -> None:
    """Ada opens wrongly and is right in the end: by ``all`` the released trainers learn the wrong opening, too."""
    protocol = SocietySettings(rounds=2)
    cast = {"generator": tuple(Player(name=agent) for agent in ("ada", "bo", "cy"))}
    machine = build_machine("society", protocol, cast, load_protocol_prompts("society", protocol))

    def answer(ask: Ask) -> str:
        return r"\boxed{3}" if node_of(ask) == "0.answer.0" else r"\boxed{2}"

    played = play(machine, Task(id="t", question="1 + 1", gold=("2",)), answer, debate_id="debate/t")
    played.debate.cast = {role: tuple(player.name for player in players) for role, players in cast.items()}
    chosen = select(Selection(rule="critic", loss=loss, agents=("ada",)), played.debate)["ada"]
    (row,) = lines(hosted_rows(chosen).lines)
    said = [(message["content"], message["weight"]) for message in row if message["role"] == "assistant"]
    assert said == [(r"\boxed{3}", int(loss == "all")), (r"\boxed{2}", 1)]


def test_a_hosted_version_is_registered_by_the_file_that_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "adapters" / "ada" / "v1"
    folder.mkdir(parents=True)
    (folder / "hosted_model.json").write_text('{"model": "ft:x"}')
    registry = Registry(tmp_path / "adapters")
    told: dict[str, Any] = {"base_model": "gpt", "base_hash": hosted_base_hash("https://api", "gpt"), "data_hash": "d"}
    told |= {"rule": "generator", "rows": 12, "recipe_hash": "r", "created_at": 1.0, "model": "ft:x"}
    record = registry.add("ada@r-v1", folder, **told)
    again = Registry(tmp_path / "adapters")
    assert again.list() == (record,) and again.latest("ada") == record and record.model == "ft:x"
    (folder / "hosted_model.json").write_text('{"model": "ft:y"}')
    with pytest.raises(TrainerError, match=r"hosted_model\.json is not the file that was registered"):
        again.get("ada@r-v1")
