"""Conversations and mixtures of them: turns, what is drawn, and what a debate of ours leaves to train on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from protocols.formats.llava import conversations, expand_braces, mixture, read_llava, sample, write_llava
from protocols.formats.m2d import read_m2d
from protocols.message import ImagePart
from protocols.task import Task
from tests.fakes import by_node, failure_of, node_of, play
from tests.protocols import test_dialectic, test_rewrite
from tests.protocols.formats.samples import edges, ids, llava, m2d
from tests.protocols.test_society import society


def test_a_reply_is_an_opening_turn() -> None:
    first, second = read_llava(llava(), "f")
    assert ids(first) == ["0.answer.0"]
    node = first.utterance("0.answer.0")
    assert (node.answer.value, node.prompt[0].text) == ("a dog", "<image>\nWhat is it?")
    assert first.verdict is not None and (first.verdict.answer, first.verdict.support) == ("a dog", 1)
    assert ids(second) == ["0.answer.0", "0.answer.1"]
    assert edges(second, "0.answer.1") == [("0.answer.0", "memory")]
    assert [message.text for message in second.conversation("0.answer.1")] == ["be kind", "Hi", "Hello", "And now?"]


def test_a_debate_leaves_each_speakers_chat() -> None:
    task = Task(id="t", question="Q", images=(ImagePart(sha256="ab" * 32),))
    debate = play(society(2, rounds=1), task, by_node(_0_answer_0="1", _0_answer_1="2")).debate
    items = list(conversations(debate))
    assert [item["id"] for item in items] == ["t-0", "t-1"]
    assert items[0]["image"] == "ab" * 32
    assert items[1]["conversations"] == [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nQ Q"},
        {"from": "gpt", "value": "2"},
    ]


def test_a_condensed_debate_leaves_its_chain_alone() -> None:
    _, debate = read_m2d(m2d(), "f")
    (item,) = json.loads("".join(write_llava([debate])))
    assert [turn["value"] for turn in item["conversations"]] == ["How long?", "1. nobody knows"]


def test_a_chain_of_ours_stands_under_the_question_with_its_image() -> None:
    debate = play(
        test_dialectic.dialectic(condenser=True), test_dialectic.TASK, test_dialectic.saying(test_dialectic.WORKED)
    ).debate
    assert list(conversations(debate)) == [
        {
            "id": "t",
            "image": "0" * 64,
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is 24 + 19?"},
                {"from": "gpt", "value": "2.condense.0 says [43]"},
            ],
        }
    ]


def test_a_debate_whose_condenser_failed_leaves_nothing() -> None:
    said = test_dialectic.saying(test_dialectic.WORKED)
    debate = play(
        test_dialectic.dialectic(condenser=True),
        test_dialectic.TASK,
        lambda ask: failure_of(ask) if node_of(ask) == "2.condense.0" else said(ask),
    ).debate
    debate.cast = {"debater": ("d0", "d1"), "summariser": ("sum",), "condenser": ("con",)}
    assert list(conversations(debate)) == []


def rewritten(category: str, *dropped: str) -> list[dict[str, Any]]:
    answers = test_rewrite.saying(**{f"_0_judge_{seat}": "No" for seat in dropped})
    return list(conversations(play(test_rewrite.rewrite(), test_rewrite.item(category), answers).debate))


def test_a_rewritten_item_leaves_a_conversation_for_each_pair_kept() -> None:
    items = rewritten("general", "1")
    assert [(item["id"], item["image"]) for item in items] == [("t-0", "0" * 64), ("t-1", "0" * 64)]
    assert items[1]["conversations"] == [
        {"from": "human", "value": "<image>\nask c"},
        {"from": "gpt", "value": "say c"},
    ]
    assert [item["id"] for item in rewritten("general", "0", "1")] == ["t"]
    assert rewritten("general", "0", "1", "2") == []


def test_a_rewritten_dialogue_stays_one_conversation() -> None:
    (item,) = rewritten("ocr", "1")
    values = [message["value"] for message in item["conversations"]]
    assert (item["id"], values) == ("t", ["<image>\nask a", "say a", "ask c", "say c"])


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6]),
        ("first:2", [0, 1]),
        ("first:99", [0, 1, 2, 3, 4, 5, 6]),
        ("first:30%", [0, 1, 2]),  # 2.1, rounded up
        ("end:2", [5, 6]),
        ("end:0", []),
        ("end:50%", [3, 4, 5, 6]),  # 3.5, rounded up
    ],
)
def test_strategies(strategy: str, expected: list[int]) -> None:
    assert sample(range(7), strategy, 0) == expected


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 2**31))
def test_a_random_draw_is_seeded_and_without_repetition(size: int, number: int, seed: int) -> None:
    drawn = sample(range(size), f"random:{number}", seed)
    assert drawn == sample(range(size), f"random:{number}", seed) == sorted(set(drawn))
    assert len(drawn) == min(size, number)


def test_another_seed_draws_others() -> None:
    assert len({tuple(sample(range(100), "random:5", seed)) for seed in range(10)}) > 1


def test_a_mixture_names_files_with_their_strategies() -> None:
    value = {"datasets": [{"json_path": "/d/{a,b}.json", "sampling_strategy": "first:5%"}, {"json_path": "c.jsonl"}]}
    assert mixture(value, "m") == [("/d/a.json", "first:5%"), ("/d/b.json", "first:5%"), ("c.jsonl", "all")]
    assert expand_braces("{a,b}/{1,2}", "m") == ["a/1", "a/2", "b/1", "b/2"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "has no 'datasets'"),
        ({"datasets": [{"json_path": 3}]}, "'json_path': must be text, not 3"),
        (
            {"datasets": [{"json_path": "a", "sampling_strategy": "some:3"}]},
            "sampling_strategy='some:3' must be all, first:N",
        ),
        ({"datasets": [{"json_path": "{a,b}" * 12}]}, "stands for more than 1000 files"),
    ],
)
def test_what_is_wrong_with_a_mixture_is_named(value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mixture(value, "m")
    assert said in str(caught.value)


def test_an_unknown_speaker_is_named() -> None:
    with pytest.raises(ConfigError, match=r"f, item 1, message 1: from 'bird' must be one of human, user, gpt"):
        read_llava([{"conversations": [{"from": "bird", "value": "tweet"}]}], "f")
