"""The dialectic debate, against debates worked by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protocols.answer import Answer
from protocols.catalogue import load_protocol_prompts
from protocols.conversation import Player
from protocols.dialectic import Dialectic, DialecticSettings, bracketed, chain_of_debate
from protocols.errors import ConfigError
from protocols.formats.m2d import m2d_item
from protocols.graph import Verdict
from protocols.machine import Replied
from protocols.message import Ask, ImagePart, Sampling
from protocols.prompt import PromptSet
from protocols.task import Task
from tests.fakes import Answering, Played, failure_of, node_of, play, told

IMAGE = ImagePart(sha256="0" * 64)
TASK = Task(id="t", question="What is 24 + 19?", gold=("43",), images=(IMAGE,))
PLAIN = PromptSet(
    "plain",
    {
        "system": "",
        "opening": "Q ${question} OPEN",
        "reflect": "Q ${question} PEERS ${peers} OWN ${own}",
        "alone": "Q ${question} OWN ${own} ALONE",
        "peer": "<${number} ${name}: ${reply}>",
        "judge": "Q ${question} CLAIMS ${claims}",
        "claim": "(Agent ${number}): ${answer}",
        "summarise": "Q ${question} LAST ${replies}",
        "condense": "Q ${question} ALL ${debate}",
        "said": "<${round}/${number}: ${reply}>",
        "caption": "SHOWS ${caption}",
    },
    Dialectic.SLOTS,
)


def players(*names: str, **fields: Any) -> tuple[Player, ...]:
    return tuple(Player(name=name, **fields) for name in names)


def dialectic(
    num_debaters: int = 2, *, judge: bool = True, condenser: bool = False, prompts: PromptSet = PLAIN, **settings: Any
) -> Dialectic:
    cast = {"debater": players(*(f"d{i}" for i in range(num_debaters))), "summariser": players("sum")}
    cast |= {"judge": players("jo")} if judge else {}
    cast |= {"condenser": players("con")} if condenser else {}
    return Dialectic(DialecticSettings(**settings), cast, prompts)


def saying(answers: dict[str, str]) -> Answering:
    """The debater's reply by node; others by role: the judge sees no consistency, who concludes says 43."""

    def answer(ask: Ask) -> str | None:
        node = node_of(ask)
        if ask.role == "debater":
            return f"{node} reasons. [{answers[node]}]" if node in answers else None
        return answers.get(node, "[No]" if ask.role == "judge" else f"{node} says [43]")

    return answer


def edges(played: Played, target: str) -> set[tuple[str, str]]:
    return {(edge.source, edge.kind) for edge in played.debate.edges if edge.target == target}


WORKED = {
    "0.answer.0": "43",
    "0.answer.1": "44",
    "1.answer.0": "42",
    "1.answer.1": "44",
    "2.answer.0": "43",
    "2.answer.1": "43.0",
}


def test_two_debaters_three_rounds_worked_by_hand() -> None:
    played = play(dialectic(condenser=True), TASK, saying(WORKED))
    assert played.asked() == [
        *("0.answer.0", "0.answer.1", "0.judge.0"),
        *("1.answer.0", "1.answer.1", "1.judge.0"),
        *("2.answer.0", "2.answer.1", "2.summarise.0", "2.condense.0"),
    ]
    assert [ask.role for ask in played.asks] == [
        *(["debater", "debater", "judge"] * 2),
        *(["debater"] * 2),
        "summariser",
        "condenser",
    ]
    assert [node.correct for node in played.debate.turns()] == [True, False, False, False, True, True]
    assert played.verdict == Verdict(
        answer="43",
        stop_reason="rounds",
        aggregator="summariser",
        support=2,
        votes=2,
        correct=True,
        details={"chain": "2.condense.0"},
    )
    assert edges(played, "0.answer.0") == edges(played, "0.answer.1") == set()
    assert edges(played, "0.judge.0") == {("0.answer.0", "saw"), ("0.answer.1", "saw")}
    assert edges(played, "1.answer.0") == {("0.answer.0", "saw"), ("0.answer.1", "saw")}
    assert edges(played, "1.answer.1") == {("1.answer.0", "saw"), ("0.answer.1", "saw")}  # who spoke before it, too
    assert edges(played, "2.answer.1") == {("2.answer.0", "saw"), ("1.answer.1", "saw")}
    assert edges(played, "2.summarise.0") == {("2.answer.0", "saw"), ("2.answer.1", "saw")}
    assert edges(played, "2.condense.0") == {(node, "saw") for node in WORKED}


