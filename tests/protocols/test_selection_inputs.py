"""What training later selects from, taken from graphs of debates whose counts were worked by hand."""

from __future__ import annotations

from typing import Any

from protocols.answer import same
from protocols.conversation import Player
from protocols.message import Ask
from protocols.prompt import PromptSet
from protocols.reflect import Reflect, ReflectSettings
from protocols.society import Society, SocietySettings
from protocols.task import Task
from protocols.tree import amplification, preference_pairs, preference_tree, question_prompt, right_nodes, tracks
from tests.fakes import Played, failure_of, node_of, play
from trainers.selection.maft import generator_examples

TASK = Task(id="t", question="What is 24 + 19?", gold=("43",))


def set_of(machine: type[Reflect] | type[Society]) -> PromptSet:
    texts = {
        part: " ".join((part, *(f"${{{slot}}}" for slot in sorted(slots)))) for part, slots in machine.SLOTS.items()
    }
    return PromptSet("plain", texts | {"system": ""}, machine.SLOTS)


def reflected(*rounds: str, **settings: Any) -> Played:
    """Three teachers and a student; answers by round and seat, "-" fails."""
    table = [texts.split() for texts in rounds]

    def answer(ask: Ask) -> Any:
        number, step, seat = node_of(ask).split(".")
        if step != "answer":
            return f"remark {node_of(ask)}"
        said = table[int(number)][int(seat)]
        return failure_of(ask) if said == "-" else f"{node_of(ask)} answer: {said}"

    cast = {"teacher": tuple(Player(name=f"t{seat}") for seat in range(3)), "student": (Player(name="s"),)}
    return play(Reflect(ReflectSettings(**settings), cast, set_of(Reflect)), TASK, answer)


#       t0 t1 t2 s     right  wrong  pairs  teachers right
WORKED = (
    "43 44 43 45",  #  2      2      4      2
    "43 43 44 44",  #  2      2      4      2
    "43 43 43 44",  #  3      1      3      3
    "43 43 - 43",  #   3      0      0      2     and all who are there are right
)


def test_supervised_rows_are_the_teachers_right_answers_under_the_question_alone() -> None:
    debate = reflected(*WORKED).debate
    rows = [(node.id, node.reply.text) for node in right_nodes(debate, roles=("teacher",))]
    assert rows == [
        (node, f"{node} answer: 43")
        for node in (
            *("0.answer.0", "0.answer.2"),
            *("1.answer.0", "1.answer.1"),
            *("2.answer.0", "2.answer.1", "2.answer.2"),
            *("3.answer.0", "3.answer.1"),
        )
    ]
    assert [message.text for message in question_prompt(debate)] == [f"answer {TASK.question}"]
    assert [node.id for node in right_nodes(debate, 3)] == ["3.answer.0", "3.answer.1", "3.answer.3"]


def test_preference_pairs_are_all_right_by_all_wrong_of_a_round() -> None:
    pairs = [(right.id, wrong.id) for right, wrong in preference_pairs(reflected(*WORKED).debate)]
    assert pairs == [
        *(("0.answer.0", "0.answer.1"), ("0.answer.0", "0.answer.3")),
        *(("0.answer.2", "0.answer.1"), ("0.answer.2", "0.answer.3")),
        *(("1.answer.0", "1.answer.2"), ("1.answer.0", "1.answer.3")),
        *(("1.answer.1", "1.answer.2"), ("1.answer.1", "1.answer.3")),
        *(("2.answer.0", "2.answer.3"), ("2.answer.1", "2.answer.3"), ("2.answer.2", "2.answer.3")),
    ]


def test_each_round_is_a_root_whose_prompt_holds_the_last_rounds_blocks() -> None:
    played = reflected(*WORKED)
    roots = preference_tree(played.debate)
    assert [(root.round, len(root.children), len(root.right), len(root.wrong)) for root in roots] == [
        *((0, 4, 2, 2), (1, 4, 2, 2), (2, 4, 3, 1), (3, 3, 3, 0))
    ]
    assert roots[0].prompt == question_prompt(played.debate)
    for root in roots[1:]:
        assert root.prompt == played.ask(f"{root.round}.answer.0").messages
        shown = root.prompt[0].text
        assert all(f"{node.id} answer" in shown for node in roots[root.round - 1].children)
    assert "remark 1.critique.0-3" in roots[2].prompt[0].text and "remark 0." not in roots[2].prompt[0].text


def test_amplification_is_pairs_for_each_right_answer() -> None:
    worked, settled = reflected(*WORKED).debate, reflected("43 43 43 43").debate
    assert amplification([worked]) == 11 / 10
    assert amplification([worked, settled]) == 11 / 14
    hopeless = reflected(*["44 44 45 45"] * 4).debate
    assert (amplification([hopeless]), amplification([])) == (0.0, 0.0)


def test_an_unread_answer_is_a_wrong_child_and_an_ungraded_one_none() -> None:
    debate = reflected("43 nothing 43 43", rounds=1, samples=1).debate
    assert [wrong.id for _, wrong in preference_pairs(debate)] == ["0.answer.1"] * 3
    free = Task(id="t", question="q")
    cast = {"teacher": (Player(name="a"), Player(name="b"))}
    settings = ReflectSettings(oracle=False, stop=(), rounds=1)
    played = play(Reflect(settings, cast, set_of(Reflect)), free, lambda ask: f"answer: {node_of(ask)[-1]}")
    assert preference_pairs(played.debate) == [] and len(played.debate.utterances) == 2


def test_nothing_said_is_nothing_to_learn_from() -> None:
    debate = reflected("- - - -").debate
    assert (preference_tree(debate), question_prompt(debate), right_nodes(debate), tracks(debate)) == ([], (), [], {})


def test_the_society_gives_the_consensus_and_who_came_to_it_how() -> None:
    answers = {"0": ("43", "43"), "1": ("44", "43"), "2": ("43", "44"), "3": ("45", "45"), "4": ("43.0", "43")}

    def answer(ask: Ask) -> str:
        number, _, seat = node_of(ask).split(".")
        return rf"\boxed{{{answers[seat][int(number)]}}}"

    cast = {"generator": tuple(Player(name=f"g{seat}") for seat in answers)}
    debate = play(Society(SocietySettings(), cast, set_of(Society)), TASK, answer).debate
    assert debate.verdict is not None
    consensus = debate.verdict.as_answer
    assert (consensus.value, debate.verdict.support) == ("43", 3)

    openings = {agent: generator_examples(debate, agent) for agent in ("g0", "g1", "g2", "g3", "g4")}
    assert [agent for agent, rows in openings.items() if rows] == ["g0", "g2", "g4"]

    ends = {
        seat: (same(track[0].answer, consensus), same(track[-1].answer, consensus))
        for seat, track in tracks(debate).items()
    }
    assert [seat for seat, (first, last) in ends.items() if last and not first] == ["1"]  # corrected itself
    assert [seat for seat, (first, last) in ends.items() if last and first] == ["0", "4"]  # held on
    corrected = debate.conversation("1.answer.1")
    assert [message.role for message in corrected] == ["user", "assistant", "user"]
    assert corrected[1].text == r"\boxed{44}"
