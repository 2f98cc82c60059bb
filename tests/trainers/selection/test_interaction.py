"""A debate as MAGDi's student learns from it: nodes, classes, edges and pairs by hand; traps of the released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from protocols.errors import TrainerError
from protocols.formats.magdi import Edges, magdi_graph, read_magdi
from protocols.graph import Debate
from tests.protocols.formats.samples import magdi
from tests.trainers.conftest import MakeDebate
from tests.trainers.selection.test_retold import TASK, WORKED, reflected
from trainers.selection.interaction import Interaction, interaction_of, without_agreement
from trainers.selection.rule import RuleOptions

GOLD = RuleOptions(label="gold")
R, W = True, False


def row_of(debate: Debate, options: RuleOptions = GOLD, edges: Edges = "causal") -> Interaction:
    row = interaction_of(debate, "s", options=options, edges=edges)
    assert row is not None
    return row


def test_every_answer_is_a_node_and_who_failed_is_none() -> None:
    """Four seats, four rounds; the third seat fails in the last, after "43 44 43"."""
    debate = reflected(*WORKED)
    row = row_of(debate)
    assert row.right == (R, R, R, R, W, R, R, R, R, W, R, W, W, W, R)
    assert row.node_ids == tuple(f"{r}.answer.{seat}" for seat in range(4) for r in range(4 - (seat == 2)))
    # Nothing stands for the answer that did not come: there it is "None" with the round's before it, and a third class.
    assert row.replies == tuple(debate.utterance(node).reply.text for node in row.node_ids)
    names = [(row.node_ids[one], row.node_ids[other]) for one, other in row.edges]
    wanted = {
        (f"{r}.answer.{one}", f"{r + 1}.answer.{other}")
        for r in range(3)
        for one in range(4)
        for other in range(4)
        if (r + 1, other) != (3, 2)
    }
    assert len(names) == len(set(names)) == 44 and set(names) == wanted


def test_an_answer_that_did_not_come_in_an_early_round_leaves_later_ones_where_they_were() -> None:
    row = row_of(reflected("43 - 44 44", "43 44 43 44", "43 44 44 43"))
    nodes = dict(zip(row.node_ids, row.right, strict=True))
    assert "0.answer.1" not in nodes and nodes["1.answer.1"] is W and nodes["1.answer.2"] is R
    into = {row.node_ids[one] for one, other in row.edges if row.node_ids[other] == "1.answer.1"}
    assert into == {"0.answer.0", "0.answer.2", "0.answer.3"}


def test_each_right_answer_is_set_against_wrong_ones_of_its_own_debate() -> None:
    row = row_of(reflected(*WORKED))
    wrong = [4, 9, 11, 12, 13]
    assert row.pairs == tuple(zip([0, 1, 2, 3, 5, 6, 7, 8, 10, 14], wrong * 2, strict=True))
    assert row_of(reflected("43 43 43 43", stop=())).pairs == ((0, None), (1, None), (2, None), (3, None))
    assert row_of(reflected("44 44 43 44", stop=())).pairs == ((2, 0), (2, 1), (2, 3))


@pytest.mark.parametrize("kind", ["causal", "magdi_legacy"])
def test_the_graph_is_the_one_that_is_exported(kind: Edges) -> None:
    """Its twelve numbers, less those of nodes that nobody spoke: of three agents, in the order of MAGDi's file."""
    debate = read_magdi(magdi(), "f")[0]
    exported, row = magdi_graph(debate, edges=kind), row_of(debate, edges=kind)
    places = {number: node for number, node in enumerate(exported["node_ids"]) if node}
    assert row.node_ids == tuple(places.values())
    assert row.right == tuple(exported["labels"][number] == 1 for number in places)
    drawn = zip(*exported["edge_index"], strict=True)
    wanted = [(places[one], places[other]) for one, other in drawn if one in places and other in places]
    assert [(row.node_ids[one], row.node_ids[other]) for one, other in row.edges] == wanted
    named = [(row.node_ids[one], row.node_ids[other or 0]) for one, other in row.pairs]
    assert named == [(places[one], places[other]) for one, other in exported["pairs"]]