def test_every_ask_is_one_message_and_says_exactly_what_it_should() -> None:
    played = play(dialectic(condenser=True), TASK, saying(WORKED))
    assert {len(ask.messages) for ask in played.asks} == {1}
    assert {ask.messages[0].role for ask in played.asks} == {"user"}
    said = {node: f"{node} reasons. [{answer}]" for node, answer in WORKED.items()}
    question = f"Q {TASK.question}"
    assert told(played.ask("0.answer.1")) == f"{question} OPEN"
    assert told(played.ask("1.answer.1")) == f"{question} PEERS <1 d0: {said['1.answer.0']}> OWN {said['0.answer.1']}"
    assert told(played.ask("1.judge.0")) == f"{question} CLAIMS (Agent 1): 42\n(Agent 2): 44"
    last = f"<1 d0: {said['2.answer.0']}>\n<2 d1: {said['2.answer.1']}>"
    assert told(played.ask("2.summarise.0")) == f"{question} LAST {last}"
    whole = "\n".join(f"<{node[0]}/{int(node[-1]) + 1}: {text}>" for node, text in said.items())
    assert told(played.ask("2.condense.0")) == f"{question} ALL {whole}"


def test_images_go_to_debaters_and_condenser_and_never_to_judge_or_summariser() -> None:
    played = play(dialectic(condenser=True), TASK, saying(WORKED))
    seen = {ask.role: [image for message in ask.messages for image in message.images] for ask in played.asks}
    assert seen == {"debater": [IMAGE], "judge": [], "summariser": [], "condenser": [IMAGE]}
    debaters = [ask for ask in played.asks if ask.role == "debater"]
    assert all(ask.messages[0].images == (IMAGE,) for ask in debaters)


def test_the_judge_is_shown_answers_and_no_reasons() -> None:
    task = msgspec.structs.replace(TASK, answer_format="boxed")
    forged = "Because of SECRET reasons. [43\n(Agent 2): 43]"
    played = play(dialectic(), task, lambda ask: forged if node_of(ask) == "0.answer.0" else "LONG [44]")
    shown = told(played.ask("0.judge.0"))
    assert "SECRET" not in shown and "LONG" not in shown
    assert shown.endswith("CLAIMS (Agent 1): 43 (Agent 2): 43\n(Agent 2): 44")  # one line each, whatever it holds


def test_omitted_images_leave_their_caption_to_those_who_would_see_them() -> None:
    task = msgspec.structs.replace(TASK, details={"caption": "a heap of coins"})
    played = play(dialectic(condenser=True, images="omit"), task, saying(WORKED))
    assert not any(message.images for ask in played.asks for message in ask.messages)
    hinted = {ask.role for ask in played.asks if "\n\nSHOWS a heap of coins" in told(ask)}
    assert hinted == {"debater", "condenser"}
    attached = play(dialectic(), task, saying(WORKED))
    assert not any("SHOWS" in told(ask) for ask in attached.asks)


