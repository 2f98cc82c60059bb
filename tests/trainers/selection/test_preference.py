"""Preference rows of debates counted by hand, and what must hold for any of them."""

from __future__ import annotations

from array import array
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from protocols.catalogue import load_protocol_prompts
from protocols.errors import ConfigError
from protocols.graph import Debate
from protocols.reflect import ReflectSettings
from protocols.society import SocietySettings
from tests.trainers.selection import test_maft
from tests.trainers.selection.test_retold import TASK, TEACHER, WORKED, reflected
from trainers.selection.context_pack import Limits
from trainers.selection.preference import (
    Amplification,
    Prompter,
    TreeSettings,
    amplification_of,
    preference_rows,
    select_preferences,
)
from trainers.selection.preference_row import Preference
from trainers.selection.rule import RuleOptions
from trainers.selection.select import select
from trainers.tuning.pack import TokenPair, pack_pairs

GOLD = RuleOptions(label="gold")


def words(text: str) -> int:
    return len(text.split())


PROMPTER = Prompter(load_protocol_prompts("reflect", ReflectSettings()), words)


def rows_of(debate: Debate, options: RuleOptions = GOLD, *, packed: bool = True, **settings: Any) -> list[Preference]:
    return preference_rows(
        debate, "s", options=options, settings=TreeSettings(**settings), prompter=PROMPTER if packed else None
    )


def pairs_of(rows: list[Preference]) -> list[tuple[str, str]]:
    return [row.node_ids for row in rows]


#           right   wrong   pairs           turned right   turned or stayed wrong
# round 0   0 2     1 3     4               none has turned yet
# round 1   0 1     2 3     4               1              2 3
# round 2   0 1 2   3       3               2              3
# round 3   0 1 3   none    0               3              none
def test_every_right_answer_is_preferred_to_every_wrong_one_of_its_round() -> None:
    rows = rows_of(reflected(*WORKED))
    assert pairs_of(rows) == [
        *(("0.answer.0", "0.answer.1"), ("0.answer.0", "0.answer.3")),
        *(("0.answer.2", "0.answer.1"), ("0.answer.2", "0.answer.3")),
        *(("1.answer.0", "1.answer.2"), ("1.answer.0", "1.answer.3")),
        *(("1.answer.1", "1.answer.2"), ("1.answer.1", "1.answer.3")),
        *(("2.answer.0", "2.answer.3"), ("2.answer.1", "2.answer.3"), ("2.answer.2", "2.answer.3")),
    ]
    assert rows[0] == Preference(
        id="d:0.answer.0>0.answer.1:same_round",
        agent="s",
        rule="same_round",
        debate_id="d",
        node_ids=("0.answer.0", "0.answer.1"),
        prompt=tuple(reflected(*WORKED).conversation("0.answer.3")),
        chosen="### Answer\n0.answer.0 adds up.\nFinal answer: 43",
        rejected="### Answer\n0.answer.1 adds up.\nFinal answer: 44",
    )


def test_transitions_pair_who_turned_right_with_who_turned_or_stayed_wrong() -> None:
    assert pairs_of(rows_of(reflected(*WORKED), pairing="transition")) == [
        ("1.answer.1", "1.answer.2"),
        ("1.answer.1", "1.answer.3"),
        ("2.answer.2", "2.answer.3"),
    ]


def test_a_later_rounds_prompt_shows_the_round_before_and_what_was_said_of_it() -> None:
    debate = reflected(*WORKED)
    (text,) = {row.prompt[-1].text for row in rows_of(debate) if row.node_ids[0].startswith("1.")}
    assert TASK.question in text and "Final answer" in text
    assert all(node.reply.text in text for node in debate.turns(round=0))
    remarks = [f"remark 0.critique.{giver}-{taker}" for giver in (0, 2) for taker in (1, 3)]
    assert all(remark in text for remark in (*remarks, "remark 0.reflect.1", "remark 0.reflect.3"))
    for answer in ("1", "3"):  # remarks stand with the answer that they are about
        block = text[text.index(f"0.answer.{answer} adds up") :]
        assert block.index(f"remark 0.reflect.{answer}") < block.index(f"remark 0.critique.0-{answer}")


@pytest.mark.parametrize(
    ("switches", "shown"),
    [
        ({}, (True, True)),
        ({"feedback": False}, (True, False)),
        ({"reflection": False}, (False, True)),
        ({"reflection": False, "feedback": False}, (False, False)),
    ],
)
def test_reflections_and_feedback_can_be_left_out(switches: dict[str, Any], shown: tuple[bool, bool]) -> None:
    text = rows_of(reflected(*WORKED), **switches)[-1].prompt[-1].text
    assert ("remark 1.reflect" in text, "remark 1.critique" in text) == shown


def test_what_does_not_fit_one_prompt_goes_into_several_and_each_pair_is_under_all() -> None:
    """Blocks of 10, 10, 34 and 34 words: the short ones fit into 30 together, a long one stands alone."""
    debate = reflected(*WORKED)
    whole, packed = rows_of(debate), rows_of(debate, limits=Limits(block=100, cut=50, context=30))
    prompts = {number: {row.prompt for row in packed if row.node_ids[0].startswith(f"{number}.")} for number in "012"}
    assert {number: len(found) for number, found in prompts.items()} == {"0": 1, "1": 3, "2": 3}
    assert len(packed) == 4 + 3 * 4 + 3 * 3 and set(pairs_of(packed)) == set(pairs_of(whole))
    assert len({row.id for row in packed}) == len(packed)
    in_order = [row.prompt for row in packed]
    assert sum(one != other for one, other in pairwise(in_order)) == 6  # trees hold together


