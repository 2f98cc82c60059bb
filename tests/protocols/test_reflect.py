"""Debate with critiques and reflections, against debates worked by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from protocols.catalogue import load_protocol_prompts
from protocols.conversation import Player
from protocols.errors import ConfigError, TaskError
from protocols.graph import Verdict
from protocols.machine import Opened, Replied
from protocols.message import Ask, ImagePart
from protocols.prompt import PromptSet
from protocols.reflect import Reflect, ReflectSettings
from protocols.task import Task
from tests.fakes import Answering, Played, failure_of, node_of, open_debate, play, reply_to, round_of, told

TASK = Task(id="t", question="What is 24 + 19?", gold=("43",))
PLAIN = PromptSet(
    "plain",
    {
        "system": "",
        "answer": "Q ${question}",
        "debate": "Q ${question}\n${blocks}",
        "shown_answer": "A${label} ${reply}",
        "shown_reflection": "R${label} ${reply}",
        "shown_feedback": "F${label}.${number} ${reply}",
        "critique": "Q ${question} RIGHT ${own} WRONG ${other}",
        "reflect": "Q ${question} OWN ${own} GOLD ${gold}",
        "critique_free": "Q ${question} MOST ${own} OTHER ${other}",
        "reflect_free": "Q ${question} OWN ${own}",
    },
    Reflect.SLOTS,
)


def reflect(teachers: int = 3, students: int = 1, *, prompts: PromptSet = PLAIN, **settings: Any) -> Reflect:
    cast = {
        "teacher": tuple(Player(name=f"t{seat}") for seat in range(teachers)),
        "student": tuple(Player(name=f"s{seat}") for seat in range(students)),
    }
    return Reflect(ReflectSettings(**settings), cast, prompts)


def free(**settings: Any) -> Reflect:
    without: dict[str, Any] = {"oracle": False, "stop": ("unanimity",)}
    return reflect(**(without | settings))


def saying(*rounds: str) -> Answering:
    """Answers by round and seat, ``"43 44 43 44"``; "-" fails; one stands for all, and the last round for those after
    it. Everything else that is asked for says its own name."""
    table = [texts.split() for texts in rounds]

    def answer(ask: Ask) -> Any:
        number, step, seat = node_of(ask).split(".")
        if step != "answer":
            return f"[{node_of(ask)}]"
        row = table[min(int(number), len(table) - 1)]
        said = row[int(seat.partition("~")[0]) % len(row)]
        return failure_of(ask) if said == "-" else f"[{node_of(ask)}] answer: {said}"

    return answer


def edges(played: Played, target: str) -> set[tuple[str, str]]:
    return {(edge.source, edge.kind) for edge in played.debate.edges if edge.target == target}


def notes(played: Played, number: int) -> list[str]:
    """The critiques and reflections that were asked for in a round."""
    return [node for node in played.asked() if node.startswith(f"{number}.") and ".answer." not in node]


def blocks(played: Played, number: int) -> list[list[str]]:
    """What a round's prompt showed, block by block, in the order shown."""
    lines = told(played.ask(f"{number}.answer.0")).splitlines()[1:]
    shown: dict[str, list[str]] = {}
    for line in lines:
        label, _, text = line.partition(" ")
        shown.setdefault(re.sub(r"\..*", "", label[1:]), []).append(f"{label[0]}{label.partition('.')[2]} {text}")
    return list(shown.values())