def test_one_agent_in_every_seat_is_as_many_nodes(make_debate: MakeDebate) -> None:
    debate = make_debate([("ada", "It is 42."), ("ada", "It is 41."), ("ada", "I pass.")], "42", correct=None)
    row = row_of(debate, RuleOptions())
    assert (row.node_ids, row.right) == (("0.answer.0", "0.answer.1", "0.answer.2"), (R, W, W))  # unread is wrong
    twice = [msgspec.structs.replace(debate.utterances[1], id="0.again.0")]
    doubled = msgspec.structs.replace(debate, utterances=[*debate.utterances, *twice])
    with pytest.raises(TrainerError, match="debate 'd': 'ada' answers twice from one seat in round 0"):
        row_of(doubled, RuleOptions())


def test_what_a_label_cannot_tell_or_nobody_got_right_teaches_nothing(make_debate: MakeDebate) -> None:
    def learned(debate: Debate, options: RuleOptions = GOLD) -> Interaction | None:
        return interaction_of(debate, "s", options=options)

    assert learned(reflected("44 44 44 -", stop=())) is None  # nobody was right
    assert learned(reflected("- - - -")) is None  # nobody answered
    assert learned(reflected(*WORKED), RuleOptions()) is None  # gold was used on the way, and labels are the vote's
    assert learned(reflected(*WORKED, task=msgspec.structs.replace(TASK, held_out=True))) is None
    ungraded = make_debate([("ada", "It is 42."), ("bo", "It is 41.")], "42")
    assert learned(ungraded) is None
    assert row_of(ungraded, RuleOptions()).right == (R, W)
    assert learned(ungraded, RuleOptions(min_support=3)) is None


def test_all_answer_the_question_as_the_student_is_asked_it() -> None:
    debate = reflected(*WORKED, persona="You are a professor.")
    row = row_of(debate)
    assert row.prompt == tuple(debate.conversation("0.answer.3")) and "professor" not in row.prompt[0].text
    assert (row.id, row.agent, row.rule, row.finish_reasons) == (f"{debate.id}:magdi", "s", "magdi", ("stop",) * 15)


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("I agree with Bo. 3.5 and 2 is 5.5.\nFinal answer: 5.5", "3.5 and 2 is 5.5.\nFinal answer: 5.5"),
        ("Sure. I disagree that 3.5 is it! It is 4.", "Sure. It is 4."),
        ("I agree\nIt is 4.\nFinal answer: I agree", "\nIt is 4.\nFinal answer: I agree"),
        ("Do I agree? I think so.", "Do I agree? I think so."),
    ],
)
def test_sentences_that_agree_with_others_are_left_out(said: str, left: str) -> None:
    assert without_agreement(said) == left


def test_they_are_left_out_of_answers_in_sections_alone(make_debate: MakeDebate) -> None:
    debate = make_debate([("ada", "I agree. It is\nFinal answer: 42")], "42")
    assert row_of(debate, RuleOptions(form="as_said")).replies == ("I agree. It is\nFinal answer: 42",)
    assert row_of(debate, RuleOptions(form="sections")).replies == ("### Answer\nIt is\nFinal answer: 42",)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: {"right": row.right[1:]}, "has 15 nodes, but not as many replies, endings and labels"),
        (lambda row: {"right": (W, *row.right[1:])}, "pairs nodes 0 and 4, which are not a right and a wrong one"),
        (lambda row: {"pairs": ((0, 15),)}, "pairs nodes 0 and 15, which are not a right and a wrong one"),
        (lambda row: {"edges": ((0, 15),)}, "has an edge to a node that is not there"),
    ],
)
def test_a_row_that_does_not_fit_together_cannot_be_made_or_read(
    change: Callable[[Interaction], dict[str, Any]], says: str
) -> None:
    """In the released code graphs are dealt out in turn to the pairs of all questions: labels are of other answers."""
    row = row_of(reflected(*WORKED))
    data = msgspec.to_builtins(row)
    with pytest.raises(msgspec.ValidationError, match=says):
        msgspec.convert(data | change(row), Interaction)
