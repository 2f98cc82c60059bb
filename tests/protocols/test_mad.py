"""Affirmative against negative, against debates worked by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocols.answer import Answer
from protocols.catalogue import load_protocol_prompts
from protocols.conversation import Player
from protocols.errors import ConfigError
from protocols.formats.mad import mad_log
from protocols.graph import Verdict
from protocols.machine import BudgetSpent, Opened, Replied
from protocols.mad import Mad, MadSettings
from protocols.mad_replies import ordinal, read_stated, read_verdict, short_answer, side_named
from protocols.message import Ask, ImagePart, Sampling
from protocols.prompt import PromptSet, prompt_names
from protocols.task import Task
from tests.fakes import Answering, Played, failure_of, node_of, open_debate, play, reply_to, told

TASK = Task(id="t", question="What is 24 + 19?", gold=("43",))
PLAIN = PromptSet(
    "plain",
    {
        "system": "SIDE ${side} OF ${sides} LEVEL ${level} Q ${question}",
        "moderator_system": "PRESIDE ${sides} ${source_language} ${target_language}",
        **{f"level{number}": f"L{number}" for number in range(4)},
        "affirmative": "Pro",
        "negative": "Con",
        "debater": "Third-${number}",
        "source_language": "Latin",
        "target_language": "Greek",
        "base": "BASE ${question} ${source_language}-${target_language}",
        "opening": "OPEN ${question}",
        "defend": "DEFEND ${base}",
        "oppose": "OPPOSE ${speeches}",
        "rebut": "REBUT ${ordinal} ${speeches}",
        "speech": "<${side}: ${reply}>",
        "moderate": "${ordinal} ${number} HEARD ${speeches}",
        "judge_list": "LIST ${speeches}",
        "judge_decide": "DECIDE ${question}",
        "repair": "AGAIN",
    },
    Mad.SLOTS,
)
AFF, NEG, MOD = "argue.affirmative", "argue.negative", "moderate.moderator"


def mad(*cast: str, more: int = 0, prompts: PromptSet = PLAIN, **settings: Any) -> Mad:
    roles = {role: (Player(name=role),) for role in ("affirmative", "negative", "moderator", *cast)}
    others = {"debater": tuple(Player(name=f"d{number}") for number in range(more))}
    return Mad(MadSettings(**settings), roles | others, prompts)


def ruling(answer: str = "", side: str = "", reason: str = "") -> str:
    return json.dumps({"answer": answer, "side": side, "reason": reason})


def saying(**texts: str) -> Answering:
    """Replies by node, as in ``_0_argue_negative``; who has none says its node's name, the moderator names nobody."""
    known = {name.removeprefix("_"): text for name, text in texts.items()}

    def answer(ask: Ask) -> str | None:
        node = node_of(ask)
        said = known.get(node.replace(".", "_").replace("-", "_").replace("~", "_again_"))
        if said is not None:
            return None if said == SILENT else said
        return ruling() if "moderate" in node or node.endswith("judge.1") else f"[{node}]"

    return answer


SILENT = "says nothing"
PUBLISHED = (
    "{'Whether there is a preference': 'Yes', 'Supported Side': 'Negative', 'Reason': 'it\\'s so', "
    "'debate_answer': '43'}"
)


def edges(played: Played, target: str) -> set[tuple[str, str]]:
    return {(edge.source, edge.kind) for edge in played.debate.edges if edge.target == target}


def boxed(number: int) -> str:
    return rf"so \boxed{{{number}}}"


# The whole debate


def test_verdicts_alone_are_held_to_their_schema_a_second_try_too() -> None:
    """One agent plays all roles: what is asked decides, not who is."""
    player = (Player(name="all", sampling=Sampling(structured=True)),)
    prompts = load_protocol_prompts("mad", MadSettings())
    machine = Mad(MadSettings(rounds=1), dict.fromkeys(("affirmative", "negative", "moderator"), player), prompts)
    played = play(machine, TASK, saying(_0_moderate_moderator="I cannot say"))
    held = {node_of(ask): ask.schema for ask in played.asks}
    verdict, decision = prompts.schemas["moderate"], prompts.schemas["judge_decide"]
    assert held == {
        f"0.{AFF}": "", f"0.{NEG}": "", f"0.{MOD}": verdict, f"0.{MOD}~1": verdict,
        "0.judge.0": "", "0.judge.1": decision,
    }  # fmt: skip