def test_two_right_and_two_wrong_worked_by_hand() -> None:
    played = play(reflect(), TASK, saying("43 44 43 45", "43"), seed=5)
    assert played.asked() == [
        *("0.answer.0", "0.answer.1", "0.answer.2", "0.answer.3"),
        *("0.critique.0-1", "0.critique.0-3", "0.critique.2-1", "0.critique.2-3"),
        *("0.reflect.1", "0.reflect.3"),
        *("1.answer.0", "1.answer.1", "1.answer.2", "1.answer.3"),
    ]
    assert [(ask.agent, ask.role) for ask in played.asks[:4]] == [
        *(("t0", "teacher"), ("t1", "teacher"), ("t2", "teacher"), ("s0", "student"))
    ]
    assert (played.ask("0.critique.2-3").agent, played.ask("0.reflect.3").agent) == ("t2", "s0")
    assert edges(played, "0.answer.3") == set()
    assert edges(played, "0.critique.2-3") == {("0.answer.2", "saw"), ("0.answer.3", "saw")}
    assert edges(played, "0.reflect.3") == {("0.answer.3", "saw")}
    everything = {(f"0.answer.{seat}", "saw") for seat in range(4)}
    everything |= {(f"0.critique.{pair}", "critique") for pair in ("0-1", "0-3", "2-1", "2-3")}
    everything |= {("0.reflect.1", "reflection"), ("0.reflect.3", "reflection")}
    for seat in range(4):
        assert edges(played, f"1.answer.{seat}") == everything
    assert [(node.answers, node.correct) for node in played.debate.utterances[3:5]] == [(True, False), (False, None)]


def test_who_is_told_what() -> None:
    played = play(reflect(), TASK, saying("43 44 43 45", "43"))
    assert told(played.ask("0.answer.2")) == f"Q {TASK.question}"
    assert told(played.ask("0.critique.2-3")) == (
        f"Q {TASK.question} RIGHT [0.answer.2] answer: 43 WRONG [0.answer.3] answer: 45"
    )
    assert told(played.ask("0.reflect.3")) == f"Q {TASK.question} OWN [0.answer.3] answer: 45 GOLD 43"
    assert {len(ask.messages) for ask in played.asks} == {1}  # no agent keeps a chat
    assert sorted(blocks(played, 1)) == [
        ["A [0.answer.0] answer: 43"],
        ["A [0.answer.1] answer: 44", "R [0.reflect.1]", "F1 [0.critique.0-1]", "F2 [0.critique.2-1]"],
        ["A [0.answer.2] answer: 43"],
        ["A [0.answer.3] answer: 45", "R [0.reflect.3]", "F1 [0.critique.0-3]", "F2 [0.critique.2-3]"],
    ]


def test_all_agents_share_one_prompt_whose_order_changes_with_round_and_debate() -> None:
    orders = set()
    for seed in range(6):
        played = play(reflect(), TASK, saying("43 44 43 45"), seed=seed)
        for number in (1, 2, 3):
            assert len({told(ask) for ask in played.asks if node_of(ask).startswith(f"{number}.answer")}) == 1
            orders.add(tuple(block[0][12] for block in blocks(played, number)))  # the seats, in the order shown
    assert len(orders) > 6
    assert all(sorted(order) == ["0", "1", "2", "3"] for order in orders)


def test_named_blocks_stand_in_the_casts_order() -> None:
    played = play(reflect(context="named", rounds=2), TASK, saying("43 44 43 45"))
    assert told(played.ask("1.answer.3")).splitlines()[1:3] == [
        "At0 [0.answer.0] answer: 43",
        "At1 [0.answer.1] answer: 44",
    ]


def test_only_the_last_round_is_shown() -> None:
    played = play(reflect(), TASK, saying("43 44 43 45"))
    for ask in played.asks:
        allowed = {round_of(ask) - 1} if ".answer." in node_of(ask) else {round_of(ask)}
        assert {int(number) for number in re.findall(r"\[(\d)\.", told(ask))} <= allowed


def test_all_right_by_gold_ends_it_and_the_verdict_says_oracle() -> None:
    played = play(reflect(), TASK, saying("43 44 43 45", "43 43.0 43 43"))
    assert len(played.asks) == 4 + 6 + 4
    assert played.verdict == Verdict(
        answer="43", stop_reason="oracle", aggregator="majority_vote", support=4, votes=4, correct=True, oracle=True
    )