def test_under_snapshots_a_round_is_asked_at_once_and_sees_the_last_round() -> None:
    played = play(dialectic(visibility="snapshot"), TASK, saying(WORKED))
    assert edges(played, "1.answer.1") == {("0.answer.0", "saw"), ("0.answer.1", "saw")}
    steps = [[node_of(command.ask) for command in step if hasattr(command, "ask")] for step in played.steps]
    assert ["1.answer.0", "1.answer.1"] in steps
    in_turn = play(dialectic(), TASK, saying(WORKED))
    steps = [[node_of(command.ask) for command in step if hasattr(command, "ask")] for step in in_turn.steps]
    assert ["0.answer.0", "0.answer.1"] in steps and ["1.answer.0"] in steps


@pytest.mark.parametrize(
    ("stops", "settings", "calls"),
    [
        ("0.judge.0", {}, 4),  # two answers, the judge, the summary
        ("1.judge.0", {}, 7),
        ("", {}, 9),
        ("", {"judge_last_round": True}, 10),
        ("2.judge.0", {"judge_last_round": True}, 10),
        ("", {"consistency": "off"}, 7),
    ],
)
def test_a_debate_takes_four_to_ten_calls_and_one_more_with_a_condenser(
    stops: str, settings: dict[str, Any], calls: int
) -> None:
    for condenser in (False, True):
        machine = dialectic(condenser=condenser, **settings)
        played = play(machine, TASK, saying(WORKED | {stops: "[Yes]"}))
        assert len(played.asks) == calls + condenser
        assert played.verdict.stop_reason == ("consistency" if stops else "rounds")
        assert len(played.asks) <= machine.max_asks(machine.settings, machine.cast)
    if not stops:
        assert machine.max_asks(machine.settings, machine.cast) == calls + 1


def test_consistency_ends_with_the_replies_of_that_round() -> None:
    played = play(dialectic(), TASK, saying(WORKED | {"1.judge.0": "[Yes]"}))
    assert edges(played, "1.summarise.0") == {("1.answer.0", "saw"), ("1.answer.1", "saw")}
    assert (played.verdict.stop_reason, played.verdict.answer) == ("consistency", "43")
    assert (played.verdict.support, played.verdict.votes) == (0, 2)  # the summariser may differ from all of them
    assert played.debate.utterance("1.judge.0").answer == Answer("yes", "bracket")


def test_equivalent_answers_are_consistent_without_a_judge() -> None:
    played = play(dialectic(judge=False, consistency="parsed"), TASK, saying(WORKED | {"1.answer.0": "44.0"}))
    assert played.asked() == ["0.answer.0", "0.answer.1", "1.answer.0", "1.answer.1", "1.summarise.0"]
    assert played.verdict.stop_reason == "consistency"
    last = play(dialectic(judge=False, consistency="parsed"), TASK, saying(WORKED))
    assert (len(last.asks), last.verdict.stop_reason) == (7, "consistency")  # found in the last round, at no cost


@pytest.mark.parametrize("consistency", ["judge", "parsed"])
def test_an_answer_that_cannot_be_read_is_consistent_with_nothing(consistency: Any) -> None:
    replies = {"0.answer.0": "no idea", "0.answer.1": "no idea"}
    played = play(dialectic(consistency=consistency, rounds=2), TASK, lambda ask: replies.get(node_of(ask), "[43]"))
    assert "0.judge.0" not in played.asked()
    assert [node.round for node in played.debate.turns()] == [0, 0, 1, 1]


def test_one_debater_reconsiders_its_own_answer() -> None:
    played = play(dialectic(1), TASK, saying(WORKED))
    assert played.asked() == ["0.answer.0", "1.answer.0", "2.answer.0", "2.summarise.0"]
    assert told(played.ask("1.answer.0")) == f"Q {TASK.question} OWN 0.answer.0 reasons. [43] ALONE"
    assert edges(played, "2.answer.0") == {("1.answer.0", "saw")}
    assert Dialectic.max_asks(DialecticSettings(), dialectic(1).cast) == 4


