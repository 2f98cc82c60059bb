"""MAD's logs as debates: the order of speaking, who saw whom, who decided; and our own MAD debates as logs."""

from __future__ import annotations

import pytest

from protocols.answer import Answer
from protocols.catalogue import build_machine, load_protocol_prompts
from protocols.conversation import Player
from protocols.errors import ConfigError, GraphError
from protocols.formats.common import Draft
from protocols.formats.mad import mad_log, read_mad
from protocols.mad import MadSettings
from protocols.task import Task
from tests.fakes import node_of, play
from tests.protocols.formats.samples import chat, edges, ids, published_mad, question_mad, translation_mad


def test_a_published_log_is_a_debate_of_rounds_with_a_judge() -> None:
    (debate,) = read_mad(published_mad(), "0.json")
    assert ids(debate) == [
        "0.base.0",
        "0.argue.affirmative",
        "0.argue.negative",
        "0.moderate.moderator",
        "1.argue.affirmative",
        "1.argue.negative",
        "1.moderate.moderator",
        "1.judge.0",
        "1.judge.1",
    ]
    assert edges(debate, "0.argue.affirmative") == [("0.base.0", "memory")]
    assert edges(debate, "0.argue.negative") == [("0.argue.affirmative", "saw")]
    assert edges(debate, "0.moderate.moderator") == [("0.argue.affirmative", "saw"), ("0.argue.negative", "saw")]
    assert edges(debate, "1.argue.affirmative") == [("0.argue.affirmative", "memory"), ("0.argue.negative", "saw")]
    assert edges(debate, "1.argue.negative") == [("0.argue.negative", "memory"), ("1.argue.affirmative", "saw")]
    assert edges(debate, "1.judge.0") == [("0.argue.affirmative", "saw"), ("0.argue.negative", "saw")]
    assert edges(debate, "1.judge.1") == [("1.judge.0", "memory")]
    verdict = debate.verdict
    assert verdict is not None
    assert (verdict.answer, verdict.aggregator, verdict.stop_reason) == ("go into business", "judge", "rounds")
    assert verdict.details == {"reason": "idiom"}
    assert debate.task.question == "下海" and debate.task.gold == ("go into business",)
    base = debate.utterance("0.base.0")
    assert (base.role, base.agent, base.answer.value, base.correct) == ("base", "Affirmative side", "go to sea", False)
    assert base.reply.model == "some-model"


def test_each_chat_is_what_the_log_holds() -> None:
    (debate,) = read_mad(published_mad(), "0.json")
    told = [message.text for message in debate.conversation("1.argue.affirmative")]
    assert told == ["debater", "translate", "go to sea", "why?", "A0", "N0"]


def test_a_moderator_that_saw_a_winner_ends_the_debate() -> None:
    (debate,) = read_mad(translation_mad(), "1.json")
    verdict = debate.verdict
    assert verdict is not None
    assert (verdict.aggregator, verdict.stop_reason) == ("moderator", "verdict")
    assert verdict.details == {"reason": "idiom", "side": "Negative"}
    assert edges(debate, "0.argue.affirmative") == [("0.base.0", "saw")]
    assert debate.utterance("0.base.0").agent == "Baseline"
    assert debate.task.details["target_language"] == "English"


def test_without_a_base_answer_the_opening_is_none() -> None:
    (debate,) = read_mad(question_mad(), "2.json")
    assert ids(debate)[0] == "0.argue.affirmative"
    assert debate.verdict is not None
    assert (debate.verdict.answer, debate.verdict.stop_reason) == (None, "rounds")


def test_what_a_turn_says_is_read_where_it_says_so() -> None:
    row = question_mad()
    row["players"]["Negative side"][-1]["content"] = "No.\nAnswer: 5"
    row["debate_answer"] = "5"
    (debate,) = read_mad(row, "2.json")
    assert debate.utterance("0.argue.affirmative").answer == Answer()
    assert debate.utterance("0.argue.negative").answer.value == "5"
    assert debate.verdict is not None and (debate.verdict.support, debate.verdict.votes) == (1, 1)