def test_four_rounds_ask_sixteen_answers_and_nobody_criticises_what_nobody_reads() -> None:
    played = play(reflect(), TASK, saying("43 44 43 45"))
    assert sum(".answer." in node for node in played.asked()) == 16
    assert [len(notes(played, number)) for number in range(4)] == [6, 6, 6, 0]
    assert (played.verdict.answer, played.verdict.stop_reason) == ("43", "rounds")


def test_critiques_after_the_last_round_are_asked_on_demand() -> None:
    played = play(reflect(critique_last=True), TASK, saying("43 44 43 45"))
    assert [len(notes(played, number)) for number in range(4)] == [6, 6, 6, 6]
    assert played.verdict.stop_reason == "rounds"


@pytest.mark.parametrize(
    ("answers", "feedback", "reflections"),
    [("43 43 43 44", 3, 1), ("43 44 43 45", 4, 2), ("43 44 44 45", 3, 3), ("44 44 44 45", 0, 4)],
)
def test_k_right_write_k_times_the_wrong_and_the_wrong_once_each(answers: str, feedback: int, reflections: int) -> None:
    asked = notes(play(reflect(rounds=2), TASK, saying(answers)), 0)
    assert sum(".critique." in node for node in asked) == feedback
    assert sum(".reflect." in node for node in asked) == reflections


@pytest.mark.parametrize("critique_last", [False, True])
@pytest.mark.parametrize("switches", [{}, {"feedback": False}, {"reflection": False}])
def test_no_debate_asks_more_than_was_said(critique_last: bool, switches: dict[str, Any]) -> None:
    bounds = {(): 6, ("feedback",): 4, ("reflection",): 4}  # 2*2+2 or 1*3+3; 4 wrong; 2 right by 2 wrong
    machine = reflect(critique_last=critique_last, **switches)
    most = Reflect.max_asks(machine.settings, machine.cast)
    assert most == 16 + bounds[tuple(switches)] * (4 if critique_last else 3)
    worst = {(): "43 44 43 45", ("feedback",): "44 44 44 45", ("reflection",): "43 44 43 45"}[tuple(switches)]
    assert len(play(machine, TASK, saying(worst)).asks) == most


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"feedback": False}, {"reflect"}),
        ({"reflection": False}, {"critique"}),
        ({"feedback": False, "reflection": False}, set()),
    ],
)
def test_feedback_and_reflections_can_be_switched_off(settings: dict[str, Any], steps: set[str]) -> None:
    played = play(reflect(**settings), TASK, saying("43 44 43 45"))
    assert {node.split(".")[1] for node in notes(played, 0)} == steps
    assert len([node for node in played.asked() if ".answer." in node]) == 16
    shown = {line[0] for block in blocks(played, 1) for line in block}
    assert shown == {"A"} | ({"F"} if "critique" in steps else set()) | ({"R"} if "reflect" in steps else set())


def test_without_a_stop_rule_all_rounds_are_held() -> None:
    played = play(reflect(stop=()), TASK, saying("43 43 43 43"))
    assert played.asked() == [f"{number}.answer.{seat}" for number in range(4) for seat in range(4)]
    assert played.verdict.oracle  # routing would have used it


def test_what_was_not_written_is_left_out() -> None:
    said = saying("43 44 43 45")

    def answer(ask: Ask) -> Any:
        return failure_of(ask) if node_of(ask) in ("0.critique.0-1", "0.reflect.3") else said(ask)

    played = play(reflect(rounds=2), TASK, answer)
    assert sorted(blocks(played, 1)) == [
        ["A [0.answer.0] answer: 43"],
        ["A [0.answer.1] answer: 44", "R [0.reflect.1]", "F1 [0.critique.2-1]"],
        ["A [0.answer.2] answer: 43"],
        ["A [0.answer.3] answer: 45", "F1 [0.critique.0-3]", "F2 [0.critique.2-3]"],
    ]
    assert "None" not in told(played.ask("1.answer.0"))
    assert ("0.reflect.3", "reflection") not in edges(played, "1.answer.0")