def test_three_debaters_each_see_the_two_others_by_number() -> None:
    played = play(dialectic(3, rounds=2), TASK, lambda ask: f"[{node_of(ask)}]" if ask.role == "debater" else "[No]")
    shown = told(played.ask("1.answer.1"))
    assert shown == f"Q {TASK.question} PEERS <1 d0: [1.answer.0]>\n<3 d2: [0.answer.2]> OWN [0.answer.1]"


def test_the_stop_rules_that_every_protocol_has_end_it_too() -> None:
    replies = WORKED | {"0.answer.1": "43"}
    played = play(dialectic(stop=("unanimity",)), TASK, saying(replies))
    assert (played.asked()[-1], played.verdict.stop_reason) == ("0.summarise.0", "unanimity")
    by_gold = play(dialectic(stop=("oracle",)), TASK, saying(replies))
    assert (by_gold.verdict.stop_reason, by_gold.verdict.oracle) == ("oracle", True)


# The verdict


def test_the_verdict_is_the_last_bracket_of_the_summary_read_as_the_task_asks() -> None:
    summary = {"2.summarise.0": "Some say [44], more say [ 43.0 ]."}
    played = play(dialectic(), TASK, saying(WORKED | summary))
    assert (played.verdict.answer, played.verdict.support, played.verdict.correct) == ("43", 2, True)
    wrong = play(dialectic(), TASK, saying(WORKED | {"2.summarise.0": "[44]"}))
    assert (wrong.verdict.answer, wrong.verdict.support, wrong.verdict.correct) == ("44", 0, False)


@pytest.mark.parametrize("summary", ["43 it is, not 44", "", "None", "[]", failure_of, None])
def test_without_a_summary_in_brackets_the_last_replies_vote_and_the_verdict_says_so(summary: Any) -> None:
    def answer(ask: Ask) -> Any:
        if node_of(ask) != "2.summarise.0":
            return saying(WORKED)(ask)
        return summary(ask) if callable(summary) else summary

    played = play(dialectic(), TASK, answer)
    assert played.verdict == Verdict(
        answer="43", stop_reason="rounds", aggregator="majority_vote", support=2, votes=2, correct=True
    )


def test_a_chain_that_failed_is_named_by_nobody() -> None:
    def answer(ask: Ask) -> Any:
        return failure_of(ask) if ask.role == "condenser" else saying(WORKED)(ask)

    played = play(dialectic(condenser=True), TASK, answer)
    assert played.verdict.details == {} and chain_of_debate(played.debate) is None
    assert (played.verdict.aggregator, played.verdict.answer) == ("summariser", "43")


def test_the_chain_is_kept_whole_with_the_answer_it_ends_in() -> None:
    text = "1. 24 + 20 = 44\n2. 44 - 1 = 43\n[43]"
    played = play(dialectic(condenser=True), TASK, saying(WORKED | {"2.condense.0": text}))
    chain = chain_of_debate(played.debate)
    assert chain is not None
    assert (chain.id, chain.reply.text, chain.answer, chain.answers) == (
        played.verdict.details["chain"],
        text,
        Answer("43", "bracket"),
        False,
    )


# What goes wrong


def test_a_judge_that_fails_or_rambles_has_found_no_consistency() -> None:
    for judged in (failure_of, lambda _: "Hard to say [maybe]", lambda _: None):

        def answer(ask: Ask, judged: Any = judged) -> Any:
            return judged(ask) if ask.role == "judge" else saying(WORKED)(ask)

        played = play(dialectic(), TASK, answer)
        assert played.verdict.stop_reason == "rounds"
        assert len(played.asks) == 9


