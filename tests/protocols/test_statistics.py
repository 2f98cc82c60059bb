"""How debates went, counted by hand, and what must hold of any counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from protocols.answer import Answer, grade
from protocols.catalogue import load_protocol_prompts
from protocols.conversation import Player
from protocols.errors import TaskError
from protocols.graph import Debate, Edge, EdgeKind, Utterance, Verdict, decode_debate, encode_debate
from protocols.message import Reply, Usage
from protocols.society import Society, SocietySettings
from protocols.statistics import OPEN, Agreement, Influence, Score, Spend, Stance, Statistics, statistics
from protocols.task import Task
from tests.fakes import node_of, play
from tests.protocols.test_every_protocol import ANY_SETUP, TASKS, Setup, wild

TASK = Task(id="t", question="What is 24 + 19?", gold=("43",))
HALF = Agreement(debates=1, answers=2, pairs=1, largest=0.5, distinct=2, entropy_bits=1.0, worded_pairs=1)
Line = tuple[str, str | None] | tuple[str, str | None, dict[str, Any]]


def debate(*lines: Line, edges: Sequence[str] = (), task: Task = TASK, verdict: Verdict | None = None) -> Debate:
    """Lines are (node id, answer, other fields); edges read "source kind target". Agents are named by their seats."""
    built = Debate(id="d", task=task, protocol="p", seed=0, cast={})
    for node_id, value, *more in lines:
        fields: dict[str, Any] = dict(*more)
        number, step, seat = node_id.partition("~")[0].split(".")
        answer = fields.pop("answer", Answer(value, "said" if value is not None else ""))
        made: dict[str, Any] = {
            "agent": f"agent{seat}",
            "role": "debater",
            "answer": answer,
            "correct": grade(answer, task) if fields.get("answers", True) else None,
        }
        spent = Usage(10, fields.pop("tokens", 4))
        reply = Reply(ask_id=node_id, text="", model=fields.pop("model", "m"), usage=spent)
        kinds = [edge.split() for edge in edges]
        into: list[tuple[str, EdgeKind]] = [(source, kind) for source, kind, target in kinds if target == node_id]  # type: ignore[misc]
        node = Utterance(id=node_id, round=int(number), phase=step, prompt=(), reply=reply, **(made | fields))
        built.add(node, [Edge(source, node_id, kind) for source, kind in into])
    if verdict is not None:
        built.close(verdict)
    return built


def says(answer: str | None, **details: str) -> Verdict:
    return Verdict(answer=answer, stop_reason="rounds", aggregator="judge", details=details)


def society() -> Debate:
    """0: 43 44 43, then 44 44 43; the majority is wrong."""
    said = {"0.answer.0": 43, "0.answer.1": 44, "0.answer.2": 43, "1.answer.0": 44, "1.answer.1": 44, "1.answer.2": 43}
    settings = SocietySettings(rounds=2)
    players = tuple(Player(name=name) for name in ("ada", "bo", "cy"))
    machine = Society(settings, {"generator": players}, load_protocol_prompts("society", settings))
    return play(machine, TASK, lambda ask: rf"\boxed{{{said[node_of(ask)]}}}", seed=5).debate


def test_a_society_counted_by_hand() -> None:
    found = statistics([society()])
    assert found.moves == {1: {"ada": {"right > wrong": 1}, "bo": {"wrong > wrong": 1}, "cy": {"right > right": 1}}}
    assert found.stances == {"bo": Stance(contested=1, kept=1)}  # the other two saw one of each answer
    assert found.influence == {
        "ada": {"bo": Influence(credit=1.0, chances=1)},
        "bo": {"ada": Influence(chances=1), "cy": Influence(chances=1)},
        "cy": {"bo": Influence(chances=1)},
    }
    entropy = math.log2(3) - 2 / 3  # of thirds, two to one
    # "\\boxed{43}" is 5 words and 4 pairs; one word and the two pairs it is in are others: cos = 6/9, for two of three
    each = Agreement(
        debates=1,
        answers=3,
        pairs=3,
        equal_pairs=1,
        largest=2 / 3,
        distinct=2,
        entropy_bits=entropy,
        worded_pairs=3,
        wording_distance=2 / 3,
    )
    for number in (0, 1):
        got = found.rounds[number]
        assert msgspec.structs.astuple(got) == pytest.approx(msgspec.structs.astuple(each))
    assert found.backing_agents == {
        "ada": Score(played=1, won=1),
        "bo": Score(played=1, won=1),
        "cy": Score(played=1),
    }
    assert found.backing_models == {"fake": Score(played=3, won=2)}
    assert (found.stop_reasons, found.rounds_used, found.sides) == ({"rounds": 1}, {2: 1}, {})
    assert found.agents["ada"] == Spend(calls=2, prompt_tokens=14, completion_tokens=6)
    assert found.roles.keys() == {"critic", "generator"}
    assert found.spent == Spend(calls=6, prompt_tokens=42, completion_tokens=18)
    assert (found.openings, found.opening_tokens, found.cost_ratio) == (3, 9, 6.0)


def test_credit_is_split_evenly_among_all_who_were_seen_with_the_answer() -> None:
    opened = [(f"0.answer.{seat}", value) for seat, value in enumerate(("1", "43", "43.0", "43", "2"))]
    seen = [f"0.answer.{seat} saw 1.answer.0" for seat in (1, 2, 3, 4)]
    found = statistics([debate(*opened, ("1.answer.0", "43"), edges=["0.answer.0 memory 1.answer.0", *seen])])
    third = Influence(credit=1 / 3, right=1 / 3, chances=1)
    assert found.influence == {
        "agent0": {"agent1": third, "agent2": third, "agent3": third, "agent4": Influence(chances=1)}
    }
    assert found.stances == {"agent0": Stance(contested=1)}
    assert statistics([debate(*opened, ("1.answer.0", "43"))]).influence == {}  # it saw nobody


def test_thirds_of_three_debates_add_up_to_one() -> None:
    opened = [(f"0.answer.{seat}", value) for seat, value in enumerate(("1", "43", "43", "43"))]
    one = debate(*opened, ("1.answer.0", "43"), edges=[f"0.answer.{seat} saw 1.answer.0" for seat in (1, 2, 3)])
    assert statistics([one] * 3).influence["agent0"]["agent1"].credit == 1.0


def test_what_is_no_answer_passes_on_what_it_saw() -> None:
    helper = {"answers": False, "role": "helper"}
    found = statistics(
        [
            debate(
                ("0.answer.0", "1"),
                ("0.answer.1", "43"),
                ("0.answer.2", "7"),
                ("0.summarise.0", None, helper),
                ("0.critique.2-0", None, helper),
                ("1.answer.0", "43"),
                edges=[
                    "0.answer.1 saw 0.summarise.0",
                    "0.answer.2 memory 0.critique.2-0",  # who criticises rests on its own answer
                    "0.answer.0 saw 0.critique.2-0",
                    "0.answer.0 memory 1.answer.0",
                    "0.summarise.0 summary 1.answer.0",
                    "0.critique.2-0 critique 1.answer.0",
                ],
            )
        ]
    )
    assert found.influence == {
        "agent0": {"agent1": Influence(credit=1.0, right=1.0, chances=1), "agent2": Influence(chances=1)}
    }
    assert found.rounds[0].answers == 3


def test_of_a_seat_seen_twice_the_latest_answer_counts() -> None:
    edges = ["0.answer.1 saw 2.answer.0", "1.answer.1 saw 2.answer.0"]
    found = statistics(
        [debate(("0.answer.0", "1"), ("0.answer.1", "2"), ("1.answer.1", "3"), ("2.answer.0", "2"), edges=edges)]
    )
    assert found.influence == {"agent0": {"agent1": Influence(chances=1)}}


def test_a_seat_goes_on_from_its_generator_to_its_critic() -> None:
    lines: list[Line] = [("0.answer.0", "43", {"agent": "g"}), ("1.answer.0", "1", {"agent": "c"})]
    assert statistics([debate(*lines)]).moves == {1: {"c": {"right > wrong": 1}}}


@pytest.mark.parametrize(
    ("before", "after", "gold", "named"),
    [
        ("1", "43", ("43",), "wrong > right"),
        ("1", "2", ("43",), "wrong > other wrong"),
        ("1", "1.0", ("43",), "wrong > wrong"),
        ("1", None, ("43",), "wrong > unparsed"),
        (None, None, ("43",), "unparsed > unparsed"),
        (None, "43", ("43",), "unparsed > right"),
        ("43", "44", ("43", "44"), "right > other right"),
        ("1", "2", (), "ungraded > other ungraded"),
        ("1", "1", (), "ungraded > ungraded"),
    ],
)
def test_moves(before: str | None, after: str | None, gold: tuple[str, ...], named: str) -> None:
    task = Task(id="t", question="", gold=gold)
    found = statistics([debate(("0.answer.0", before), ("1.answer.0", after), task=task)])
    assert found.moves == {1: {"agent0": {named: 1}}}


def test_an_unparsed_answer_convinces_nobody_and_cannot_be_convinced() -> None:
    edges = ["0.answer.1 saw 1.answer.0", "0.answer.0 saw 1.answer.1"]
    found = statistics(
        [debate(("0.answer.0", None), ("0.answer.1", "43"), ("1.answer.0", "43"), ("1.answer.1", None), edges=edges)]
    )
    assert (found.influence, found.stances) == ({}, {})
    assert found.rounds[0] == Agreement(debates=1, answers=2, pairs=1, largest=0.5, distinct=1, worded_pairs=1)


def test_half_of_those_seen_is_no_majority() -> None:
    opened = [(f"0.answer.{seat}", value) for seat, value in enumerate(("1", "2", "1", "3"))]
    edges = [f"0.answer.{seat} saw 1.answer.0" for seat in (1, 2)]
    assert statistics([debate(*opened, ("1.answer.0", "1"), edges=edges)]).stances == {}
    edges.append("0.answer.3 saw 1.answer.0")  # two of three differ, if not from each other
    assert statistics([debate(*opened, ("1.answer.0", "1"), edges=edges)]).stances == {
        "agent0": Stance(contested=1, kept=1)
    }


def test_the_task_s_tolerance_decides_what_is_equal() -> None:
    task = Task(id="t", question="", gold=("1.0",), tolerance=0.1)
    found = statistics([debate(("0.answer.0", "1.0"), ("0.answer.1", "1.05"), ("1.answer.0", "1.05"), task=task)])
    assert found.rounds[0] == Agreement(
        debates=1, answers=2, pairs=1, equal_pairs=1, unanimous=1, largest=1.0, distinct=1, worded_pairs=1
    )
    assert found.moves == {1: {"agent0": {"right > right": 1}}}


def test_second_tries_and_unparsed_replies_by_role() -> None:
    found = statistics(
        [
            debate(
                ("0.answer.0", None, {"answers": False}),
                ("0.answer.0~1", "43"),
                ("0.answer.1", None),
                ("0.judge.j", None, {"answers": False, "role": "judge"}),
                ("0.judge.j~1", None, {"answers": False, "role": "judge", "answer": Answer(None, "nobody yet")}),
                ("0.sum.s", None, {"answers": False, "role": "summariser"}),
                edges=["0.answer.0 memory 0.answer.0~1"],
            )
        ]
    )
    assert found.roles == {
        "debater": Spend(calls=3, prompt_tokens=30, completion_tokens=12, unparsed=2, second_tries=1),
        "judge": Spend(calls=2, prompt_tokens=20, completion_tokens=8, unparsed=1, second_tries=1),
        "summariser": Spend(calls=1, prompt_tokens=10, completion_tokens=4),
    }
    assert (found.openings, found.opening_tokens) == (2, 8)
    assert found.rounds == {0: Agreement(debates=1, answers=2, pairs=1, largest=0.5, distinct=1, worded_pairs=1)}


def sided(winner: str, first: str = "big", second: str = "small", judge: str = "big") -> Debate:
    return debate(
        ("0.affirm.aff", "1", {"role": "affirmative", "model": first}),
        ("0.oppose.neg", "2", {"role": "negative", "model": second}),
        ("0.judge.mod", None, {"role": "moderator", "model": judge, "answers": False}),
        edges=["0.affirm.aff saw 0.oppose.neg"],
        verdict=says("1" if winner == "Affirmative" else "2", side=winner, reason="because"),
    )


def test_winners_by_side_crossed_with_model() -> None:
    found = statistics([sided("Affirmative"), sided("Affirmative"), sided("negative"), sided("negative", "small")])
    assert found.sides == {"affirmative": Score(played=4, won=2), "negative": Score(played=4, won=2)}
    assert found.side_models == {
        "affirmative": {"big": Score(played=3, won=2), "small": Score(played=1)},
        "negative": {"small": Score(played=4, won=2)},
    }
    assert found.matchups == {
        "big": {"big": {"small": {"affirmative": 2, "negative": 1}}, "small": {"small": {"negative": 1}}}
    }
    assert found.backing_roles == {"affirmative": Score(played=4, won=2), "negative": Score(played=4, won=2)}
    assert found.openings == 4  # the negative had seen the affirmative


def test_sides_are_also_known_by_their_seats() -> None:
    found = statistics([debate(("0.argue.a", "1"), ("0.argue.b", "2", {"model": "n"}), verdict=says("2", side="b"))])
    assert found.sides == {"a": Score(played=1), "b": Score(played=1, won=1)}
    assert found.side_models == {"a": {"m": Score(played=1)}, "b": {"n": Score(played=1, won=1)}}
    assert found.matchups == {}  # nobody judged


def test_who_helps_a_side_does_not_speak_for_it() -> None:
    helper = {"model": "big", "answers": False}
    found = statistics(
        [
            debate(
                ("0.argue.a-0", None, {"answers": False}),
                ("0.prefer.a-1", None, helper | {"role": "preference"}),
                ("0.argue.b", None, {"answers": False}),
                ("1.judge.0", None, helper | {"role": "judge"}),
                verdict=says("1", side="a"),
            )
        ]
    )
    assert found.side_models == {"a": {"m": Score(played=1, won=1)}, "b": {"m": Score(played=1)}}
    assert found.matchups == {"big": {"m": {"m": {"a": 1}}}}


@pytest.mark.parametrize("side", ["", " "])
def test_a_verdict_that_names_no_side_counts_for_none(side: str) -> None:
    found = statistics([debate(("0.argue.a", "1"), ("0.argue.b", "2"), verdict=says(None, side=side))])
    assert (found.sides, found.side_models, found.matchups) == ({}, {}, {})


def test_where_a_third_wins_both_sides_lose() -> None:
    lines: list[Line] = [("0.argue.a", "1"), ("0.argue.b", "2"), ("0.argue.c", "3", {"model": "third"})]
    found = statistics([debate(*lines, verdict=says("3", side="Debater </td>"))])
    won = {"debater </td>": Score(played=1, won=1)}
    assert found.sides == {"a": Score(played=1), "b": Score(played=1)} | won
    assert found.side_models == {"a": {"m": Score(played=1)}, "b": {"m": Score(played=1)}}
    assert statistics([debate(("0.answer.0", "1"), verdict=says("1", side="Debater </td>"))]).sides == won


def test_debates_that_hold_nothing_or_are_open() -> None:
    assert statistics([]) == Statistics()
    assert Statistics().cost_ratio is None
    empty = statistics([debate()])
    assert (empty.num_debates, empty.stop_reasons, empty.rounds_used) == (1, {OPEN: 1}, {0: 1})
    half_way = statistics([debate(("0.answer.0", "1"), ("0.answer.1", "2"))])
    assert half_way.rounds == {0: HALF}
    assert half_way.backing_agents == {}


def test_they_are_kept_as_json() -> None:
    found = statistics([society(), sided("negative")])
    assert msgspec.json.decode(msgspec.json.encode(found), type=Statistics) == found


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(ANY_SETUP, TASKS, st.integers(0, 2**32))
def test_whatever_a_protocol_leaves_behind_can_be_counted(setup: Setup, task: Task, seed: int) -> None:
    try:
        left = play(setup.machine(), task, wild(seed), seed=seed).debate
    except TaskError:  # the protocol can do nothing with this task
        reject()
    found = statistics([left])
    assert found.spent.calls == len(left.utterances)
    assert found.stop_reasons == {left.verdict.stop_reason if left.verdict else OPEN: 1}
    assert sum(round_.answers for round_ in found.rounds.values()) <= len(list(left.turns()))
    assert statistics([decode_debate(encode_debate(left))]) == found


NAMES = ("ada", "bo", "cy")


@st.composite
def debates(draw: st.DrawFn) -> Debate:
    lines: list[Line] = []
    edges: list[str] = []
    for number in range(draw(st.integers(0, 3))):
        before = [line[0] for line in lines]
        for seat in range(draw(st.integers(0, 3))):
            node_id = f"{number}.answer.{seat}"
            fields = {
                "agent": draw(st.sampled_from(NAMES)),
                "role": draw(st.sampled_from(["affirmative", "negative", "judge"])),
                "model": draw(st.sampled_from(["big", "small"])),
                "tokens": draw(st.integers(0, 9)),
                "answers": draw(st.booleans()),
            }
            lines.append((node_id, draw(st.sampled_from(["43", "1", "2", None])), fields))
            seen = draw(st.lists(st.sampled_from(before), unique=True)) if before else []
            edges += [f"{source} {draw(st.sampled_from(['saw', 'summary', 'memory']))} {node_id}" for source in seen]
    side = draw(st.sampled_from(["affirmative", "negative", ""]))
    verdict = draw(st.sampled_from([None, says("43", side=side), says(None)]))
    return debate(*lines, edges=edges, verdict=verdict)


MANY = st.lists(debates(), max_size=5)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], float]:
    """Every number in the counts, by where it stands."""
    if isinstance(value, dict):
        return {place: found for key in value for place, found in leaves(value[key], (*path, key)).items()}
    return {path: value}


def counts(found: Statistics) -> dict[tuple[Any, ...], float]:
    return leaves(msgspec.to_builtins(found))


@given(MANY)
def test_the_counts_of_many_are_the_sums_of_each(many: list[Debate]) -> None:
    parts = [counts(statistics([one])) for one in many]
    places = {place for part in parts for place in part} | counts(Statistics()).keys()
    sums = {place: sum(part.get(place, 0) for part in parts) for place in places}
    assert counts(statistics(many)) == pytest.approx(sums)


@given(MANY, st.randoms(use_true_random=False))
def test_the_order_of_debates_leaves_no_trace(many: list[Debate], random: Any) -> None:
    shuffled = list(many)
    random.shuffle(shuffled)
    assert msgspec.json.encode(statistics(shuffled)) == msgspec.json.encode(statistics(many))


@given(MANY)
def test_agents_under_other_names_are_counted_under_those(many: list[Debate]) -> None:
    other = dict(zip(NAMES, ("zed", "yan", "xia"), strict=True))
    renamed = [msgspec.structs.replace(one, utterances=[*one.utterances]) for one in many]
    for one in renamed:
        one.utterances = [msgspec.structs.replace(node, agent=other[node.agent]) for node in one.utterances]
    expected = {tuple(other.get(name, name) for name in at): n for at, n in counts(statistics(many)).items()}
    assert counts(statistics(renamed)) == expected


@given(MANY)
def test_what_must_hold_of_any_counts(many: list[Debate]) -> None:
    found = statistics(many)
    assert found.num_debates == sum(found.stop_reasons.values()) == sum(found.rounds_used.values()) == len(many)
    assert sum(spend.calls for spend in found.agents.values()) == found.spent.calls
    assert found.spent.calls == sum(len(one.utterances) for one in many)
    assert all(stance.kept <= stance.contested for stance in found.stances.values())
    for by in found.influence.values():
        assert all(0 <= one.right <= one.credit <= one.chances for one in by.values())
    for round_ in found.rounds.values():
        assert round_.equal_pairs <= round_.pairs and round_.unanimous <= round_.debates <= round_.answers
        assert 0 <= round_.entropy_bits <= round_.debates * math.log2(3)
    for groups in (found.sides, found.backing_agents, found.backing_roles, found.backing_models):
        assert all(score.won <= score.played for score in groups.values())