def test_who_fails_sits_out_one_round_and_comes_back() -> None:
    played = play(reflect(rounds=3), TASK, saying("43 44 - 45", "43 44 43 -", "43 44 43 43"))
    assert notes(played, 0) == ["0.critique.0-1", "0.critique.0-3", "0.reflect.1", "0.reflect.3"]
    assert len(blocks(played, 1)) == 3 and "[0.answer.2]" not in told(played.ask("1.answer.2"))
    assert notes(played, 1) == ["1.critique.0-1", "1.critique.2-1", "1.reflect.1"]
    assert len(blocks(played, 2)) == 3 and "2.answer.3" in played.asked()
    assert (played.verdict.support, played.verdict.votes) == (3, 4)


def test_who_fails_in_the_last_round_votes_with_its_answer_before() -> None:
    played = play(reflect(rounds=2), TASK, saying("44 44 43 43", "43 - - 43"))
    assert (played.verdict.answer, played.verdict.support, played.verdict.votes) == ("43", 3, 4)


def test_all_who_are_there_being_right_is_enough() -> None:
    assert play(reflect(), TASK, saying("43 - 43 43")).verdict.stop_reason == "oracle"


def test_nobody_answers_at_all() -> None:
    played = play(reflect(), TASK, saying("- - - -"))
    assert (played.verdict.stop_reason, played.verdict.answer, len(played.asks)) == ("no_replies", None, 4)


def test_nobody_answers_in_a_later_round() -> None:
    played = play(reflect(), TASK, saying("43 44 44 45", "- - - -"))
    assert (played.verdict.stop_reason, played.verdict.answer) == ("failures", "44")


def test_all_critiques_failing_leaves_the_answers() -> None:
    said = saying("43 44 43 45")
    played = play(reflect(), TASK, lambda ask: said(ask) if ".answer." in node_of(ask) else failure_of(ask))
    assert [len(block) for block in blocks(played, 1)] == [1, 1, 1, 1]
    assert played.verdict.stop_reason == "rounds"


@pytest.mark.parametrize("budget_at", [2, 6, 12])  # among answers, among critiques, in the next round
def test_a_spent_budget_ends_it_anywhere(budget_at: int) -> None:
    played = play(reflect(), TASK, saying("43 44 43 45"), budget_at=budget_at)
    assert played.verdict.stop_reason == "budget"
    assert played.verdict.answer == "43" and played.verdict.oracle


def test_a_reply_that_cannot_be_read_is_wrong_and_shown_as_it_is() -> None:
    task = Task(id="t", question="q", gold=("43",), answer_format="boxed")
    replies = {0: r"\boxed{43}", 1: "I would rather not", 2: r"\boxed{43}", 3: r"\boxed{44}"}
    played = play(reflect(rounds=2, samples=1), task, lambda ask: replies.get(int(node_of(ask)[-1]), "."))
    assert "0.reflect.1" in played.asked() and "0.critique.0-1" in played.asked()
    assert "I would rather not" in told(played.ask("1.answer.0"))
    assert (played.verdict.support, played.verdict.votes) == (2, 3)


# A student's samples


def test_a_students_first_readable_sample_counts() -> None:
    task = Task(id="t", question="q", gold=("43",), answer_format="boxed")

    def answer(ask: Ask) -> str:
        return r"\boxed{43}" if node_of(ask) in ("0.answer.0", "0.answer.3~2") else "hm"

    played = play(reflect(rounds=1), task, answer, seed=1)
    assert sorted(played.asked()) == [
        *("0.answer.0", "0.answer.1", "0.answer.2", "0.answer.3", "0.answer.3~1", "0.answer.3~2")
    ]  # teachers are asked once
    tries = [played.ask(node) for node in ("0.answer.3", "0.answer.3~1", "0.answer.3~2")]
    assert len({ask.sampling.seed for ask in tries}) == 3 and len({ask.messages for ask in tries}) == 1
    counted = [node.id for node in played.debate.utterances if node.answers]
    assert counted == ["0.answer.0", "0.answer.1", "0.answer.2", "0.answer.3~2"]
    assert (played.verdict.support, played.verdict.votes) == (2, 2)


