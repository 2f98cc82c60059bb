"""Structured replies as models really write them: every slip that can be read is read, nothing is ever evaluated."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import lenient
from protocols.answer import Answer
from protocols.lenient import MAX_DEPTH, read_fields
from protocols.structured import (
    MAX_PAIRS,
    read_judge,
    read_pairs,
    scores_reader,
    section,
    section_reader,
    verdict_reader,
)
from tests.growth import assert_linear


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (
            '{"a": "b", "n": 4.50, "big": 1e999, "t": true, "x": null}',
            {"a": "b", "n": "4.50", "big": "1e999", "t": True, "x": None},
        ),
        ("{'Reason': 'it is so', 'Answer': ''}", {"Reason": "it is so", "Answer": ""}),
        (
            "{'a': \"it's\", 'b': 'say \"x\"', 'c': None, 'd': True}",
            {"a": "it's", "b": 'say "x"', "c": None, "d": True},
        ),
        (r"{'a': 'it\'s', 'b': 'two\nlines', 'c': '\u00e9\x41\d'}", {"a": "it's", "b": "two\nlines", "c": "éA\\d"}),
        ("{'a': 'it's fine', 'b': 'x'}", {"a": "it's fine", "b": "x"}),
        ('{"a": "he said "no" to it", "b": ""}', {"a": 'he said "no" to it', "b": ""}),
        ('{"a": "two\nlines",\n"b": "x",\n}', {"a": "two\nlines", "b": "x"}),
        ("{“a”: 1}", None),
        ("{a: yes, b: 4}", {"a": "yes", "b": "4"}),
        ('{"a": ["x", "y",], "b": {"c": (1, 2)}}', {"a": ["x", "y"], "b": {"c": ["1", "2"]}}),
        ('Here you are:\n```json\n{"a": "b"}\n```\nAnything else?', {"a": "b"}),
        ('Fill in {"a": ""}. So: {"a": "b"}. {}', {"a": "b"}),
        (r"\frac{1}{2} " * 200 + "{'a': 'b'}", {"a": "b"}),
        ('{"a": "}"} {', {"a": "}"}),
        ('{"a": 1, "a": 2}', {"a": "2"}),
        ('{"a": "' + "x" * 50_000 + '"}', {"a": "x" * 50_000}),
        (r'{"a": "\ud83d\ude00 \ud800"}', {"a": "😀 \ufffd"}),
        ('{"a": "b"', None),
        ('{"a" "b"}', None),
        ("{1, 2}", None),
        ("{}", None),
        ("a: b", None),
        ("", None),
        ("{'a': __import__('os').system('true')}", None),
        ("{" * 1000, None),
    ],
)
def test_fields_are_read_however_they_are_quoted(text: str, fields: dict[str, Any] | None) -> None:
    assert read_fields(text) == fields


def test_nesting_has_a_bound() -> None:
    deep: Any = "x"
    for _ in range(MAX_DEPTH):
        deep = {"a": deep}
    assert read_fields(json.dumps(deep)) == deep
    assert read_fields(str(deep)) == deep
    for text in ('{"a":' * 5000 + "1" + "}" * 5000, "{'a':" * 5000 + "1" + "}" * 5000):
        inner = read_fields(text)
        assert inner is None or len(str(inner)) < 20 * MAX_DEPTH


SCALARS = st.one_of(st.text(), st.booleans(), st.none())
OBJECTS = st.dictionaries(
    st.text(), st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)
).filter(bool)


@given(OBJECTS)
def test_all_json_is_read_as_it_says(value: dict[str, Any]) -> None:
    assert read_fields(json.dumps(value)) == value


@given(st.dictionaries(st.text(min_size=1), SCALARS, min_size=1))
def test_all_dict_literals_are_read_as_they_say(value: dict[str, Any]) -> None:
    assert read_fields(f"So {value!r}.") == value


NOISE = st.lists(st.sampled_from([*"{}[]()'\",:\\ ab1\n", "None", "\\u12", "\ud800", "```json"]), max_size=60).map(
    "".join
)


@given(st.one_of(st.text(), NOISE))
def test_no_reader_raises(text: str) -> None:
    read_fields(text)
    assert isinstance(read_pairs(text), list)
    section(text, "### Feedback")
    readers = [verdict_reader("a", side_keys=("b",)), read_judge, scores_reader("a"), section_reader("## a")]
    for answer in (reader(text) for reader in readers):
        assert answer.how or answer == Answer()
        assert answer.value is None or answer.value.strip()


@pytest.mark.parametrize(
    "text",
    [
        "{" * 200_000, '{"' * 100_000, "{'a': '" * 30_000, '{"a": "' + "\\" * 199_999, "{'a':" + " " * 200_000,
        "{'a': '" + "' " * 100_000, "{a" * 100_000, '{"a":[' * 30_000, "# " + "#" * 200_000 + "x", "#" * 200_000,
        "<question>" * 20_000, "<a>" * 60_000, "## Instruction:" * 12_000, "Human:\n" * 30_000, " " * 200_000 + "human",
        "a: " * 60_000, "a score (1" * 20_000, "[yes" * 50_000, "[" + " " * 200_000 + "yes]",
    ],
)  # fmt: skip
def test_hostile_text_is_read_in_linear_time(text: str) -> None:
    for read in (read_fields, read_pairs, read_judge, scores_reader("a", "score")):
        assert_linear(read, text)
    assert_linear(lambda text: section(text, "### Feedback"), text)


def test_braces_that_open_nothing_are_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    scans, braces = [], lenient._braces

    def counted(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
        scans.append(len(text))
        return braces(text, at, depth)

    monkeypatch.setattr(lenient, "_braces", counted)
    assert read_fields('{"' * (lenient.MAX_LENGTH // 2)) is None
    assert sum(scans) <= lenient.MAX_WASTED + lenient.MAX_SCANNED


MODERATOR = verdict_reader(
    "debate_answer",
    side_keys=("Supported Side",),
    reason_keys=("Reason",),
    preference_keys=("Whether there is a preference",),
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (
            (
                "{'Whether there is a preference': 'No', 'Supported Side': '', 'Reason': 'Both argue well.', "
                "'debate_answer': ''}"
            ),
            Answer(None, "fields", details={"reason": "Both argue well.", "preference": "No"}),
        ),
        (
            (
                '{"Whether there is a preference": "Yes", "Supported Side": "Negative", "Reason": "It\'s shown.", '
                '"debate_answer": "12"}'
            ),
            Answer("12", "fields", details={"side": "Negative", "reason": "It's shown.", "preference": "Yes"}),
        ),
        (
            (
                "My verdict: {'Whether There Is A Preference': True, 'supported_side': 'Affirmative', "
                "'Debate Answer': 12,}"
            ),
            Answer("12", "fields", details={"side": "Affirmative", "preference": "Yes"}),
        ),
        ("{'debate_answer': None}", Answer(None, "fields")),
        ("{'debate_answer': 'None.'}", Answer(None, "fields")),
        ("{'debate_answer': ['a', 'b']}", Answer("a, b", "fields")),
        ("{'Reason': 'the field is missing'}", Answer()),
        ("I support the negative side.", Answer()),
        ("", Answer()),
    ],
)
def test_a_verdict_is_its_answer_and_what_was_said_of_it(text: str, answer: Answer) -> None:
    assert MODERATOR(text) == answer


def test_the_first_of_several_keys_that_is_there_counts() -> None:
    reader = verdict_reader("answer", "debate_answer", side_keys=("side", "Supported Side"))
    assert reader('{"debate_answer": "7", "supported side": "x"}') == Answer("7", "fields", details={"side": "x"})
    assert reader('{"debate_answer": "7", "answer": ""}') == Answer(None, "fields")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("[Yes]", Answer("yes", "bracket")),
        ("They agree, so [ no ].", Answer("no", "bracket")),
        ("[No]? Rather [Yes]", Answer("yes", "bracket")),
        ("[True]", Answer("yes", "bracket")),
        ("Yes, they agree.", Answer("yes", "first_word")),
        ("I do not know", Answer()),
        ("[Maybe]", Answer()),
    ],
)
def test_a_judge_says_yes_or_no(text: str, answer: Answer) -> None:
    assert read_judge(text) == answer


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("### Feedback\nMind the sign.\n\n### Answer\n5", "Mind the sign."),
        ("### Thoughts\nhm\n###feedback: \nMind it.\n#### Detail\nmore", "Mind it.\n#### Detail\nmore"),
        ("### Feedback\nold\n### Feedback\nnew", "new"),
        ("## Feedback ##\nboth ranks will do", "both ranks will do"),
        ("### Feedback\n\n### Answer\n5", None),
        ("Feedback: none", None),
        ("", None),
    ],
)
def test_a_section_is_what_stands_under_its_heading(text: str, found: str | None) -> None:
    assert section(text, "### Feedback") == found
    assert section_reader("### Feedback")(text) == (Answer(found, "section") if found else Answer())


@pytest.mark.parametrize(
    "text",
    [
        "<question>What?</question><answer>That.</answer> <question>Who?</question>\n<answer>She.</answer>",
        (
            "<Instruction_1> What? </Instruction_1><Response_1>That.</Response_1>\n"
            "<Instruction_2>Who?</Instruction_2><Response_2>She.</Response_2>"
        ),
        "##Instruction##\nWhat?\n##Response##\nThat.\n##Instruction##\nWho?\n##Response##\nShe.",
        "### Instruction 1:\nWhat?\n### Response 1:\nThat.\n### Instruction 2:\nWho?\n### Response 2:\nShe.",
        "Human: What?\nAssistant: That.\n\n**Human:** Who?\n**Assistant:** She.",
    ],
)
def test_pairs_are_read_in_every_form(text: str) -> None:
    assert read_pairs(text) == [("What?", "That."), ("Who?", "She.")]


def test_pairs_are_whole_and_bounded() -> None:
    assert read_pairs("<question>a</question><question>b</question><answer>c</answer><answer>d</answer>") == [
        ("b", "c")
    ]
    assert read_pairs("<question>a</question><answer> </answer>") == []
    assert read_pairs("<b>What?</b> <i>That.</i>") == []
    assert len(read_pairs("Human: a\nAssistant: b\n" * (MAX_PAIRS + 5))) == MAX_PAIRS


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("information: 4, relevance 5", ("4", "5")),
        ('{"Information": 4, "Relevance": "3.5"}', ("4", "3.5")),
        ("**Information score** (1-5): 4/5\n**Relevance**: 5", ("4", "5")),
        ("information: 2. On reflection information: 3 and relevance = 1", ("3", "1")),
        ("information: 4", None),
        ("information: 4, relevance 9", None),
        ("information: high, relevance: low", None),
    ],
)
def test_scores_are_read_by_name_and_within_their_range(text: str, scores: tuple[str, str] | None) -> None:
    expected = (
        Answer(None, "scores", details=dict(zip(("information", "relevance"), scores, strict=True))) if scores else None
    )
    assert scores_reader("information", "relevance")(text) == (expected or Answer())
