"""Rewriting and its filter, against items worked by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.answer import Answer
from protocols.catalogue import load_protocol_prompts
from protocols.conversation import Player
from protocols.errors import ConfigError, TaskError
from protocols.graph import Verdict, decode_debate, encode_debate
from protocols.machine import Replied
from protocols.message import Ask, ImagePart
from protocols.pairs import CATEGORIES, FilterRate, Pair, filter_rates, kept_pairs, mix
from protocols.prompt import PromptSet
from protocols.rewrite import Rewrite, RewriteSettings
from protocols.task import Task
from tests.fakes import Answering, Played, failure_of, node_of, play, told

IMAGE = ImagePart(sha256="0" * 64)
TASK = Task(
    id="t",
    question="What is on the table?",
    images=(IMAGE,),
    answer_format="text",
    details={"category": "general", "response": "a cup", "caption": "A cup on a table."},
)
PLAIN = PromptSet(
    "plain",
    {
        "system": "Be brief.",
        "original": "Q ${question} A ${answer}",
        "unanswered": "Q ${question}",
        "pictured": "SHOWS ${caption}",
        **{category: f"{category} ${{pairs}}: ${{item}}" for category in CATEGORIES},
        "repair": "AGAIN ${pairs}",
        "judge": "JUDGE ${instruction} / ${response} ${pictured}",
        "score": "SCORE ${instruction} / ${response} ${pictured}",
    },
    Rewrite.SLOTS,
)
THREE = "".join(f"<instruction>ask {n}</instruction>\n<response>say {n}</response>\n" for n in "abc")


def rewrite(*, cast: tuple[str, ...] = ("rewriter", "judge", "scorer"), **settings: Any) -> Rewrite:
    return Rewrite(RewriteSettings(**settings), {role: (Player(name=role),) for role in cast}, PLAIN)


def item(category: str, **details: str) -> Task:
    return msgspec.structs.replace(TASK, details=TASK.details | {"category": category} | details)


def saying(**texts: Any) -> Answering:
    """By node, dots as underscores; judges else say yes, scorers 3 and 4, the rewriter three pairs."""

    def answer(ask: Ask) -> Any:
        said = texts.get("_" + node_of(ask).replace(".", "_").replace("~", "_"), ...)
        if said is ...:
            return {"rewriter": THREE, "judge": "Yes", "scorer": "Information: 3\nRelevance: 4"}[ask.role]
        return said(ask) if callable(said) else said

    return answer


def edges(played: Played, target: str) -> set[tuple[str, str]]:
    return {(edge.source, edge.kind) for edge in played.debate.edges if edge.target == target}


def test_three_pairs_of_which_the_judge_keeps_two_worked_by_hand() -> None:
    played = play(rewrite(), TASK, saying(_0_judge_1="No."))
    assert played.asked() == ["0.rewrite.0", "0.judge.0", "0.judge.1", "0.judge.2"]
    assert told(played.asks[0]) == "Be brief.\ngeneral 2: Q What is on the table? A a cup"
    assert told(played.ask("0.judge.1")) == "JUDGE ask b / say b "
    assert all(ask.messages[-1].images == (IMAGE,) for ask in played.asks)
    assert edges(played, "0.judge.2") == {("0.rewrite.0", "saw")}
    assert [(node.role, node.answers, node.answer) for node in played.debate.utterances] == [
        ("rewriter", False, Answer(None, "pairs")),
        ("judge", False, Answer("yes", "last_line")),
        ("judge", False, Answer("no", "last_line")),
        ("judge", False, Answer("yes", "last_line")),
    ]
    assert played.verdict == Verdict(
        answer=None,
        stop_reason="rewritten",
        aggregator="self_filter",
        support=2,
        votes=3,
        details={
            "category": "general",
            "produced": "3",
            "dropped": "1",
            "kept": '[{"instruction":"ask a","response":"say a"},{"instruction":"ask c","response":"say c"}]',
        },
    )
    assert kept_pairs(played.debate) == [Pair("ask a", "say a"), Pair("ask c", "say c")]
    assert kept_pairs(decode_debate(encode_debate(played.debate))) == kept_pairs(played.debate)


def test_without_the_filter_everything_is_kept_and_nobody_judges() -> None:
    played = play(rewrite(filter=False, cast=("rewriter",)), TASK, saying())
    assert played.asked() == ["0.rewrite.0"]
    assert len(kept_pairs(played.debate)) == 3
    assert (played.verdict.aggregator, played.verdict.votes, played.verdict.details["dropped"]) == (
        "unfiltered",
        0,
        "0",
    )


@pytest.mark.parametrize("ruling", [failure_of, None, "Hard to say", "No one knows"])
def test_a_judge_that_fails_or_rambles_drops_its_pair(ruling: Any) -> None:
    played = play(rewrite(), TASK, saying(_0_judge_0=ruling))
    assert [pair.instruction for pair in kept_pairs(played.debate)] == ["ask b", "ask c"]
    assert (played.verdict.support, played.verdict.votes, played.verdict.details["dropped"]) == (2, 2, "1")


def test_scores_are_of_the_original_and_of_what_was_kept() -> None:
    said = saying(
        _0_judge_1="No", _0_score_2="Information: 5\nRelevance: 5", _0_score_original="Information 1, relevance 2"
    )
    played = play(rewrite(scores=True), TASK, said)
    assert played.asked()[4:] == ["0.score.original", "0.score.0", "0.score.2"]
    assert told(played.ask("0.score.original")) == "SCORE What is on the table? / a cup "
    assert edges(played, "0.score.original") == set()
    assert edges(played, "0.score.2") == {("0.rewrite.0", "saw")}
    marks = {name: value for name, value in played.verdict.details.items() if "_" in name}
    assert marks == {
        "information_original": "1.00",
        "relevance_original": "2.00",
        "information_rewritten": "4.00",  # of 3 and 5
        "relevance_rewritten": "4.50",
    }
    assert kept_pairs(played.debate) == [Pair("ask a", "say a"), Pair("ask c", "say c")]


def test_marks_that_cannot_be_read_count_for_nothing() -> None:
    said = saying(_0_score_original="superb", _0_score_0="Information: 9\nRelevance: 1", _0_score_1=failure_of)
    played = play(rewrite(scores=True), TASK, said)
    assert {name: value for name, value in played.verdict.details.items() if "_" in name} == {
        "information_rewritten": "3.00",
        "relevance_rewritten": "4.00",
    }
    silent = play(rewrite(scores=True), TASK, lambda ask: failure_of(ask) if ask.role == "scorer" else saying()(ask))
    assert not any("_" in name for name in silent.verdict.details)
    assert silent.verdict.stop_reason == "rewritten"


def test_an_original_without_an_answer_is_not_scored() -> None:
    task = msgspec.structs.replace(TASK, details={"category": "general"})
    played = play(rewrite(scores=True), task, saying())
    assert told(played.asks[0]).endswith("general 2: Q What is on the table?")
    assert "0.score.original" not in played.asked()


# Categories and images


@pytest.mark.parametrize("category", ["general", "chart", "ocr"])
def test_each_category_has_its_own_prompt_and_sees_the_image(category: str) -> None:
    played = play(rewrite(), item(category), saying())
    assert told(played.asks[0]) == f"Be brief.\n{category} 2: Q What is on the table? A a cup"
    assert all(ask.messages[-1].images == (IMAGE,) for ask in played.asks)
    assert played.verdict.details["category"] == category


def test_captions_are_rewritten_from_text_alone_and_judged_by_the_image() -> None:
    played = play(rewrite(scores=True), item("caption"), saying())
    assert told(played.asks[0]) == "Be brief.\ncaption 2: SHOWS A cup on a table."
    assert [ask.messages[-1].images for ask in played.asks] == [(), *[(IMAGE,)] * 6]  # three pairs judged, three scored
    assert told(played.ask("0.judge.0")).strip() == "JUDGE ask a / say a"
    assert [node for node in played.asked() if "score" in node] == ["0.score.0", "0.score.1", "0.score.2"]
    bare = play(rewrite(), Task(id="t", question="Rain.", details={"category": "caption"}), saying())
    assert told(bare.ask("0.judge.0")) == "JUDGE ask a / say a SHOWS Rain."  # there is no image to judge by
    assert told(bare.asks[0]) == "Be brief.\ncaption 2: SHOWS Rain."  # without a caption the question is one


def test_omitted_images_leave_their_caption() -> None:
    played = play(rewrite(images="omit"), TASK, saying())
    assert not any(message.images for ask in played.asks for message in ask.messages)
    assert told(played.asks[0]).endswith("A a cup\n\nSHOWS A cup on a table.")
    assert told(played.ask("0.judge.0")).endswith("SHOWS A cup on a table.")


def test_a_math_item_keeps_its_question_and_gives_one_solution() -> None:
    said = "<instruction>What's 3 + 4, then?</instruction><response>3 + 4 = 7</response>" + THREE
    task = Task(id="t", question="What is 3 + 4?", details={"category": "math", "response": "7"})
    played = play(rewrite(pairs=3, min_pairs=3), task, saying(_0_rewrite_0=said))
    assert told(played.asks[0]) == "Be brief.\nmath 1: Q What is 3 + 4? A 7"
    assert kept_pairs(played.debate) == [Pair("What is 3 + 4?", "3 + 4 = 7")]
    assert played.asked() == ["0.rewrite.0", "0.judge.0"]


def test_a_dialogue_has_five_rounds_at_most_and_any_reply_max_pairs() -> None:
    lines = "\n".join(f"Human: ask {n}\nAssistant: say {n}" for n in range(12))
    assert len(kept_pairs(play(rewrite(), item("ocr"), saying(_0_rewrite_0=lines)).debate)) == 5
    for most in (3, 8):
        played = play(rewrite(max_pairs=most), TASK, saying(_0_rewrite_0=lines))
        assert (len(kept_pairs(played.debate)), played.verdict.details["produced"]) == (most, str(most))
        assert len(played.asks) == 1 + most == played.machine.max_asks(played.machine.settings, {})  # type: ignore[attr-defined]


def test_a_question_asked_twice_counts_once() -> None:
    said = THREE + "<instruction>Ask  A</instruction><response>something else</response>"
    assert len(kept_pairs(play(rewrite(), TASK, saying(_0_rewrite_0=said)).debate)) == 3


def test_the_category_is_the_items_else_the_settings() -> None:
    played = play(rewrite(category="chart"), Task(id="t", question="?"), saying())
    assert played.verdict.details["category"] == "chart"
    assert play(rewrite(category="chart"), TASK, saying()).verdict.details["category"] == "general"


@pytest.mark.parametrize("category", ["", "video"])
def test_an_unknown_category_is_refused_with_the_way_out(category: str) -> None:
    with pytest.raises(TaskError, match=rf"task 't': category='{category}' must be one of general, chart, math, capt"):
        play(rewrite(), item(category), saying())


# What goes wrong


def test_a_reply_without_pairs_is_asked_for_once_more() -> None:
    played = play(rewrite(), TASK, saying(_0_rewrite_0="Sure! Here they are:"))
    assert played.asked()[:2] == ["0.rewrite.0", "0.rewrite.0~1"]
    assert [message.role for message in played.asks[1].messages] == ["system", "user", "assistant", "user"]
    assert played.asks[1].messages[-1].text == "AGAIN 2"
    assert edges(played, "0.rewrite.0~1") == {("0.rewrite.0", "memory")}
    assert edges(played, "0.judge.0") == {("0.rewrite.0~1", "saw")}
    assert len(kept_pairs(played.debate)) == 3


@pytest.mark.parametrize("again", ["No.", "<response>say a</response>", failure_of, None])
def test_an_item_that_is_twice_unreadable_is_given_up(again: Any) -> None:
    played = play(rewrite(scores=True), TASK, saying(_0_rewrite_0="Sure!", _0_rewrite_0_1=again))
    assert played.asked() == ["0.rewrite.0", "0.rewrite.0~1"]
    assert (played.verdict.stop_reason, played.verdict.votes) == ("unreadable", 0)
    assert kept_pairs(played.debate) == []
    assert played.verdict.details == {"category": "general", "produced": "0", "dropped": "0", "kept": "[]"}


def test_fewer_pairs_than_the_least_are_not_enough() -> None:
    played = play(rewrite(pairs=4, min_pairs=4), TASK, saying())
    assert played.verdict.stop_reason == "unreadable"
    assert play(rewrite(pairs=3, min_pairs=3), TASK, saying()).verdict.stop_reason == "rewritten"


@pytest.mark.parametrize("silent", [failure_of, None])
def test_a_rewriter_that_never_replied(silent: Any) -> None:
    played = play(rewrite(), TASK, saying(_0_rewrite_0=silent))
    assert (played.verdict.stop_reason, played.debate.utterances) == ("no_replies", [])
    assert kept_pairs(played.debate) == []


@pytest.mark.parametrize("at", range(1, 9))
@pytest.mark.parametrize("what", ["deadline", "budget"])
def test_a_deadline_or_an_empty_purse_keeps_what_was_judged_by_then(at: int, what: str) -> None:
    at_events: dict[str, Any] = {"deadline_at": [at]} if what == "deadline" else {"budget_at": at}
    played = play(rewrite(scores=True), TASK, saying(), **at_events)
    replied = [event.reply.ask_id for event in played.events if isinstance(event, Replied)]
    assert [node.reply.ask_id for node in played.debate.utterances] == replied
    rulings = sum(node.role == "judge" for node in played.debate.utterances)
    assert len(kept_pairs(played.debate)) == played.verdict.support == rulings
    if what == "budget":
        assert played.verdict.stop_reason == "budget"


def test_gold_is_shown_where_it_is_the_original_answer_and_the_verdict_says_so() -> None:
    task = msgspec.structs.replace(TASK, gold=("THE-GOLD",))
    by_default = play(rewrite(scores=True), task, saying())
    assert not any("THE-GOLD" in told(ask) for ask in by_default.asks)
    assert not by_default.verdict.oracle
    asked_for = play(rewrite(answer_from="gold"), task, saying())
    assert "A THE-GOLD" in told(asked_for.asks[0])
    assert asked_for.verdict.oracle
    assert not play(rewrite(answer_from="gold"), TASK, saying()).verdict.oracle  # there was none to show


def test_the_cast_must_have_who_is_needed() -> None:
    with pytest.raises(ConfigError, match=r"filter is on, so cast\.judge needs an agent"):
        rewrite(cast=("rewriter",))
    with pytest.raises(ConfigError, match=r"scores is on, so cast\.scorer needs an agent"):
        rewrite(cast=("rewriter", "judge"), scores=True)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"pairs": 9}, "min_pairs=1, pairs=9 and max_pairs=8 must rise from 1 up"),
        ({"min_pairs": 0}, "min_pairs=0, pairs=2"),
        ({"category": "video"}, "category='video' must be one of general, chart"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RewriteSettings(**settings)


@pytest.mark.parametrize("name", ["rewrite.en", "rewrite.tiny.en"])
@pytest.mark.parametrize("category", CATEGORIES)
def test_the_shipped_prompts_hold_what_each_turn_must_say(name: str, category: str) -> None:
    settings = RewriteSettings(prompts=name, scores=True, images="omit")
    cast = {role: (Player(name=role),) for role in Rewrite.ROLES}
    played = play(Rewrite(settings, cast, load_protocol_prompts("rewrite", settings)), item(category), saying())
    shown = played.asks[0].messages[-1].text
    assert "A cup on a table." in shown
    assert ("What is on the table?" in shown and "a cup" in shown) == (category != "caption")
    for node in ("0.judge.0", "0.score.0"):
        shown = played.ask(node).messages[-1].text
        assert "say a" in shown and "A cup on a table." in shown


# What is made of many


def test_the_filters_rate_is_told_by_category() -> None:
    debates = [
        play(rewrite(), TASK, saying(_0_judge_1="No")).debate,
        play(rewrite(), TASK, saying(_0_judge_0="No", _0_judge_1="No")).debate,
        play(rewrite(), item("chart"), saying()).debate,
        play(rewrite(), item("ocr"), saying(_0_rewrite_0="", _0_rewrite_0_1="")).debate,  # gave nothing to filter
    ]
    rates = filter_rates(debates)
    assert rates == {"general": FilterRate(6, 3), "chart": FilterRate(3, 3)}
    assert [rate.removed_percent for rate in rates.values()] == [50.0, 0.0]
    assert FilterRate(0, 0).removed_percent == 0.0
    assert round(FilterRate(7_326_189, 3_782_029).removed_percent, 1) == 48.4  # the paper's charts


def test_a_mix_is_seventy_to_thirty_and_as_large_as_both_sides_allow() -> None:
    mixed = mix([f"r{n}" for n in range(100)], [f"o{n}" for n in range(9)])
    assert len(mixed) == len(set(mixed)) == 30
    assert sum(one.startswith("r") for one in mixed) == 21
    assert mixed == mix([f"r{n}" for n in range(100)], [f"o{n}" for n in range(9)])
    assert mixed != mix([f"r{n}" for n in range(100)], [f"o{n}" for n in range(9)], seed=1)
    assert len(mix(range(7), range(1000))) == 10
    assert sorted(mix([1, 2], [3], share=1.0)) == [1, 2]
    assert mix([1, 2], [3], share=0.0) == [3]
    assert mix([], [1, 2, 3]) == []
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match=r"share=.* must be from 0 to 1"):
            mix([1], [2], share=share)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20), st.integers(0, 9))
def test_a_mix_keeps_its_share_and_repeats_nothing(ours: int, theirs: int, twentieths: int, seed: int) -> None:
    share = twentieths / 20
    mixed = mix([("r", n) for n in range(ours)], [("o", n) for n in range(theirs)], share=share, seed=seed)
    first = sum(kind == "r" for kind, _ in mixed)
    assert len(set(mixed)) == len(mixed)
    assert abs(first - share * len(mixed)) <= 0.5
    grown = len(mixed) + 1  # one more would need more than there is
    assert share * grown > ours - 1e-9 or (1 - share) * grown > theirs - 1e-9


@given(st.text(alphabet="<>/instrucoepHuma:\n #\x00⟦", max_size=300))
def test_no_reply_of_the_rewriter_breaks_anything(text: str) -> None:
    played = play(rewrite(), TASK, saying(_0_rewrite_0=text, _0_rewrite_0_1=text))
    assert played.verdict.stop_reason in ("rewritten", "unreadable")
    assert len(kept_pairs(played.debate)) == int(played.verdict.details["produced"])