def test_a_student_is_asked_so_many_times_at_most() -> None:
    task = Task(id="t", question="q", gold=("43",), answer_format="boxed")
    played = play(reflect(1, 1, rounds=1, samples=5), task, lambda ask: "hm")
    assert [node for node in played.asked() if node.startswith("0.answer.1")] == [
        *("0.answer.1", "0.answer.1~1", "0.answer.1~2", "0.answer.1~3", "0.answer.1~4")
    ]


# Without gold


def test_without_gold_the_majority_criticises_the_rest() -> None:
    played = play(free(), TASK, saying("44 43 44 44", "44"))
    assert notes(played, 0) == ["0.critique.0-1", "0.critique.2-1", "0.critique.3-1", "0.reflect.1"]
    assert told(played.ask("0.critique.3-1")).startswith(f"Q {TASK.question} MOST [0.answer.3] answer: 44 OTHER")
    assert told(played.ask("0.reflect.1")) == f"Q {TASK.question} OWN [0.answer.1] answer: 43"
    assert not played.verdict.oracle


def test_without_gold_unanimity_ends_it_be_it_right_or_wrong() -> None:
    played = play(free(), TASK, saying("44 43 44 44", "44 44 44 44"))
    assert (played.verdict.stop_reason, played.verdict.answer, played.verdict.correct) == ("unanimity", "44", False)
    assert not played.verdict.oracle and len(played.asks) == 4 + 4 + 4


def test_where_all_differ_everyone_reflects_and_nobody_criticises() -> None:
    assert notes(play(free(), TASK, saying("41 42 43 44")), 0) == [f"0.reflect.{seat}" for seat in range(4)]


def test_without_gold_nothing_depends_on_it() -> None:
    answers = saying("44 43 44 45", "44 43 44 44", "43 43 44 43")
    runs = [play(free(), Task(id="t", question="q", gold=gold), answers, seed=3) for gold in ((), ("43",), ("44",))]
    assert len({tuple(run.asks) for run in runs}) == 1
    assert [run.verdict.correct for run in runs] == [None, True, False]


def test_an_even_split_follows_the_tie_break() -> None:
    played = play(free(tie_break="first"), TASK, saying("44 43 43 44"))
    assert [node for node in notes(played, 0) if "reflect" in node] == ["0.reflect.1", "0.reflect.2"]


def test_an_unread_answer_is_outside_every_majority() -> None:
    task = Task(id="t", question="q", answer_format="boxed")
    replies = {"0": r"\boxed{1}", "1": "hm", "2": r"\boxed{1}", "3": r"\boxed{1}"}
    played = play(free(), task, lambda ask: replies.get(node_of(ask)[-1]))
    assert [node for node in notes(played, 0) if "reflect" in node] == ["0.reflect.1"]


def test_gold_reaches_reflections_alone() -> None:
    task = Task(id="t", question="q", gold=("GOLD-TOKEN", "43"))
    for machine, expected in ((reflect(), True), (free(), False)):
        played = play(machine, task, saying("43 44 43 45"))
        shown = {node_of(ask).split(".")[1] for ask in played.asks if "GOLD-TOKEN" in told(ask)}
        assert shown == ({"reflect"} if expected else set())
        assert played.verdict.oracle is expected


# Images, chance, and what is refused


def test_every_ask_shows_the_tasks_images() -> None:
    task = Task(id="t", question="q", gold=("43",), images=(ImagePart(sha256="ab"),))
    played = play(reflect(rounds=2), task, saying("43 44 43 45"))
    assert {ask.messages[-1].images for ask in played.asks} == {task.images}