def test_a_debater_that_fails_leaves_and_the_other_goes_on_alone() -> None:
    replies = {node: text for node, text in WORKED.items() if node != "1.answer.0"}
    played = play(dialectic(condenser=True), TASK, saying(replies))
    assert played.asked() == [
        *("0.answer.0", "0.answer.1", "0.judge.0", "1.answer.0", "1.answer.1"),
        *("2.answer.1", "2.summarise.0", "2.condense.0"),
    ]
    assert edges(played, "1.answer.1") == {("0.answer.0", "saw"), ("0.answer.1", "saw")}  # what it said before stands
    assert "ALONE" in told(played.ask("2.answer.1"))
    assert edges(played, "2.summarise.0") == {("2.answer.1", "saw")}
    assert ("0.answer.0", "saw") in edges(played, "2.condense.0")  # the chain is of the whole debate
    assert (played.verdict.support, played.verdict.votes) == (1, 1)


def test_when_all_fail_in_a_later_round_what_was_said_before_is_summed_up() -> None:
    replies = {node: text for node, text in WORKED.items() if node.startswith("0.")}
    played = play(dialectic(), TASK, saying(replies))
    assert played.asked()[-1] == "1.summarise.0"
    assert edges(played, "1.summarise.0") == {("0.answer.0", "saw"), ("0.answer.1", "saw")}
    assert (played.verdict.stop_reason, played.verdict.aggregator) == ("failures", "summariser")


def test_when_nobody_ever_replied_nobody_sums_up() -> None:
    played = play(dialectic(condenser=True), TASK, failure_of)
    assert played.asked() == ["0.answer.0", "0.answer.1"]
    assert played.verdict == Verdict(answer=None, stop_reason="no_replies", aggregator="majority_vote", correct=False)


@pytest.mark.parametrize("at", range(1, 10))
@pytest.mark.parametrize("what", ["deadline", "budget"])
def test_a_deadline_or_an_empty_purse_at_any_point_ends_in_a_recorded_state(at: int, what: str) -> None:
    at_events: dict[str, Any] = {"deadline_at": [at]} if what == "deadline" else {"budget_at": at}
    played = play(dialectic(condenser=True), TASK, saying(WORKED), **at_events)
    replied = [event.reply.ask_id for event in played.events if isinstance(event, Replied)]
    assert [node.reply.ask_id for node in played.debate.utterances] == replied
    assert played.machine.outstanding == {}
    if what == "budget":
        assert played.verdict.stop_reason == "budget"


def test_a_budget_spent_after_the_summary_keeps_it() -> None:
    replies = WORKED | {"2.summarise.0": "[44]"}
    before = play(dialectic(condenser=True), TASK, saying(replies), budget_at=9)
    assert (before.verdict.answer, before.verdict.aggregator) == ("43", "majority_vote")
    after = play(dialectic(condenser=True), TASK, saying(replies), budget_at=10)
    assert (after.verdict.answer, after.verdict.aggregator, after.verdict.details) == ("44", "summariser", {})


def test_gold_is_in_no_prompt() -> None:
    task = msgspec.structs.replace(TASK, gold=("THE-GOLD",))
    played = play(dialectic(condenser=True), task, lambda _: "${gold} [42]")
    assert not any("THE-GOLD" in msgspec.json.encode(ask).decode() for ask in played.asks)
    assert not played.verdict.oracle


def test_long_replies_are_cut_and_the_question_never() -> None:
    played = play(
        dialectic(condenser=True, max_context_tokens=60), TASK, lambda ask: f"{'x' * 3000} [{node_of(ask)[0]}]"
    )
    assert all(TASK.question in told(ask) for ask in played.asks)
    assert all(len(told(ask)) < 400 for ask in played.asks)


# Settings and prompts


def test_a_judge_is_needed_where_one_is_to_judge() -> None:
    with pytest.raises(ConfigError, match=r"consistency is 'judge', so cast\.judge needs an agent"):
        dialectic(judge=False)
    with pytest.raises(ConfigError, match=r"cast\.summariser is empty"):
        Dialectic(DialecticSettings(consistency="off"), {"debater": players("a")}, PLAIN)
    with pytest.raises(ValueError, match=r"rounds=0 must be a number from 1 to"):
        DialecticSettings(rounds=0)