def test_a_debate_of_three_rounds_and_a_judge_worked_by_hand() -> None:
    played = play(
        mad(),
        TASK,
        saying(
            _0_argue_affirmative=boxed(33),
            _0_argue_negative=boxed(43),
            _2_argue_affirmative=boxed(43),
            _2_argue_negative=boxed(44),
            _2_judge_1=ruling("43.", reason="it adds up"),
        ),
    )
    rounds = [f"{number}.{step}" for number in range(3) for step in (AFF, NEG, MOD)]
    assert played.asked() == [*rounds, "2.judge.0", "2.judge.1"]
    assert [node.id for node in played.debate.utterances] == played.asked()
    assert played.verdict == Verdict(
        answer="43",
        stop_reason="rounds",
        aggregator="judge",
        support=1,
        votes=2,
        correct=True,
        details={"side": "affirmative", "reason": "it adds up"},
    )
    expected: dict[str, set[tuple[str, str]]] = {
        f"0.{AFF}": set(),
        f"0.{NEG}": {(f"0.{AFF}", "saw")},
        f"0.{MOD}": {(f"0.{AFF}", "saw"), (f"0.{NEG}", "saw")},
        "2.judge.0": {(f"0.{AFF}", "saw"), (f"0.{NEG}", "saw")},
        "2.judge.1": {("2.judge.0", "memory")},
    }
    for now, before in ((1, 0), (2, 1)):
        expected[f"{now}.{AFF}"] = {(f"{before}.{AFF}", "memory"), (f"{before}.{NEG}", "saw")}
        expected[f"{now}.{NEG}"] = {(f"{before}.{NEG}", "memory"), (f"{now}.{AFF}", "saw")}
        expected[f"{now}.{MOD}"] = {(f"{before}.{MOD}", "memory"), (f"{now}.{AFF}", "saw"), (f"{now}.{NEG}", "saw")}
    assert {node: edges(played, node) for node in played.asked()} == expected
    asked_of = [("affirmative", "affirmative"), ("negative", "negative"), ("moderator", "moderator")] * 3
    assert [(node.role, node.agent) for node in played.debate.utterances] == [*asked_of, *[("judge", "moderator")] * 2]
    assert [node.id for node in played.debate.utterances if node.answers] == [
        f"{number}.{step}" for number in range(3) for step in (AFF, NEG)
    ]


def test_what_each_is_told_in_a_chat_of_its_own() -> None:
    played = play(mad(), TASK, saying())
    said = {node: [message.text for message in played.ask(node).messages] for node in played.asked()}
    sides = "Pro, Con"
    assert said[f"0.{AFF}"] == [f"SIDE Pro OF {sides} LEVEL L2 Q {TASK.question}", f"OPEN {TASK.question}"]
    assert said[f"0.{NEG}"] == [
        f"SIDE Con OF {sides} LEVEL L2 Q {TASK.question}",
        f"OPPOSE <Pro: [0.{AFF}]>",
    ]
    assert said[f"1.{AFF}"][1:] == [f"OPEN {TASK.question}", f"[0.{AFF}]", f"REBUT second <Con: [0.{NEG}]>"]
    assert said[f"1.{NEG}"][-1] == f"REBUT second <Pro: [1.{AFF}]>"
    assert said[f"2.{MOD}"] == [
        f"PRESIDE {sides} Latin Greek",
        f"first 1 HEARD <Pro: [0.{AFF}]>\n<Con: [0.{NEG}]>",
        ruling(),
        f"second 2 HEARD <Pro: [1.{AFF}]>\n<Con: [1.{NEG}]>",
        ruling(),
        f"third 3 HEARD <Pro: [2.{AFF}]>\n<Con: [2.{NEG}]>",
    ]
    assert said["2.judge.1"] == [
        f"PRESIDE {sides} Latin Greek",
        f"LIST <Pro: [0.{AFF}]>\n<Con: [0.{NEG}]>",
        "[2.judge.0]",
        f"DECIDE {TASK.question}",
    ]
    for ask in played.asks:
        assert tuple(played.debate.conversation(node_of(ask))) == ask.messages


def test_the_moderator_ends_the_debate_with_an_answer() -> None:
    said = saying(
        _0_argue_affirmative=boxed(33),
        _0_argue_negative=boxed(43),
        _0_moderate_moderator=ruling("The answer is 43.", "Con side", "carried the one"),
    )
    played = play(mad(), TASK, said)
    assert played.asked() == [f"0.{AFF}", f"0.{NEG}", f"0.{MOD}"]
    assert played.verdict == Verdict(
        answer="43",
        stop_reason="verdict",
        aggregator="moderator",
        support=1,
        votes=2,
        correct=True,
        details={"side": "negative", "reason": "carried the one"},
    )