def test_neither_question_nor_instructions_are_ever_cut() -> None:
    """D&R's training cuts prompts from the left at 1000 tokens: the question stands there."""
    long = "because " * 3000
    debate = reflected(*WORKED[:2])
    debate.utterances = [
        msgspec.structs.replace(node, reply=msgspec.structs.replace(node.reply, text=long + node.reply.text))
        for node in debate.utterances
    ]
    later = [row for row in rows_of(debate) if row.node_ids[0].startswith("1.")]
    assert later
    for row in later:
        text = row.prompt[-1].text
        assert TASK.question in text and text.endswith(debate.utterance("1.answer.0").prompt[-1].text[-80:])
        assert words(text) < 1000 + 100  # the question and its instructions are 80 words
        assert "Final answer: 4" in text  # how a cut answer ends is kept


def test_a_debates_rows_are_whole_trees_to_those_who_pack_them() -> None:
    def ids(text: str) -> array[int]:
        return array("i", list(text.encode()))

    rows = rows_of(reflected(*WORKED))
    pairs = [TokenPair(row.debate_id, ids(row.prompt[-1].text), ids(row.chosen), ids(row.rejected)) for row in rows]
    packing = pack_pairs(pairs, token_budget=100_000)
    once = {(row.prompt, text) for row in rows for text in (row.chosen, row.rejected)}
    most = sum(len(text) for _, text in once) + sum(len(row[-1].text) for row in {row.prompt for row in rows})
    assert not packing.refused and sum(pack.num_tokens for pack in packing.packs) <= most
    assert len(once) == 12 and sum(pair.num_tokens for pair in pairs) > 5 * most


def test_supervised_rows_and_preferences_word_an_answer_alike() -> None:
    """D&R's code wraps answers in dollars in one set and not in the other."""
    debate = reflected(*WORKED)
    for options in (TEACHER, msgspec.structs.replace(TEACHER, form="sections")):
        taught = {row.node_ids[0]: row.completion for row in select(options, debate)["s"]}
        chosen = {row.node_ids[0]: row.chosen for row in rows_of(debate, options)}
        common = taught.keys() & chosen.keys()
        assert len(common) == 7 and {taught[node] for node in common} == {chosen[node] for node in common}


def test_without_gold_the_vote_says_who_was_right_and_oracles_teach_nothing() -> None:
    by_vote = RuleOptions()
    assert rows_of(reflected(*WORKED), by_vote) == []
    free = reflected(*WORKED, oracle=False, stop=())
    assert pairs_of(rows_of(free, by_vote)) == pairs_of(rows_of(free))
    assert rows_of(free, RuleOptions(min_support=5)) == []


def test_any_society_has_trees_under_the_question_alone() -> None:
    debate = test_maft.society(*test_maft.WORKED)
    rows = preference_rows(debate, "g0", options=RuleOptions(), settings=TreeSettings(root="question"))
    assert pairs_of(rows) == [
        *(("0.answer.0", "0.answer.1"), ("0.answer.0", "0.answer.3")),
        *(("0.answer.2", "0.answer.1"), ("0.answer.2", "0.answer.3")),
        *(("1.answer.0", "1.answer.2"), ("1.answer.1", "1.answer.2"), ("1.answer.3", "1.answer.2")),
    ]
    assert {row.prompt for row in rows} == {tuple(debate.conversation("0.answer.0"))}


@pytest.mark.parametrize("rounds", ["43 43 43 43", "44 44 44 45", "- - - -"])
def test_a_round_without_both_kinds_gives_nothing(rounds: str) -> None:
    assert rows_of(reflected(rounds)) == []


def test_the_students_learn_unless_others_are_named() -> None:
    debate, settings = reflected(*WORKED), TreeSettings()
    assert {agent: len(rows) for agent, rows in select_preferences(TEACHER, debate, settings, PROMPTER).items()} == {
        "s": 11
    }
    named = select_preferences(msgspec.structs.replace(TEACHER, agents=("t0", "s")), debate, settings, PROMPTER)
    assert [{row.agent for row in rows} for rows in named.values()] == [{"t0"}, {"s"}]
    assert select_preferences(TEACHER, reflected("43 43 43 43"), settings) == {}


def test_held_out_tasks_have_no_preferences() -> None:
    debate = reflected(*WORKED)
    held_out = msgspec.structs.replace(debate, task=msgspec.structs.replace(debate.task, held_out=True))
    assert rows_of(held_out) == [] != rows_of(debate)


def test_an_answer_that_hit_its_limit_has_no_end_to_learn() -> None:
    debate = reflected(*WORKED[:1])
    cut = msgspec.structs.replace(debate.utterances[1].reply, finish_reason="length")
    debate.utterances[1] = msgspec.structs.replace(debate.utterances[1], reply=cut)
    assert [row.finish_reasons for row in rows_of(debate)][:2] == [("stop", "length"), ("stop", "stop")]


def test_amplification_counts_rows_for_each_that_plain_distillation_has() -> None:
    debate = reflected(*WORKED)
    rows = rows_of(debate)
    counted = amplification_of(debate, "s", TEACHER, rows)
    assert counted == Amplification(distilled=2, supervised=9, pairs=11, preferences=11)
    settled = amplification_of(reflected("43 43 43 43"), "s", TEACHER, [])
    assert (counted + settled).factor == (9 + 3 + 11) / (2 + 3)
    assert Amplification().factor == 0.0


def test_a_prompt_set_without_blocks_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"'society.number.en' shows no blocks of answers.* or root: question"):
        Prompter(load_protocol_prompts("society", SocietySettings()), words)
