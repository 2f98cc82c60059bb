"""M2D's files: who had spoken when somebody spoke, bracketed answers, and options without secrets."""

from __future__ import annotations

import json

import pytest

from protocols.errors import ConfigError, GraphError
from protocols.formats.m2d import m2d_item, read_m2d, without_secrets, write_m2d
from tests.fakes import play
from tests.protocols.formats.samples import dumped, edges, ids, m2d
from tests.protocols.test_society import TASK, society


def test_debaters_see_who_spoke_before_them() -> None:
    debate, _ = read_m2d(m2d(), "f")
    assert ids(debate) == [
        "0.answer.0",
        "0.answer.1",
        "0.judge.0",
        "1.answer.0",
        "1.answer.1",
        "1.judge.0",
        "1.summarise.0",
    ]
    assert edges(debate, "0.answer.0") == []
    assert edges(debate, "1.answer.0") == [("0.answer.0", "saw"), ("0.answer.1", "saw")]
    assert edges(debate, "1.answer.1") == [("1.answer.0", "saw"), ("0.answer.1", "saw")]
    assert edges(debate, "1.judge.0") == [("1.answer.0", "saw"), ("1.answer.1", "saw")]
    assert edges(debate, "1.summarise.0") == [("1.answer.0", "saw"), ("1.answer.1", "saw")]
    assert [node.answer.value for node in debate.utterances if node.role == "judge"] == ["no", "yes"]


def test_in_the_first_round_nobody_sees_another() -> None:
    debate, _ = read_m2d(m2d(), "f")
    assert edges(debate, "0.answer.1") == []


def test_choices_are_read_by_letter_and_by_wording() -> None:
    debate, other = read_m2d(m2d(), "f")
    assert debate.task.question == "Which <image>?" and debate.task.choices == ("cat", "dog")
    assert [node.correct for node in debate.turns()] == [False, True, True, True]
    verdict = debate.verdict
    assert verdict is not None
    assert (verdict.answer, verdict.correct, verdict.stop_reason) == ("(B) dog", True, "consistency")
    assert (verdict.aggregator, verdict.support, verdict.votes) == ("summariser", 2, 2)
    assert other.verdict is not None and (other.verdict.answer, other.verdict.votes) == (None, 1)
    assert other.task.gold == ("3",)


def test_a_chain_is_a_turn_that_saw_all() -> None:
    _, debate = read_m2d(m2d(), "f")
    assert edges(debate, "0.condense.0") == [("0.answer.0", "saw"), ("0.answer.1", "saw")]
    assert debate.verdict is not None and debate.verdict.details == {"chain": "0.condense.0"}


def test_secrets_are_dropped_and_never_written() -> None:
    debates = read_m2d(m2d(), "f")
    assert "THE-SECRET" not in repr(debates)
    written = "".join(write_m2d(debates))
    assert "THE-SECRET" not in written
    assert json.loads(written)["args"] == {
        "max_round": 3,
        "max_tokens": 1024,
        "temperature": 1.0,
        "deployment": {"name": "eu"},
        "azure": [{}],
    }


def test_what_may_be_a_secret() -> None:
    options = {
        "OPENAI_API_KEY": "x",
        "apiKey": "x",
        "password": "x",
        "tokens": ["x"],
        "key": {"a": 1},
        "n_keys": 3,
        "a": None,
    }
    assert without_secrets(options) == {"n_keys": 3, "a": None}


def test_options_that_differ_are_left_out() -> None:
    one, two = read_m2d(m2d(), "f"), read_m2d(m2d() | {"args": {"max_round": 3, "temperature": 0.5}}, "g")
    assert json.loads("".join(write_m2d([*one, *two])))["args"] == {"max_round": 3}


def test_a_list_of_items_is_read_and_becomes_an_object() -> None:
    debates = read_m2d(dumped(m2d()["debate_process"]), "f")
    assert json.loads("".join(write_m2d(debates))) == {"debate_process": m2d()["debate_process"], "args": {}}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"args": {}}, "has no 'debate_process'"),
        ([{"question": "Q"}], "item 1: holds no reply (Round_0 with Agent_0)"),
        ([{"conversations": []}], "item 1: is a LLaVA conversation; import it as llava"),
        ([{"question": "Q", "Round_0": {"Agent_0": 3}}], "'Agent_0': must be text, not 3"),
    ],
)
def test_what_is_wrong_is_named(value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_m2d(dumped(value), "f")
    assert said in str(caught.value)


def test_a_society_is_no_such_debate() -> None:
    debate = play(society(2), TASK, lambda _: "1").debate
    with pytest.raises(
        GraphError, match=r"debate 'd' cannot be written as M2D's debate file: it has the role 'generator'"
    ):
        m2d_item(debate)