def test_a_moderator_is_read_under_the_published_names() -> None:
    row = published_mad()
    said = (
        "{'Whether there is a preference': 'Yes', 'Supported Side': 'Negative', 'Correct Translation': 'start a firm'}"
    )
    row["players"]["Moderator"][-1]["content"] = said
    (debate,) = read_mad(row, "0.json")
    read = debate.utterance("1.moderate.moderator").answer
    assert (read.value, read.details["side"]) == ("start a firm", "Negative")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"players": {"Audience": []}}, "player 'Audience' is not one of MAD's"),
        ({"players": {"Affirmative side": chat("only asked")[:1]}}, "holds no reply of the affirmative side"),
        ({"players": {"Affirmative side": [{"role": "tool", "content": "x"}]}}, "role 'tool' must be one of"),
        ({"players": [1]}, "'players': must be an object, not [1]"),
        ({"source": 3}, "'source': must be text, not 3"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_mad(published_mad() | change, "0.json")
    assert said in str(caught.value) and str(caught.value).startswith("0.json")


def own(role: str = "negative") -> Draft:
    task = Task(id="t", question="Q?", gold=("5",), answer_format="text")
    draft = Draft("mad", task, {"affirmative": ("ada",), "negative": ("bo",)}, model="m")
    first = draft.say((0, "argue", "affirmative"), "affirmative", "ada", "4", answer=Answer("4", "x"))
    draft.say((0, "argue", "negative"), role, "bo", "5", saw=[(first, "saw")], answer=Answer("5", "x"))
    draft.say((0, "moderate", "moderator"), "moderator", "mo", "5!")
    return draft


def test_a_debate_of_ours_is_a_log_of_a_question() -> None:
    debate = own().close(Answer("5", "x"), "verdict", "moderator", details={"side": "negative", "reason": "sum"})
    assert mad_log(debate) == {
        "model_name": "m",
        "num_players": 3,
        "success": True,
        "debate_topic": "Q?",
        "reference": "5",
        "base_answer": "4",
        "debate_answer": "5",
        "Reason": "sum",
        "Supported Side": "Negative",
        "players": {
            "Affirmative side": [{"role": "assistant", "content": "4"}],
            "Negative side": [{"role": "assistant", "content": "5"}],
            "Moderator": [{"role": "assistant", "content": "5!"}],
        },
    }


def test_more_than_two_sides_are_no_log() -> None:
    with pytest.raises(
        GraphError, match=r"debate 'debate/t' cannot be written as a MAD log: it has the role 'debater'"
    ):
        mad_log(own("debater").close(Answer(), "rounds", "moderator"))


def test_worked_examples_are_no_turns_and_numbers_are_read_as_numbers() -> None:
    settings = MadSettings(rounds=1, prompts="mad.sum.en")
    cast = {role: (Player(name=role),) for role in ("affirmative", "negative", "moderator")}
    machine = build_machine("mad", settings, cast, load_protocol_prompts("mad", settings))
    said = {"argue": "24 + 19 = 43", "moderate": '{"reason": "r", "side": "affirmative", "answer": "43"}'}
    task = Task(id="t", question="24 + 19", gold=("43",))
    ours = play(machine, task, lambda ask: said[node_of(ask).split(".")[1]]).debate
    ours.cast = {role: (role,) for role in cast}
    assert any(message.role == "assistant" for message in ours.utterances[0].prompt)  # it has worked examples
    (back,) = read_mad(mad_log(ours), "here")
    assert len(back.utterances) == len(ours.utterances) == 3
    assert [node.answer.value for node in back.turns()] == [node.answer.value for node in ours.turns()] == ["43", "43"]
    assert all(node.correct for node in back.turns())