def test_a_preference_without_an_answer_ends_nothing() -> None:
    undecided = json.dumps({"preference": "yes", "side": "Con", "reason": "better argued", "answer": ""})
    played = play(mad(rounds=2), TASK, saying(_0_moderate_moderator=undecided))
    assert f"1.{AFF}" in played.asked()
    assert played.debate.utterance(f"0.{MOD}").answer.details["side"] == "Con"


@pytest.mark.parametrize("answer", ["none", "It is not clear yet", "both"])
def test_what_is_no_answer_of_the_tasks_format_ends_nothing(answer: str) -> None:
    played = play(mad(rounds=2), TASK, saying(_0_moderate_moderator=ruling(answer)))
    assert f"1.{AFF}" in played.asked()


def test_the_moderator_may_decide_after_the_last_round() -> None:
    played = play(mad(rounds=2), TASK, saying(_1_moderate_moderator=ruling("43")))
    assert played.asked()[-1] == f"1.{MOD}"
    assert (played.verdict.answer, played.verdict.stop_reason, played.verdict.support) == ("43", "verdict", 0)


def test_without_adaptive_all_rounds_are_debated_and_the_last_verdict_counts() -> None:
    said = saying(_0_moderate_moderator=ruling("44"), _1_moderate_moderator=ruling("43"))
    played = play(mad(rounds=2, adaptive=False), TASK, said)
    assert played.asked()[-1] == f"1.{MOD}"
    assert (played.verdict.answer, played.verdict.stop_reason, played.verdict.aggregator) == (
        "43",
        "rounds",
        "moderator",
    )
    taken_back = play(mad(rounds=2, adaptive=False), TASK, saying(_0_moderate_moderator=ruling("44")))
    assert taken_back.asked()[-1] == "1.judge.1"


def test_a_judge_who_was_asked_overrules_an_earlier_verdict() -> None:
    said = {"_0_moderate_moderator": ruling("44"), "_1_moderate_moderator": SILENT}
    played = play(mad(rounds=2, adaptive=False), TASK, saying(**said, _1_judge_1=ruling("43")))
    assert (played.verdict.answer, played.verdict.aggregator) == ("43", "judge")
    failed = play(mad(rounds=2, adaptive=False), TASK, saying(**said, _1_judge_1=SILENT))
    assert (failed.verdict.answer, failed.verdict.aggregator) == ("44", "moderator")


def test_where_both_sides_gave_the_answer_neither_won_unless_one_is_named() -> None:
    agreed = {"_0_argue_affirmative": boxed(43), "_0_argue_negative": boxed(43)}
    played = play(mad(rounds=1), TASK, saying(**agreed, _0_moderate_moderator=ruling("43")))
    assert (played.verdict.support, played.verdict.details) == (2, {})
    named = play(mad(rounds=1), TASK, saying(**agreed, _0_moderate_moderator=ruling("43", "Con")))
    assert named.verdict.details == {"side": "negative"}


def test_a_reason_without_end_is_cut() -> None:
    played = play(mad(rounds=1), TASK, saying(_0_moderate_moderator=ruling("43", reason="x" * 9000)))
    assert played.verdict.details["reason"] == "x" * 4000


# The base answer


def test_a_base_answer_is_what_the_affirmative_side_defends() -> None:
    played = play(mad("base", rounds=1), TASK, saying(_0_base_0=boxed(42), _0_moderate_moderator=ruling("43")))
    assert played.asked() == ["0.base.0", f"0.{AFF}", f"0.{NEG}", f"0.{MOD}"]
    assert [message.text for message in played.asks[0].messages] == [f"BASE {TASK.question} Latin-Greek"]
    assert played.asks[1].messages[-1].text == f"DEFEND {boxed(42)}"
    assert edges(played, f"0.{AFF}") == {("0.base.0", "saw")}
    assert edges(played, f"0.{NEG}") == {(f"0.{AFF}", "saw")}
    base = played.debate.utterance("0.base.0")
    assert (base.answer, base.answers, base.correct) == (Answer("42", "boxed"), True, False)