def test_the_order_of_arrival_changes_nothing() -> None:
    forwards = play(reflect(), TASK, saying("43 44 43 45"), seed=9)
    backwards = play(reflect(), TASK, saying("43 44 43 45"), seed=9, choose=lambda outcomes: outcomes[-1])
    assert forwards.debate == backwards.debate


def test_a_task_without_gold_is_refused_where_gold_decides() -> None:
    machine = reflect()
    before = repr(vars(machine))
    with pytest.raises(TaskError, match=r"task 'x' has no gold answer.*oracle: false"):
        machine.receive(Opened(debate_id="d", task=Task(id="x", question="q"), seed=0))
    assert repr(vars(machine)) == before
    assert play(free(), Task(id="x", question="q"), saying("1 2 1 2")).verdict.correct is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rounds": 0}, "rounds=0"),
        ({"samples": 0}, "samples=0"),
        ({"oracle": False}, "oracle=false uses no gold"),
        ({"oracle": False, "stop": ("unanimity", "oracle")}, "oracle=false uses no gold"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ReflectSettings(**settings)


def test_names_that_do_not_tell_agents_apart_are_refused() -> None:
    twice = {"teacher": (Player(name="ada"), Player(name="ada"))}
    with pytest.raises(ConfigError, match="context=named"):
        Reflect(ReflectSettings(context="named"), twice, PLAIN)
    assert Reflect(ReflectSettings(), twice, PLAIN).phase == "waiting"
    with pytest.raises(ConfigError, match=r"cast\.teacher is empty"):
        Reflect(ReflectSettings(), {"student": (Player(name="ada"),)}, PLAIN)


@pytest.mark.parametrize("name", [f"reflect.{kind}.en" for kind in ("number", "choice", "math", "sum")])
def test_the_shipped_prompts_show_what_they_must(name: str) -> None:
    prompts = load_protocol_prompts("reflect", ReflectSettings(prompts=name))
    task = Task(id="t", question="QUESTION", gold=("43",))
    played = play(reflect(prompts=prompts, rounds=2), task, saying("43 44 43 45"))
    for ask in played.asks:
        assert "QUESTION" in ask.messages[-1].text
    assert "43" in played.ask("0.reflect.1").messages[-1].text
    last = played.ask("1.answer.0").messages[-1].text
    for node in played.debate.utterances[:10]:
        assert f"[{node.id}]" in last


@pytest.mark.parametrize(
    ("kind", "answer_format", "said", "value"),
    [
        ("number", "number", "Final answer: 43", "43"),
        ("number", "final", "Final answer: 43", "43"),
        ("choice", "choice", "Final answer: B", "B"),
        ("math", "boxed", r"Final answer: \boxed{x^2}", "x^2"),
        ("math", "math", r"Final answer: \boxed{x^2}", "x^2"),
    ],
)
def test_the_form_that_the_shipped_prompts_ask_for_is_read(
    kind: str, answer_format: str, said: str, value: str
) -> None:
    text = f"### Answer\nAt first 12 and A, then 31.\n{said}"
    prompts = load_protocol_prompts("reflect", ReflectSettings(prompts=f"reflect.{kind}.en"))
    assert "### Answer" in prompts.fill("answer", question="q") and "Final answer: " in prompts.fill(
        "answer", question="q"
    )
    task = Task(id="t", question="q", gold=(value,), choices=("a", "b"), answer_format=answer_format)
    played = play(reflect(prompts=prompts), task, lambda ask: text)
    assert (played.verdict.answer, played.verdict.stop_reason) == (value, "oracle")


def test_a_step_in_the_middle_of_its_replies_closes_with_what_came() -> None:
    played = open_debate(reflect(budget_tokens=1), TASK)
    for ask in list(played.asks):
        played.take(Replied(reply_to(ask, "answer: 43" if node_of(ask)[-1] != "3" else "answer: 44")))
    assert (played.verdict.stop_reason, played.verdict.support) == ("budget", 3)
