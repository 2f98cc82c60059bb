"""Persuasion, against debates worked by hand. With seed 2 A defends "stairs" and B "roof"."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protocols.answer import Answer
from protocols.catalogue import load_protocol_prompts
from protocols.conversation import Player
from protocols.errors import ConfigError, IllegalEventError, TaskError
from protocols.graph import Verdict
from protocols.machine import BudgetSpent, Opened, Replied
from protocols.message import Ask, ImagePart
from protocols.persuasion import Persuasion, PersuasionSettings
from protocols.prompt import PromptSet
from protocols.task import Task
from tests.fakes import Answering, Played, failure_of, node_of, open_debate, play, reply_to, told

PASSAGE = "The cat -- grey, as ever -- sleeps under the stairs."
CAT = Task(
    id="t",
    question="Where is the cat?",
    choices=("roof", "stairs"),
    gold=("B",),
    answer_format="choice",
    details={"passage": PASSAGE},
)
PLAIN = PromptSet(
    "plain",
    {
        "system": "",
        "debate": "${name_a}=${answer_a} ${name_b}=${answer_b}",
        "consultancy": "A=${answer_a} B=${answer_b}",
        "background": "READ ${passage}",
        "debater": "Debater ${letter}",
        "consultant": "Consultant",
        "questioner": "Judge",
        "entry": "<${name}: ${text}>",
        "opening": "${question} ${rules} ${background} OPEN ${name} for ${position} not ${opposing}",
        "rebuttal": "${question} ${rules} ${background} ${transcript} REBUT ${name} for ${position} not ${opposing}",
        "consult": "${question} ${rules} ${background} ${transcript} CONSULT ${name} for ${position} not ${opposing}",
        "criticise": "${transcript} ${background} CRITICISE ${name} ${draft}",
        "refine": "${transcript} ${background} REFINE ${name} ${draft} BY ${critique}",
        "prefer": "${transcript} PREFER ${name} ${draft}",
        "ask": "${rules} ${transcript} ASK",
        "judge": "${question} ${rules}\n${transcript}\nJUDGE",
        "judge_cot": "${question} ${rules}\n${transcript}\nTHINK",
        "mend_judgement": "A or B?",
        "mend_score": "0 to 10?",
    },
    Persuasion.SLOTS,
)


def persuasion(*, judges: int = 1, prompts: PromptSet = PLAIN, **settings: Any) -> Persuasion:
    chosen = PersuasionSettings(**settings)
    debaters = ("ada", "bo") if chosen.method == "debate" else ("ada",)
    cast = {"debater": debaters, "judge": tuple(f"j{number}" for number in range(judges)), "critic": ("cy",)}
    cast |= {"preference": ("pi",)} if chosen.best_of > 1 else {}
    return Persuasion(
        chosen, {role: tuple(Player(name=name) for name in names) for role, names in cast.items()}, prompts
    )


def says(**texts: str | None) -> Answering:
    """Each node its own name, judges A, but for the texts given by node ("_1_judge_0"); None fails."""

    def answer(ask: Ask) -> Any:
        node = node_of(ask)
        said = texts.get("_" + node.replace(".", "_").replace("-", "_"), "A" if ".judge." in node else f"[{node}]")
        return failure_of(ask) if said is None else said

    return answer


def edges(played: Played, target: str) -> list[tuple[str, str]]:
    return [(edge.source, edge.kind) for edge in played.debate.edges if edge.target == target]


def seen(played: Played, target: str) -> list[str]:
    return [source for source, _ in edges(played, target)]


def last(played: Played, node: str) -> str:
    return played.ask(node).messages[-1].text


def test_a_debate_of_two_rounds_worked_by_hand() -> None:
    played = play(
        persuasion(rounds=2), CAT, says(_1_judge_0="Answer: A\nConfidence: 80%", _1_judge_0_swapped="B"), seed=2
    )
    assert played.asked() == [
        *("0.argue.a", "0.argue.b", "1.argue.a", "1.argue.b"),
        *("1.judge.0", "1.judge.0-swapped"),
    ]
    assert [node.agent for node in played.debate.utterances] == ["ada", "bo", "ada", "bo", "j0", "j0"]
    assert [node.role for node in played.debate.utterances] == ["debater"] * 4 + ["judge"] * 2
    assert last(played, "0.argue.a") == (
        f"Where is the cat? Debater A=stairs Debater B=roof READ {PASSAGE} OPEN Debater A for stairs not roof"
    )
    assert last(played, "1.argue.b") == (
        f"Where is the cat? Debater A=stairs Debater B=roof READ {PASSAGE} <Debater A: [0.argue.a]>\n"
        "<Debater B: [0.argue.b]> REBUT Debater B for roof not stairs"
    )
    assert edges(played, "0.argue.b") == []
    assert edges(played, "1.argue.a") == [("0.argue.a", "saw"), ("0.argue.b", "saw")]
    assert seen(played, "1.judge.0") == ["0.argue.a", "0.argue.b", "1.argue.a", "1.argue.b"]
    assert seen(played, "1.judge.0-swapped") == seen(played, "1.judge.0")
    assert played.verdict == Verdict(
        answer="B",  # the letter of "stairs" in the task
        stop_reason="rounds",
        aggregator="judge",
        support=2,
        votes=2,
        correct=True,
        details={"side": "a", "position": "stairs", "by": "agreement", "chose_a": "1 of 2", "both_orders": "1 of 1"},
    )
    assert not any(node.answers for node in played.debate.utterances)
    assert all(node.correct is None for node in played.debate.utterances)
    assert played.machine.latest == {}  # type: ignore[attr-defined]


def test_the_swapped_judge_is_shown_the_same_debate_the_other_way_round() -> None:
    said = says(_0_argue_a="I, Debater A, beat debater B (A).", _0_argue_b="Debater A errs.")
    played = play(persuasion(rounds=1), CAT, said, seed=2)
    assert last(played, "0.judge.0") == (
        "Where is the cat? Debater A=stairs Debater B=roof\n"
        "<Debater A: I, Debater A, beat debater B (A).>\n<Debater B: Debater A errs.>\nJUDGE"
    )
    assert last(played, "0.judge.0-swapped") == (
        "Where is the cat? Debater A=roof Debater B=stairs\n"
        "<Debater A: Debater B errs.>\n<Debater B: I, Debater B, beat Debater A (B).>\nJUDGE"
    )


def test_a_verified_quote_is_never_changed_by_the_swap() -> None:
    task = msgspec.structs.replace(CAT, details={"passage": "Debater A won."})
    played = play(persuasion(rounds=1), task, says(_0_argue_a="Debater A: <quote>Debater A won.</quote>"), seed=2)
    assert "<Debater B: Debater B: <v_quote>Debater A won.</v_quote>>" in last(played, "0.judge.0-swapped")


def test_sequential_debaters_have_read_who_spoke_before_them_and_keep_their_order_when_swapped() -> None:
    played = play(persuasion(rounds=2, style="sequential"), CAT, says(), seed=2)
    assert [node_of(command.ask) for command in played.steps[0] if hasattr(command, "ask")] == ["0.argue.a"]
    assert seen(played, "0.argue.a") == []
    assert seen(played, "0.argue.b") == ["0.argue.a"]
    assert seen(played, "1.argue.a") == ["0.argue.a", "0.argue.b"]
    assert seen(played, "1.argue.b") == ["0.argue.a", "0.argue.b", "1.argue.a"]
    swapped = last(played, "1.judge.0-swapped")
    assert "<Debater B: [0.argue.a]>\n<Debater A: [0.argue.b]>\n<Debater B: [1.argue.a]>" in swapped


def test_simultaneous_debaters_are_asked_together() -> None:
    opened = open_debate(persuasion(), CAT, seed=2)
    assert opened.asked() == ["0.argue.a", "0.argue.b"]


def test_only_debaters_and_critic_read_the_passage_and_see_the_images() -> None:
    image = ImagePart(sha256="0" * 64)
    task = msgspec.structs.replace(CAT, images=(image,))
    machine = persuasion(rounds=2, best_of=2, critique=True, interactive=True, judges=2)
    played = play(machine, task, says(), seed=2)
    for ask in played.asks:
        informed = ask.role in ("debater", "critic")
        assert (PASSAGE in told(ask), ask.messages[-1].images == (image,)) == (informed, informed), ask.id
    assert {ask.role for ask in played.asks} == {"debater", "critic", "judge", "preference"}


def test_others_are_shown_which_quotes_stand_in_the_passage() -> None:
    said = says(
        _0_argue_a="<quote>The cat - grey, as ever - sleeps</quote> and <v_quote>on the roof</v_quote>",
        _0_argue_b="<quote>never",
    )
    played = play(persuasion(rounds=2), CAT, said, seed=2)
    shown = "<v_quote>The cat - grey, as ever - sleeps</v_quote> and <u_quote>on the roof</u_quote>"
    for node in ("1.argue.b", "1.judge.0", "1.judge.0-swapped"):
        assert shown in last(played, node)
        assert ": never>" in last(played, node)
    assert played.debate.utterance("0.argue.a").reply.text.startswith("<quote>The cat")  # the graph keeps what was said


def test_best_of_n_shows_only_the_argument_that_scored_highest() -> None:
    scores = {"_0_prefer_a_1": "Score: 3", "_0_prefer_a_2": "Score: 9", "_0_prefer_b_1": "5", "_0_prefer_b_2": "5"}
    played = play(persuasion(rounds=1, best_of=2, swap=False), CAT, says(**scores), seed=2)
    assert played.asked() == [
        *("0.argue.a-1", "0.argue.a-2", "0.argue.b-1", "0.argue.b-2"),
        *("0.prefer.a-1", "0.prefer.a-2", "0.prefer.b-1", "0.prefer.b-2"),
        "0.judge.0",
    ]
    assert last(played, "0.prefer.a-2") == " PREFER Debater A [0.argue.a-2]"
    assert edges(played, "0.prefer.a-2") == [("0.argue.a-2", "saw")]
    assert played.ask("0.prefer.a-1").agent == "pi"
    assert seen(played, "0.judge.0") == ["0.argue.a-2", "0.argue.b-1"]  # of equals the first
    assert "[0.argue.a-1]" not in last(played, "0.judge.0")
    assert "both_orders" not in played.verdict.details


def test_the_preference_may_fail_or_not_be_read() -> None:
    texts = {"_0_prefer_a_1": None, "_0_prefer_a_2": "Score: 0", "_0_prefer_b_1": "well", "_0_prefer_b_1~1": "hm"}
    texts |= {"_0_prefer_b_2": None}
    played = play(persuasion(rounds=1, best_of=2), CAT, says(**texts), seed=2)
    assert seen(played, "0.judge.0") == ["0.argue.a-2", "0.argue.b-1"]  # one scored beats one that was not
    assert told(played.ask("0.prefer.b-1~1")).endswith("0 to 10?")


def test_an_argument_without_a_rival_is_not_scored() -> None:
    played = play(
        persuasion(rounds=1, best_of=2), CAT, says(_0_argue_a_1=None, _0_argue_b_1=None, _0_argue_b_2=None), seed=2
    )
    assert not any(".prefer." in node for node in played.asked())
    assert seen(played, "0.judge.0") == ["0.argue.a-2"]
    assert played.verdict.details["silent"] == "b"


def test_without_a_preference_the_first_argument_that_came_counts() -> None:
    machine = persuasion(rounds=1, best_of=3)
    machine.cast = {role: players for role, players in machine.cast.items() if role != "preference"}
    played = play(machine, CAT, says(_0_argue_a_1=None), seed=2)
    assert seen(played, "0.judge.0") == ["0.argue.a-2", "0.argue.b-1"]


def test_an_argument_is_criticised_and_refined_before_others_see_it() -> None:
    played = play(persuasion(rounds=2, critique=True), CAT, says(), seed=2)
    assert played.asked()[:6] == [
        *("0.argue.a", "0.argue.b", "0.criticise.a", "0.criticise.b", "0.refine.a", "0.refine.b"),
    ]
    assert [played.ask(node).agent for node in ("0.criticise.b", "0.refine.a", "0.refine.b")] == ["cy", "ada", "bo"]
    assert edges(played, "0.criticise.a") == [("0.argue.a", "saw")]
    assert edges(played, "0.refine.a") == [("0.argue.a", "saw"), ("0.criticise.a", "critique")]
    assert last(played, "0.refine.a") == f" READ {PASSAGE} REFINE Debater A [0.argue.a] BY [0.criticise.a]"
    assert seen(played, "1.argue.b") == ["0.refine.a", "0.refine.b"]
    assert seen(played, "1.judge.0") == ["0.refine.a", "0.refine.b", "1.refine.a", "1.refine.b"]


def test_without_critique_or_refinement_the_argument_stands() -> None:
    played = play(persuasion(rounds=1, critique=True), CAT, says(_0_criticise_a=None, _0_refine_b=None), seed=2)
    assert "0.refine.a" not in played.asked()
    assert seen(played, "0.judge.0") == ["0.argue.a", "0.argue.b"]
    played = play(persuasion(rounds=1, critique=True), CAT, says(_0_criticise_a=None, _0_criticise_b=None), seed=2)
    assert played.asked()[-3:] == ["0.criticise.b", "0.judge.0", "0.judge.0-swapped"]


def test_best_of_n_is_chosen_first_and_refined_then() -> None:
    played = play(persuasion(rounds=1, best_of=2, critique=True), CAT, says(_0_prefer_a_2="8"), seed=2)
    assert edges(played, "0.criticise.a") == [("0.argue.a-2", "saw")]
    assert seen(played, "0.judge.0") == ["0.refine.a", "0.refine.b"]


def test_an_interactive_judge_asks_before_each_later_round() -> None:
    played = play(persuasion(rounds=3, interactive=True, judges=2), CAT, says(_2_question_0=None), seed=2)
    assert [node for node in played.asked() if ".question." in node] == ["1.question.0", "2.question.0"]
    assert played.ask("1.question.0").agent == "j0"
    assert seen(played, "1.question.0") == ["0.argue.a", "0.argue.b"]
    assert seen(played, "1.argue.a") == ["0.argue.a", "0.argue.b", "1.question.0"]
    assert "<Judge: [1.question.0]>" in last(played, "1.argue.a")
    assert last(played, "2.argue.a").count("<Judge: ") == 1  # the second never came, and the debate went on
    assert "1.question.0" in seen(played, "2.judge.1-swapped")


def test_a_consultant_argues_alone_for_a_drawn_side_and_is_questioned() -> None:
    played = play(persuasion(method="consultancy", rounds=2), CAT, says(_1_judge_0="A", _1_judge_0_swapped="B"), seed=2)
    side = played.verdict.details["consultant"]
    assert played.asked() == [f"0.argue.{side}", "1.question.0", f"1.argue.{side}", "1.judge.0", "1.judge.0-swapped"]
    position, other = ("stairs", "roof") if side == "a" else ("roof", "stairs")
    assert last(played, f"0.argue.{side}").endswith(f"OPEN Consultant for {position} not {other}")
    assert last(played, f"1.argue.{side}").endswith(
        f"<Consultant: [0.argue.{side}]>\n<Judge: [1.question.0]> CONSULT Consultant for {position} not {other}"
    )
    assert last(played, "1.judge.0").startswith("Where is the cat? A=stairs B=roof\n<Consultant: ")
    assert last(played, "1.judge.0-swapped").startswith("Where is the cat? A=roof B=stairs\n<Consultant: ")
    assert (played.verdict.answer, played.verdict.details["position"]) == ("B", "stairs")
    sides = {
        play(persuasion(method="consultancy", rounds=1), CAT, says(), seed=s).verdict.details["consultant"]
        for s in range(9)
    }
    assert sides == {"a", "b"}


def test_a_consultancy_may_go_without_questions() -> None:
    played = play(persuasion(method="consultancy", rounds=3, interactive=False), CAT, says(), seed=2)
    assert not any(".question." in node for node in played.asked())


def test_a_judge_may_reason_first() -> None:
    played = play(persuasion(rounds=1, judge_style="cot"), CAT, says(), seed=2)
    assert last(played, "0.judge.0").endswith("THINK")


def test_judges_that_always_take_a_show_as_position_bias() -> None:
    played = play(persuasion(rounds=1, judges=3), CAT, says(), seed=2)
    details = played.verdict.details
    assert (details["chose_a"], details["both_orders"], details["by"]) == ("6 of 6", "0 of 3", "tie_break")
    assert (played.verdict.support, played.verdict.votes, played.verdict.tie) == (3, 6, True)
    won = {play(persuasion(rounds=1), CAT, says(), seed=seed).verdict.answer for seed in range(12)}
    assert won == {"A", "B"}


def test_a_judge_may_name_the_answer_itself_in_either_order() -> None:
    played = play(persuasion(rounds=1), CAT, says(_0_judge_0="stairs", _0_judge_0_swapped="Answer: stairs"), seed=2)
    assert (played.verdict.answer, played.verdict.details["both_orders"]) == ("B", "1 of 1")


def test_a_judgement_that_cannot_be_read_is_asked_for_once_more() -> None:
    texts = {
        "_0_judge_0": "Both are fine.",
        "_0_judge_0~1": "B",
        "_0_judge_0_swapped": "hm",
        "_0_judge_0_swapped~1": "hm",
    }
    played = play(persuasion(rounds=1), CAT, says(**texts), seed=2)
    assert told(played.ask("0.judge.0~1")).endswith("Both are fine.\nA or B?")
    assert edges(played, "0.judge.0~1") == [("0.judge.0", "memory")]
    assert played.debate.utterance("0.judge.0~1").answer.value == "B"
    assert (played.verdict.answer, played.verdict.votes, played.verdict.stop_reason) == ("A", 1, "rounds")


@pytest.mark.parametrize("texts", [{"_0_judge_0": None}, {"_0_judge_0": "hm", "_0_judge_0~1": None}])
def test_without_a_judgement_there_is_no_answer(texts: dict[str, str | None]) -> None:
    played = play(persuasion(rounds=1, swap=False), CAT, says(**texts), seed=2)
    assert played.verdict == Verdict(answer=None, stop_reason="failures", aggregator="judge", correct=False)


def test_the_other_judges_decide_when_one_fails() -> None:
    texts = {"_0_judge_0": None, "_0_judge_0_swapped": None, "_0_judge_1": "B", "_0_judge_1_swapped": "A"}
    played = play(persuasion(rounds=1, judges=2), CAT, says(**texts), seed=2)
    assert (played.verdict.answer, played.verdict.support, played.verdict.votes) == ("A", 2, 2)


def test_a_debater_that_fails_is_asked_again_in_the_next_round() -> None:
    played = play(persuasion(rounds=2), CAT, says(_0_argue_a=None), seed=2)
    assert seen(played, "1.argue.a") == ["0.argue.b"]
    assert seen(played, "1.judge.0") == ["0.argue.b", "1.argue.a", "1.argue.b"]
    assert "silent" not in played.verdict.details


def test_a_side_that_never_spoke_is_named() -> None:
    played = play(persuasion(rounds=2), CAT, says(_0_argue_a=None, _1_argue_a=None), seed=2)
    assert (played.verdict.details["silent"], played.verdict.stop_reason) == ("a", "rounds")


def test_nobody_to_judge_and_nobody_left_to_argue() -> None:
    played = play(persuasion(), CAT, says(_0_argue_a=None, _0_argue_b=None), seed=2)
    assert played.verdict == Verdict(answer=None, stop_reason="no_replies", aggregator="judge", correct=False)
    played = play(persuasion(), CAT, says(_1_argue_a=None, _1_argue_b=None), seed=2)
    assert played.asked()[-2:] == ["1.judge.0", "1.judge.0-swapped"]  # what was said before is judged
    assert (played.verdict.stop_reason, played.verdict.votes) == ("failures", 2)


def test_a_late_judge_is_left_out() -> None:
    def answer(ask: Ask) -> str | None:
        return None if node_of(ask) == "0.judge.0" else "A"

    played = play(persuasion(rounds=1), CAT, answer, seed=2)
    assert (played.verdict.votes, played.verdict.details["side"], played.verdict.stop_reason) == (1, "b", "rounds")


def test_a_spent_budget_ends_it_with_the_judgements_that_came() -> None:
    played = play(persuasion(rounds=1), CAT, says(), seed=2, budget_at=1)
    assert played.verdict == Verdict(answer=None, stop_reason="budget", aggregator="judge", correct=False)
    opened = open_debate(persuasion(rounds=1), CAT, seed=2)
    for node in ("0.argue.a", "0.argue.b", "0.judge.0"):
        opened.take(Replied(reply_to(opened.ask(node), "A")))
    opened.take(BudgetSpent())
    assert (opened.verdict.answer, opened.verdict.votes, opened.verdict.stop_reason) == ("B", 1, "budget")


def test_sides_are_drawn_without_gold_and_no_oracle() -> None:
    unknown = msgspec.structs.replace(CAT, gold=())
    for seed in range(6):
        with_gold, without = (play(persuasion(), task, says(), seed=seed) for task in (CAT, unknown))
        assert with_gold.asks == without.asks
        assert not with_gold.verdict.oracle


def test_right_against_wrong_is_an_oracle_and_says_so() -> None:
    task = Task(
        id="t",
        question="?",
        gold=("GOLD-TOKEN",),
        answer_format="text",
        details={"incorrect_answer": "no", "passage": "p"},
    )
    played = play(persuasion(rounds=1, assign="gold"), task, says(_0_judge_0="A", _0_judge_0_swapped="B"), seed=2)
    assert played.verdict.oracle
    assert any("GOLD-TOKEN" in told(ask) for ask in played.asks)
    assert play(persuasion(assign="gold"), task, says(_0_argue_a=None, _0_argue_b=None)).verdict.oracle
    with pytest.raises(TaskError, match="one choice for each side"):
        open_debate(persuasion(), task)


def test_a_gold_that_is_no_choice_reaches_nobody() -> None:
    task = msgspec.structs.replace(CAT, gold=("GOLD-TOKEN",), answer_format="text")
    played = play(persuasion(rounds=2, interactive=True, best_of=2, critique=True), task, says(), seed=2)
    assert not any("GOLD-TOKEN" in told(ask) for ask in played.asks)
    assert played.verdict.answer in CAT.choices


def test_a_task_without_two_sides_changes_nothing() -> None:
    machine = persuasion()
    with pytest.raises(TaskError, match="task 'x'"):
        machine.receive(Opened(debate_id="d", task=Task(id="x", question="?"), seed=0))
    assert machine.phase == machine.START
    with pytest.raises(IllegalEventError):
        machine.receive(BudgetSpent())


def test_without_a_passage_nothing_is_read_and_no_quote_is_verified() -> None:
    task = msgspec.structs.replace(CAT, details={})
    played = play(persuasion(rounds=1), task, says(_0_argue_a="<quote>The cat</quote>"), seed=2)
    assert "READ" not in last(played, "0.argue.a")
    assert "<u_quote>The cat</u_quote>" in last(played, "0.judge.0")


def test_what_others_said_is_cut_to_fit_and_the_passage_is_not() -> None:
    said = says(_0_argue_a="long " * 500, _0_argue_b="short")
    played = play(persuasion(rounds=2, max_context_tokens=150), CAT, said, seed=2)
    assert "[...]" in last(played, "1.argue.b")
    assert PASSAGE in last(played, "1.argue.b")
    assert "<Debater B: short>" in last(played, "1.argue.b")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rounds": 1, "swap": False},
        {"best_of": 2, "critique": True, "interactive": True, "style": "sequential"},
        {"method": "consultancy", "best_of": 3, "rounds": 2},
    ],
)
def test_max_asks_is_what_is_asked_when_nobody_fails(settings: dict[str, Any]) -> None:
    machine = persuasion(judges=2, **settings)
    scored = lambda ask: "5" if ".prefer." in node_of(ask) else says()(ask)  # noqa: E731
    played = play(machine, CAT, scored, seed=2)
    assert len(played.asks) == Persuasion.max_asks(machine.settings, machine.cast)


@pytest.mark.parametrize(
    ("settings", "says_what"),
    [
        ({"rounds": 0}, "rounds=0 must be a number from 1 to"),
        ({"best_of": 0}, "best_of=0 must be a number from 1 to"),
        ({"stop": ("unanimity",)}, "leave it out"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], says_what: str) -> None:
    with pytest.raises(ValueError, match=says_what):
        PersuasionSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "debaters", "says_what"),
    [
        ({}, 1, "cast.debater has 1 agents and protocol.method=debate takes 2"),
        ({"method": "consultancy"}, 2, "cast.debater has 2 agents and protocol.method=consultancy takes 1; name one"),
        ({"critique": True}, 2, "cast.critic needs an agent"),
    ],
)
def test_a_cast_that_does_not_fit_is_refused(settings: dict[str, Any], debaters: int, says_what: str) -> None:
    cast = {"debater": (Player(name="ada"),) * debaters, "judge": (Player(name="j"),)}
    with pytest.raises(ConfigError, match=says_what):
        Persuasion(PersuasionSettings(**settings), cast, PLAIN)


@pytest.mark.parametrize("name", ["persuasion.quotes.en", "persuasion.small.en"])
def test_shipped_prompts_hold_debates_of_every_kind(name: str) -> None:
    for method in ("debate", "consultancy"):
        settings = PersuasionSettings(prompts=name)
        machine = persuasion(
            prompts=load_protocol_prompts("persuasion", settings),
            method=method,
            best_of=2,
            critique=True,
            interactive=True,
        )
        played = play(machine, CAT, says(), seed=2)
        assert played.verdict.answer in ("A", "B")
        for ask in played.asks:
            assert CAT.question in told(ask)
            assert "ada" not in told(ask)  # names are not told
            assert (PASSAGE in told(ask)) == (ask.role in ("debater", "critic")), ask.id
        judged = played.ask("2.judge.0")
        assert all(choice in told(judged) for choice in CAT.choices)
        assert Answer() == machine.history[0].answer