def test_a_base_answer_that_does_not_come_leaves_the_bare_question() -> None:
    played = play(mad("base", rounds=1), TASK, saying(_0_base_0=SILENT))
    assert played.asks[1].messages[-1].text == f"OPEN {TASK.question}"
    assert edges(played, f"0.{AFF}") == set()


def test_a_base_answer_that_cannot_be_read_is_defended_all_the_same() -> None:
    played = play(mad("base", rounds=1), TASK, saying(_0_base_0="It is a lot."))
    assert played.asks[1].messages[-1].text == "DEFEND It is a lot."


# Numbers of asks


@pytest.mark.parametrize(("cast", "rounds", "most"), [((), 3, 11), (("base",), 3, 12), (("base", "judge"), 1, 6)])
def test_four_to_three_times_the_rounds_and_three_asks(cast: tuple[str, ...], rounds: int, most: int) -> None:
    machine = mad(*cast, rounds=rounds)
    assert Mad.max_asks(machine.settings, machine.cast) == most
    assert len(play(machine, TASK, saying()).asks) == most
    at_once = play(mad(*cast, rounds=rounds), TASK, saying(_0_moderate_moderator=ruling("43")))
    assert len(at_once.asks) == 3 + ("base" in cast)


# More than two debaters


def test_more_debaters_speak_after_the_two_in_order_and_see_all_others_latest() -> None:
    machine = mad(more=2, rounds=2)
    played = play(machine, TASK, saying(_1_judge_1=ruling("43", "Third-4")))
    seats = ["affirmative", "negative", "debater-3", "debater-4"]
    assert played.asked()[:5] == [*(f"0.argue.{seat}" for seat in seats), f"0.{MOD}"]
    assert [ask.agent for ask in played.asks[:4]] == ["affirmative", "negative", "d0", "d1"]
    assert played.asks[2].messages[0].text.startswith("SIDE Third-3 OF Pro, Con, Third-3, Third-4")
    assert played.asks[2].messages[-1].text == f"OPPOSE <Pro: [0.{AFF}]>\n<Con: [0.{NEG}]>"
    assert edges(played, "1.argue.debater-3") == {
        ("0.argue.debater-3", "memory"),
        (f"1.{AFF}", "saw"),
        (f"1.{NEG}", "saw"),
        ("0.argue.debater-4", "saw"),
    }
    assert played.verdict.details["side"] == "debater 4"
    assert len(played.asks) == Mad.max_asks(machine.settings, machine.cast) == 12


def test_of_three_debaters_two_go_on_without_the_one_who_left() -> None:
    played = play(mad(more=1, rounds=3), TASK, saying(_1_argue_negative=SILENT))
    assert [node for node in played.asked() if node.startswith("2.argue")] == [f"2.{AFF}", "2.argue.debater-3"]
    assert edges(played, "1.argue.debater-3") == {("0.argue.debater-3", "memory"), (f"1.{AFF}", "saw")}
    assert edges(played, f"2.{AFF}") == {(f"1.{AFF}", "memory"), ("1.argue.debater-3", "saw")}


# The judge


@pytest.mark.parametrize(
    ("evidence", "shown"),
    [
        ("openings", {f"0.{AFF}", f"0.{NEG}"}),
        ("last", {f"1.{AFF}", f"1.{NEG}"}),
        ("full", {f"0.{AFF}", f"0.{NEG}", f"1.{AFF}", f"1.{NEG}"}),
    ],
)
def test_what_the_judge_reads(evidence: str, shown: set[str]) -> None:
    played = play(mad("judge", rounds=2, judge_evidence=evidence), TASK, saying())
    assert {source for source, _ in edges(played, "1.judge.0")} == shown
    listing = played.ask("1.judge.0").messages[-1].text
    assert listing == "LIST " + "\n".join(
        f"<{'Pro' if 'affirmative' in node else 'Con'}: [{node}]>" for node in sorted(shown)
    )
    assert {ask.agent for ask in played.asks if ask.role == "judge"} == {"judge"}