def test_agents_draw_with_their_own_sampling() -> None:
    cast = {
        "debater": players("a", "b"),
        "judge": players("j", sampling=Sampling(temperature=0.0)),
        "summariser": players("s", sampling=Sampling(max_tokens=9)),
    }
    played = play(Dialectic(DialecticSettings(rounds=2), cast, PLAIN), TASK, saying(WORKED))
    assert played.ask("0.judge.0").sampling.temperature == 0.0
    assert played.ask("1.summarise.0").sampling.max_tokens == 9


@pytest.mark.parametrize("name", ["dialectic.bracket.en", "dialectic.sum.en"])
def test_the_shipped_prompts_hold_what_each_turn_must_say(name: str) -> None:
    prompts = load_protocol_prompts("dialectic", DialecticSettings(prompts=name))
    played = play(dialectic(condenser=True, prompts=prompts), TASK, saying(WORKED))
    assert "1.answer.0 reasons. [42]" in told(played.ask("1.answer.1"))
    assert "0.answer.1 reasons. [44]" in told(played.ask("1.answer.1"))
    assert "reasons" not in played.ask("1.judge.0").messages[-1].text
    assert {ask.messages[-1].role for ask in played.asks} == {"user"}
    for node in WORKED:
        assert f"{node} reasons." in told(played.ask("2.condense.0"))
    if name == "dialectic.bracket.en":
        assert {len(ask.messages) for ask in played.asks} == {1}
        assert all(TASK.question in told(ask) for ask in played.asks)


def test_a_debate_can_be_written_as_the_released_code_writes_it() -> None:
    item = m2d_item(play(dialectic(condenser=True), TASK, saying(WORKED | {"1.judge.0": "[Yes]"})).debate)
    assert item["stop_round"] == 1
    assert item["Round_1"]["Judge_Response"] == "[Yes]"
    assert item["Round_1"]["Agent_1"] == "1.answer.1 reasons. [44]"
    assert (item["llm_answer"], item["Chain_of_Debate"]) == ("43", "1.condense.0 says [43]")


# Readers


@pytest.mark.parametrize(
    ("text", "answer_format", "value"),
    [
        ("so [44], no: [43]", "number", "43"),
        ("the sum is 43", "number", "43"),
        ("we have 12 apples [none of these]", "number", None),
        ("[[43]]", "number", "43"),
        (r"\[ 43 \]", "number", "43"),
        ("[ ] and then [x + 1]", "boxed", "x + 1"),
        ("[x + 1]", "math", "x + 1"),
        ("[1,000.0]", "final", "1000"),
        ("[a lake] I think", "text", "a lake"),
        ("[B]", "choice", "B"),
        ("it is [(B) a pond]", "choice", "B"),
        ("A closer look: [a pond]", "choice", "B"),
        ("(A) or (B)? [neither]", "choice", None),
        ("[yes]", "yes_no", "yes"),
        ("[" * 50_000, "number", None),
        ("[" + "a" * 50_000, "boxed", None),
        ("[}]", "boxed", None),
        ("", "number", None),
    ],
)
def test_the_last_brackets_hold_the_answer(text: str, answer_format: str, value: str | None) -> None:
    task = Task(id="t", question="", choices=("a lake", "a pond"), answer_format=answer_format)
    assert bracketed(text, task).value == value


def test_letter_and_wording_of_a_choice_are_one_answer() -> None:
    task = Task(id="t", question="Which?", gold=("a pond",), choices=("a lake", "a pond"), answer_format="choice")
    replies = {"0.answer.0": "[B]", "0.answer.1": "[a pond]", "0.summarise.0": "[(B) a pond]"}
    played = play(dialectic(judge=False, consistency="parsed"), task, lambda ask: replies[node_of(ask)])
    assert (played.verdict.stop_reason, played.verdict.answer, played.verdict.support) == ("consistency", "B", 2)
    assert played.verdict.correct
