"""D&R's graphs: full visibility, critiques and reflections as nodes, gold said to be used."""

from __future__ import annotations

import json

import pytest

from protocols.errors import ConfigError
from protocols.formats.mag import mag_row, read_mag, read_mag_row, write_mag
from protocols.formats.rows import messages_rows, preference_rows, right_turns
from tests.protocols.formats.samples import dumped, edges, ids
from tests.protocols.formats.samples import mag_row as row


def test_answers_critiques_and_reflections_are_nodes() -> None:
    debate = read_mag_row(row(), "f")
    assert ids(debate) == [
        "0.answer.0",
        "0.answer.1",
        "0.critique.0-1",
        "0.reflect.1",
        "1.answer.0",
        "1.answer.1",
    ]
    assert edges(debate, "0.critique.0-1") == [("0.answer.0", "saw"), ("0.answer.1", "saw")]
    assert edges(debate, "0.reflect.1") == [("0.answer.1", "saw")]
    shown = [("0.answer.0", "saw"), ("0.answer.1", "saw"), ("0.critique.0-1", "critique")]
    assert edges(debate, "1.answer.0") == shown  # the reflection could not be read, so nobody was shown it
    assert edges(debate, "1.answer.1") == shown
    assert [(node.agent, node.answer.value, node.correct) for node in debate.turns()] == [
        ("gpt", "B", True),
        ("mini", "A", False),
        ("gpt", "B", True),
        ("mini", "B", True),
    ]
    assert debate.utterance("0.critique.0-1").answers is False


def test_gold_was_used_and_the_verdict_says_so() -> None:
    verdict = read_mag_row(row(), "f").verdict
    assert verdict is not None
    assert (verdict.oracle, verdict.stop_reason, verdict.answer, verdict.correct) == (True, "oracle", "B", True)
    assert read_mag_row(row() | {"stop": False}, "f").verdict.stop_reason == "rounds"  # type: ignore[union-attr]


def test_the_prompt_is_the_question_and_the_shared_context() -> None:
    debate = read_mag_row(row(), "f")
    assert debate.conversation("0.answer.0")[0].text == "Which? A) x B) y"
    assert debate.conversation("1.answer.0")[0].text == "Which? A) x B) y\n\nAnswer 1: A\nAnswer 2: B, look again"


def test_nothing_of_it_is_learned_from_unless_gold_labels() -> None:
    debate = read_mag_row(row(), "f")
    assert list(messages_rows(debate)) == []
    assert list(preference_rows(debate, label="consensus")) == []
    assert right_turns(debate, label="consensus") == []
    assert [node.id for node in right_turns(debate, label="gold")] == ["0.answer.0", "1.answer.0", "1.answer.1"]
    (pair,) = preference_rows(debate, label="gold")
    assert pair["chosen"][0]["content"].endswith("$B$") and pair["rejected"][0]["content"] == "A!"


def test_lines_are_read_one_by_one() -> None:
    lines = iter([dumped(row()), "", dumped(row() | {"question": "Other?"}), "{"])
    debates = read_mag(lines, "f")
    assert [next(debates).task.question for _ in range(2)] == ["Which? A) x B) y", "Other?"]
    with pytest.raises(ConfigError, match=r"^f, line 4: is not valid JSON"):
        next(debates)


def test_an_agent_without_a_reply_has_empty_fields() -> None:
    value = row() | {"mini_output_1": {"reasoning": None, "answer": None}, "mini_raw_1": "None"}
    debate = read_mag_row(value, "f")
    assert ids(debate)[-1] == "1.answer.0"
    assert mag_row(debate) == value


def test_a_debate_of_ours_names_who_criticised_whom() -> None:
    debate = read_mag_row(row(), "f")
    debate.task = type(debate.task)(id="t", question=debate.task.question, gold=("B",))  # without what the file said
    written = json.loads("".join(write_mag([debate])))
    assert written["critique_pool_0"] == [
        ["gpt", "mini", "look again", "### Feedback\nlook again"],
        ["mini", "mini", "???", "???"],
    ]
    assert written["gpt_output_0"] == {"reasoning": "y it is", "answer": "B"}
    assert written["right_0"] == {"gpt": True, "mini": False}
    assert written["debate_last_round_1"] == "Answer 1: A\nAnswer 2: B, look again"
    assert "critique_pool_1" not in written  # it stopped


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"critique_pool_0": [["gpt", "nobody", "x", "x"]]}, "entry 1: must be [from, to, text, raw] between agents"),
        ({"critique_pool_0": [["gpt", "mini", "x", "x"]] * 2}, "entry 2: stands there twice"),
        ({"gpt_output_3": {}}, "holds rounds [0, 1, 3]; they must run from 0"),
        ({"gpt_output_0": {}, "gpt_raw_0": "", "mini_output_0": {}, "mini_raw_0": ""}, "no agent answered in round 0"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_mag_row(row() | change, "f")
    assert said in str(caught.value)


def test_a_task_is_no_debate() -> None:
    with pytest.raises(ConfigError, match=r"so it is a task and not a debate"):
        read_mag_row({"question": "Q", "gold_answer": "A", "MMLU_Pro_id": 1}, "f")