@pytest.mark.parametrize("fails", ["_1_judge_0", "_1_judge_1"])
def test_without_a_judgement_the_side_that_the_moderator_supports_decides(fails: str) -> None:
    said = {
        "_0_moderate_moderator": ruling(side="Negative", reason="earlier"),
        "_1_argue_affirmative": boxed(33),
        "_1_argue_negative": boxed(43),
        fails: SILENT,
    }
    preferring = play(mad(rounds=2), TASK, saying(**said, _1_moderate_moderator=ruling(side="Con", reason="sound")))
    assert preferring.verdict == Verdict(
        answer="43",
        stop_reason="rounds",
        aggregator="supported_side",
        support=1,
        votes=2,
        correct=True,
        details={"side": "negative", "reason": "sound"},
    )
    unread = play(mad(rounds=2, repair=False), TASK, saying(**said, _1_moderate_moderator="Con, of course"))
    assert (unread.verdict.aggregator, unread.verdict.details["reason"]) == ("supported_side", "earlier")
    assert (preferring.asked()[-1] == "1.judge.0") == (fails == "_1_judge_0")  # nothing to decide between
    undecided = play(mad(rounds=2, tie_break="first"), TASK, saying(**said))
    assert (undecided.verdict.aggregator, undecided.verdict.answer, undecided.verdict.tie) == (
        "majority_vote",
        "33",
        True,
    )


@pytest.mark.parametrize("says", ["I cannot decide.", ruling(""), ruling("neither")])
def test_a_judge_who_gives_no_answer_decides_nothing(says: str) -> None:
    said = {"_0_argue_affirmative": boxed(43), "_0_argue_negative": boxed(43)}
    played = play(mad(rounds=1, repair=False), TASK, saying(**said, _0_judge_1=says))
    assert (played.verdict.answer, played.verdict.aggregator, played.verdict.support) == ("43", "majority_vote", 2)


def test_where_no_debater_can_be_read_the_base_answer_is_left() -> None:
    played = play(
        mad("base", rounds=1), TASK, saying(_0_base_0=boxed(43), _0_argue_affirmative="", _0_argue_negative="")
    )
    assert (played.verdict.answer, played.verdict.aggregator, played.verdict.votes) == ("43", "base", 0)


# Second tries


def test_an_unreadable_verdict_is_asked_for_once_more() -> None:
    said = saying(_0_moderate_moderator="Con, I think.", _0_moderate_moderator_again_1=ruling("43", "Con"))
    played = play(mad(), TASK, said)
    assert played.asked()[-2:] == [f"0.{MOD}", f"0.{MOD}~1"]
    assert [message.text for message in played.asks[-1].messages[-2:]] == ["Con, I think.", "AGAIN"]
    assert played.verdict.aggregator == "moderator"
    twice = play(mad(rounds=1), TASK, saying(_0_moderate_moderator="?", _0_moderate_moderator_again_1="??"))
    assert twice.asked()[2:] == [f"0.{MOD}", f"0.{MOD}~1", "0.judge.0", "0.judge.1"]
    judged = play(mad(rounds=1), TASK, saying(_0_judge_1="?", _0_judge_1_again_1=ruling("43")))
    assert (judged.asked()[-1], judged.verdict.aggregator) == ("0.judge.1~1", "judge")


def test_without_repair_it_is_not() -> None:
    played = play(mad(rounds=2, repair=False), TASK, saying(_0_moderate_moderator="Con, I think."))
    assert played.asked()[3] == f"1.{AFF}"


# Failures of the others


def test_a_moderator_that_fails_has_seen_no_winner() -> None:
    played = play(mad(rounds=2), TASK, saying(_0_moderate_moderator=SILENT, _1_moderate_moderator=ruling("43")))
    assert (played.verdict.answer, played.verdict.stop_reason) == ("43", "verdict")
    assert edges(played, f"1.{MOD}") == {(f"1.{AFF}", "saw"), (f"1.{NEG}", "saw")}
    assert played.ask(f"1.{MOD}").messages[0].text == "PRESIDE Pro, Con Latin Greek"


@pytest.mark.parametrize(
    ("fails", "last", "answer", "side"),
    [
        (f"0.{NEG}", f"0.{NEG}", "33", "affirmative"),
        (f"1.{AFF}", f"1.{AFF}", "43", "negative"),
        (f"1.{NEG}", f"1.{NEG}", "34", "affirmative"),
    ],
)
def test_when_one_debater_is_left_its_latest_answer_stands(fails: str, last: str, answer: str, side: str) -> None:
    numbers = {f"0.{AFF}": 33, f"0.{NEG}": 43, f"1.{AFF}": 34}

    def say(ask: Ask) -> Any:
        node = node_of(ask)
        return failure_of(ask) if node == fails else boxed(numbers[node]) if node in numbers else ruling()

    played = play(mad(), TASK, say)
    assert played.asked()[-1] == last
    assert played.verdict == Verdict(
        answer=answer,
        stop_reason="failures",
        aggregator="last_debater",
        support=1,
        votes=1,
        correct=answer == "43",
        details={"side": side},
    )


def test_where_the_affirmative_side_never_opens_the_negative_does() -> None:
    played = play(mad("base"), TASK, saying(_0_argue_affirmative=SILENT, _0_argue_negative=boxed(43)))
    assert played.asked() == ["0.base.0", f"0.{AFF}", f"0.{NEG}"]
    assert played.asks[-1].messages[-1].text == "DEFEND [0.base.0]"
    assert (played.verdict.answer, played.verdict.stop_reason) == ("43", "failures")
    assert played.verdict.details == {"side": "negative"}


def test_where_nobody_says_anything_there_is_no_answer() -> None:
    played = play(mad("base"), TASK, lambda _: None)
    assert played.asked() == ["0.base.0", f"0.{AFF}", f"0.{NEG}"]
    assert played.verdict == Verdict(answer=None, stop_reason="no_replies", aggregator="majority_vote", correct=False)
    base = play(mad("base"), TASK, saying(_0_base_0=boxed(43), _0_argue_affirmative=SILENT, _0_argue_negative=SILENT))
    assert (base.verdict.answer, base.verdict.stop_reason, base.verdict.aggregator) == ("43", "failures", "base")


def test_a_budget_ends_it_with_what_is_known() -> None:
    played = open_debate(mad(), TASK)
    for text in (boxed(33), boxed(43), ruling(side="Pro", reason="so far")):
        played.take(Replied(reply_to(played.asks[-1], text)))
    played.take(BudgetSpent())
    assert (played.verdict.answer, played.verdict.stop_reason) == ("33", "budget")
    assert (played.verdict.aggregator, played.verdict.details["side"]) == ("supported_side", "affirmative")


def test_where_the_last_one_left_cannot_be_read_the_one_who_left_counts() -> None:
    said = saying(_0_argue_affirmative=boxed(43), _0_argue_negative="no idea", _1_argue_affirmative=SILENT)
    played = play(mad("base"), TASK, said)
    assert (played.verdict.answer, played.verdict.stop_reason) == ("43", "failures")
    assert (played.verdict.aggregator, played.verdict.support) == ("majority_vote", 1)


# Stop rules of all protocols


def test_debaters_who_agree_need_no_moderator_where_unanimity_stops() -> None:
    said = saying(_0_argue_affirmative=boxed(43), _0_argue_negative="the answer is 43.0")
    played = play(mad(stop=("unanimity",)), TASK, said)
    assert played.asked() == [f"0.{AFF}", f"0.{NEG}"]
    assert played.verdict == Verdict(
        answer="43", stop_reason="unanimity", aggregator="majority_vote", support=2, votes=2, correct=True
    )
    assert len(play(mad(), TASK, said).asks) > 2


def test_what_the_debaters_agree_on_overrules_what_the_moderator_said_before() -> None:
    openings = {"_0_argue_affirmative": boxed(33), "_0_argue_negative": boxed(43)}
    agreed = {"_1_argue_affirmative": boxed(43), "_1_argue_negative": boxed(43)}
    said = saying(**openings, **agreed, _0_moderate_moderator=ruling("44"))
    played = play(mad(adaptive=False, stop=("unanimity",)), TASK, said)
    assert (played.verdict.answer, played.verdict.aggregator) == ("43", "majority_vote")


def test_an_oracle_stops_when_all_are_right_and_says_so() -> None:
    said = saying(_0_argue_affirmative=boxed(33), _0_argue_negative=boxed(43), _1_argue_affirmative=boxed(43))
    played = play(mad(stop=("oracle",), rounds=2), TASK, said)
    assert played.verdict.oracle
    assert played.verdict.stop_reason == "rounds"
    stopped = play(mad(stop=("oracle",)), TASK, saying(_0_argue_affirmative=boxed(43), _0_argue_negative=boxed(43)))
    assert (stopped.verdict.stop_reason, stopped.verdict.correct) == ("oracle", True)


# Settings and prompts


@pytest.mark.parametrize("level", range(4))
def test_the_level_of_disagreement_is_a_sentence_of_the_debaters_alone(level: int) -> None:
    played = play(mad(rounds=1, level=level), TASK, saying())
    assert f"LEVEL L{level} " in told(played.ask(f"0.{AFF}"))
    assert f"LEVEL L{level} " in told(played.ask(f"0.{NEG}"))
    assert "LEVEL" not in played.ask(f"0.{MOD}").messages[0].text


@pytest.mark.parametrize(
    ("settings", "says"), [({"level": 4}, "level=4"), ({"level": -1}, "level=-1"), ({"rounds": 0}, "rounds=0")]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        MadSettings(**settings)


def test_a_cast_without_a_moderator_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cast\.moderator is empty"):
        Mad(MadSettings(), {"affirmative": (Player(name="a"),), "negative": (Player(name="b"),)}, PLAIN)


def test_images_go_with_the_first_message_of_each_chat() -> None:
    image = ImagePart(sha256="ab" * 32)
    task = Task(id="t", question="Which?", images=(image,), gold=("43",))
    played = play(mad("base", rounds=2), task, saying())
    shown = {node_of(ask) for ask in played.asks if ask.messages[-1].images == (image,)}
    assert shown == {"0.base.0", f"0.{AFF}", f"0.{NEG}", f"0.{MOD}", "1.judge.0"}


def test_a_task_names_its_languages() -> None:
    details = {"source_language": "Chinese", "target_language": "Welsh"}
    task = Task(id="t", question="吃了吗", gold=("x",), answer_format="text", details=details)
    played = play(mad("base", rounds=1), task, saying())
    assert played.asks[0].messages[-1].text == "BASE 吃了吗 Chinese-Welsh"
    assert played.ask(f"0.{MOD}").messages[0].text == "PRESIDE Pro, Con Chinese Welsh"


def test_a_translation_is_read_behind_its_mark_and_a_verdicts_is_kept_whole() -> None:
    task = Task(id="t", question="吃了吗", gold=("How are you",), answer_format="text")
    said = saying(
        _0_base_0="Eaten yet?",
        _0_argue_affirmative="It asks how one is.\n译文：How are you?",
        _0_argue_negative="I doubt it.\nNo more to say.",
        _0_moderate_moderator=ruling("The answer is blowing.\nIn the wind.", "反方"),
    )
    played = play(
        mad("base", prompts=load_protocol_prompts("mad", MadSettings(prompts="mad.translation.zh"))), task, said
    )
    read = {node.id: node.answer.value for node in played.debate.utterances}
    assert read["0.base.0"] == "Eaten yet?"
    assert read[f"0.{AFF}"] == "How are you?"
    assert read[f"0.{NEG}"] is None
    assert played.verdict.answer == "The answer is blowing.\nIn the wind"
    assert played.verdict.details["side"] == "negative"


def test_a_canonical_spelling_is_found_for_verdicts_too() -> None:
    played = open_debate(mad(), TASK)
    for text in (boxed(33), boxed(43)):
        played.take(Replied(reply_to(played.asks[-1], text)))
    reply = reply_to(played.asks[-1], ruling("43"))
    assert played.machine.unsettled(reply) == "43"
    played.take(Replied(reply, canonical="forty-three"))
    assert played.verdict.canonical == "forty-three"


@pytest.mark.parametrize("name", [name for name in prompt_names() if name.startswith("mad.")])
def test_every_shipped_set_shows_what_a_debate_needs(name: str) -> None:
    prompts = load_protocol_prompts("mad", MadSettings(prompts=name))
    for part in ("oppose", "rebut", "moderate", "judge_list"):
        assert prompts.uses(part, "speeches"), part
    assert prompts.uses("defend", "base")
    assert prompts.uses("speech", "side")
    assert {prompts.fill("affirmative"), prompts.fill("negative")} & {"", None} == set()
    for part in ("moderate", "judge_decide"):
        said = prompts.fill(part, **dict.fromkeys(Mad.SLOTS[part], "")) + str(prompts.examples("moderate"))
        assert '"answer"' in said
        assert '"side"' in said
    if "sum" not in name:
        assert len({prompts.fill(f"level{number}") for number in range(4)}) == 4
        assert prompts.uses("system", "level")


def test_a_debate_can_be_written_as_one_of_the_published_logs() -> None:
    said = saying(_0_argue_affirmative=boxed(33), _0_moderate_moderator=ruling("43", "Con", "sum"))
    log = mad_log(play(mad("base"), TASK, said).debate)
    assert (log["debate_answer"], log["Supported Side"].lower(), log["Reason"]) == ("43", "negative", "sum")
    assert set(log["players"]) == {"Affirmative side", "Negative side", "Moderator", "Baseline"}


# Readers


@pytest.mark.parametrize(
    ("text", "value", "side"),
    [
        ('{"answer": "43.", "side": "Affirmative"}', "43", "Affirmative"),
        (PUBLISHED, "43", "Negative"),
        ('{"Supported Side": "Negative", "Reason": "", "debate_translation": 43}', "43", "Negative"),
        ('```json\n{"Answer": "24 + 19 = 43", "Side": ""}\n```', "43", None),
        ('{"answer": null, "side": "both"}', None, "both"),
        ('{"answer": "unclear"}', None, None),
    ],
)
def test_verdicts_are_read_under_our_names_and_the_published_ones(
    text: str, value: str | None, side: str | None
) -> None:
    read = read_verdict(text, TASK)
    assert (read.value, read.how, read.details.get("side")) == (value, "fields", side)


@pytest.mark.parametrize("text", ["", "43", "Negative wins", "{", '{"reason": "x"}', "__import__('os').getcwd()"])
def test_what_is_no_verdict_is_not_read(text: str) -> None:
    assert read_verdict(text, TASK) == Answer()


@pytest.mark.parametrize(
    ("text", "answer_format", "choices", "value"),
    [
        ("43.", "number", (), "43"),
        ("x + 1", "boxed", (), "x + 1"),
        ("Paris.", "text", (), "Paris"),
        ("The answer is blowing in the wind", "text", (), "The answer is blowing in the wind"),
        ("(B)", "choice", ("Rome", "Paris"), "B"),
        ("Paris", "choice", ("Rome", "Paris"), "B"),
        ("Yes.", "yes_no", (), "yes"),
        ("seven", "bracket", (), "seven"),
        ("7.0", "final", (), "7"),
        ("who knows", "number", (), None),
        ("", "text", (), None),
    ],
)
def test_an_answer_that_stands_alone(
    text: str, answer_format: str, choices: tuple[str, ...], value: str | None
) -> None:
    task = Task(id="t", question="q", answer_format=answer_format, choices=choices)
    assert short_answer(text, task).value == value


def test_an_answer_in_mathematics_has_its_one_spelling() -> None:
    task = Task(id="t", question="q", answer_format="math")
    one, other = (read_verdict(ruling(text), task) for text in (r"\frac{1}{2}", r"$\frac12$"))
    assert one.canonical == other.canonical != ""
    assert read_verdict(r'{"answer": "\frac{1}{2}"}', task) == one  # its backslash not doubled, as JSON would have it
    assert read_verdict(r'{"answer": "2 \times x"}', task) == read_verdict(ruling(r"2 \times x"), task)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("It was early.\nAnswer: Paris.", "Paris"),
        ("**Answer:** Paris", "Paris"),
        ("My answer is Rome. No: the answer is Paris", "Paris"),
        ("Translation:\n\nHe kicked the bucket.", "He kicked the bucket"),
        ("理由如上。\n译文：他死了。", "他死了。"),
        ("答案是：巴黎", "巴黎"),
        ("The translation is too literal.\nNobody talks like that.", None),
        ("Paris", None),
        ("Answer:", None),
        ("", None),
    ],
)
def test_what_a_debater_states(text: str, value: str | None) -> None:
    assert read_stated(text).value == value


@pytest.mark.parametrize(
    ("text", "seat"),
    [
        ("Negative", "neg"),
        ("the NEGATIVE side", "neg"),
        ("反方", "neg"),
        ("Affirmative and Negative", ""),
        ("debater 3", "three"),
        ("debater 31", ""),
        ("neither", ""),
        ("", ""),
    ],
)
def test_the_side_that_is_named(text: str, seat: str) -> None:
    names = {"Affirmative": "aff", "Negative": "neg", "反方": "neg", "Debater 3": "three", "": "none"}
    assert side_named(text, names) == seat


def test_ordinals_go_on_beyond_the_tenth() -> None:
    expected = {1: "first", 10: "tenth", 11: "11th", 13: "13th", 21: "21st", 22: "22nd", 23: "23rd", 111: "111th"}
    assert {number: ordinal(number) for number in expected} == expected
    twelve = play(mad(rounds=12), TASK, saying())
    assert twelve.ask(f"11.{MOD}").messages[-1].text.startswith("12th 12 HEARD")


def test_a_budget_spent_before_anybody_spoke_leaves_no_answer() -> None:
    machine = mad()
    machine.receive(Opened(debate_id="d", task=TASK, seed=0))
    assert machine.receive(BudgetSpent())[-1].verdict.answer is None  # type: ignore[union-attr]
