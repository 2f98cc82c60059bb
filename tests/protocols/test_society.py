"""The society, against debates worked by hand."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from protocols.answer import Answer
from protocols.catalogue import load_protocol_prompts
from protocols.conversation import Player
from protocols.errors import ConfigError, IllegalEventError, TaskError
from protocols.graph import Verdict
from protocols.machine import AgentFailed, BudgetSpent, DeadlinePassed, Event, Opened, Replied, derive_seed
from protocols.message import Ask, ImagePart, Sampling, assistant
from protocols.prompt import PromptSet
from protocols.society import Society, SocietySettings
from protocols.task import Task
from tests.fakes import Answering, Played, by_node, failure_of, node_of, open_debate, play, reply_to, told

TASK = Task(id="t", question="What is 24 + 19?", gold=("43",))
PLAIN = PromptSet(
    "plain",
    {
        "system": "Be brief.",
        "opening": "Q ${question}",
        "revise": "Q ${question} OWN ${own} PEERS ${peers}",
        "self_check": "Q ${question} OWN ${own} ALONE",
        "peer": "<${number}: ${reply}>",
        "summarise": "Q ${question} SUM ${peers}",
    },
    Society.SLOTS,
)


def players(*names: str, **fields: Any) -> tuple[Player, ...]:
    return tuple(Player(name=name, **fields) for name in names)


def society(
    num_agents: int = 3, *, critics: tuple[Player, ...] = (), prompts: PromptSet = PLAIN, **settings: Any
) -> Society:
    cast = {"generator": players(*(f"g{i}" for i in range(num_agents))), "summariser": players("sum")}
    return Society(SocietySettings(**settings), cast | ({"critic": critics} if critics else {}), prompts)


def saying(answers: dict[str, str]) -> Answering:
    return lambda ask: rf"{node_of(ask)} says \boxed{{{answers[node_of(ask)]}}}" if node_of(ask) in answers else None


def edges(played: Played, target: str) -> set[tuple[str, str]]:
    return {(edge.source, edge.kind) for edge in played.debate.edges if edge.target == target}


WORKED = {
    "0.answer.0": "43",
    "0.answer.1": "44",
    "0.answer.2": "43",
    "1.answer.0": "44",
    "1.answer.1": "44",
    "1.answer.2": "43.0",
}


def test_three_agents_two_rounds_worked_by_hand() -> None:
    played = play(society(), TASK, saying(WORKED), seed=5)
    assert played.asked() == list(WORKED)
    assert [node.id for node in played.debate.utterances] == list(WORKED)
    assert [node.answer for node in played.debate.utterances] == [
        Answer(value, "boxed") for value in ("43", "44", "43", "44", "44", "43")
    ]
    assert [node.correct for node in played.debate.utterances] == [True, False, True, False, False, True]
    assert [(node.role, node.agent, node.round) for node in played.debate.utterances] == [
        *((("generator"), f"g{i}", 0) for i in range(3)),
        *((("critic"), f"g{i}", 1) for i in range(3)),
    ]
    assert played.verdict == Verdict(
        answer="44", stop_reason="rounds", aggregator="majority_vote", support=2, votes=3, correct=False
    )
    assert edges(played, "0.answer.1") == set()
    assert edges(played, "1.answer.1") == {("0.answer.1", "memory"), ("0.answer.0", "saw"), ("0.answer.2", "saw")}


def test_each_agent_is_told_the_others_last_replies_and_keeps_its_own_chat() -> None:
    played = play(society(rounds=3), TASK, lambda ask: f"[{node_of(ask)}]", seed=5)
    system_text, opening, own, revision = (message.text for message in played.ask("1.answer.0").messages)
    assert (system_text, opening, own) == ("Be brief.", f"Q {TASK.question}", "[0.answer.0]")
    orders = {f"<1: [0.answer.{a}]>\n<2: [0.answer.{b}]>" for a, b in ((1, 2), (2, 1))}
    assert revision in {f"Q {TASK.question} OWN [0.answer.0] PEERS {order}" for order in orders}
    assert [message.role for message in played.ask("2.answer.0").messages] == [
        *("system", "user", "assistant", "user", "assistant", "user")
    ]
    assert "[0.answer.1]" not in played.ask("2.answer.0").messages[-1].text


@pytest.mark.parametrize("settings", [{}, {"memory": "stateless"}, {"summarize": True}])
def test_the_graph_tells_exactly_what_was_asked(settings: dict[str, Any]) -> None:
    played = play(society(rounds=4, **settings), TASK, lambda ask: f"[{node_of(ask)}]", seed=2)
    assert len(played.debate.utterances) == len(played.asks)
    for ask in played.asks:
        assert tuple(played.debate.conversation(node_of(ask))) == ask.messages


def test_every_reply_shown_has_its_edge_and_every_edge_its_reply() -> None:
    for memory in ("chat", "stateless"):
        played = play(society(4, rounds=3, max_peers=2, memory=memory), TASK, lambda ask: f"[{node_of(ask)}]", seed=2)
        for node in played.debate.utterances:
            new = "\n".join(message.text for message in node.prompt)
            shown = {other.id for other in played.debate.utterances if f"[{other.id}]" in new}
            assert shown == {source for source, _ in edges(played, node.id)}


def test_a_stateless_agent_that_is_not_shown_its_own_reply_has_no_edge_from_it() -> None:
    prompts = load_protocol_prompts("society", SocietySettings())  # its parts do not use ${own}
    played = play(society(memory="stateless", prompts=prompts), TASK, lambda ask: f"[{node_of(ask)}]")
    assert edges(played, "1.answer.0") == {("0.answer.1", "saw"), ("0.answer.2", "saw")}
    assert "[0.answer.0]" not in told(played.ask("1.answer.0"))


def test_summaries_are_asked_once_an_agent_and_shown_instead_of_the_replies() -> None:
    played = play(society(summarize=True), TASK, lambda ask: f"[{node_of(ask)}]")
    assert len(played.asks) == 3 * 2 + 3  # N*M answers and N*(M-1) summaries
    assert played.asked()[3:6] == ["1.summarise.0", "1.summarise.1", "1.summarise.2"]
    assert {ask.agent for ask in played.asks[3:6]} == {"sum"}
    assert len(played.ask("1.summarise.0").messages) == 1
    assert edges(played, "1.summarise.0") == {("0.answer.1", "saw"), ("0.answer.2", "saw")}
    assert edges(played, "1.answer.0") == {("0.answer.0", "memory"), ("1.summarise.0", "summary")}
    last = played.ask("1.answer.0").messages[-1].text
    assert last == f"Q {TASK.question} OWN [0.answer.0] PEERS [1.summarise.0]"  # in no agent's name
    summary = played.debate.utterance("1.summarise.0")
    assert (summary.answer, summary.correct, summary.role) == (Answer(), None, "summariser")


def test_who_got_no_summary_is_shown_the_replies_themselves() -> None:
    def answer(ask: Ask) -> str | None:
        return None if node_of(ask) == "1.summarise.1" else f"[{node_of(ask)}]"

    played = play(society(summarize=True), TASK, answer)
    assert edges(played, "1.answer.1") == {("0.answer.1", "memory"), ("0.answer.0", "saw"), ("0.answer.2", "saw")}
    assert edges(played, "1.answer.0") == {("0.answer.0", "memory"), ("1.summarise.0", "summary")}
    assert played.verdict.votes == 3


def test_a_summary_too_is_of_what_was_said_before_it_where_agents_take_turns() -> None:
    played = play(society(summarize=True, visibility="sequential"), TASK, lambda ask: f"[{node_of(ask)}]")
    assert played.asked() == [
        *("0.answer.0", "0.answer.1", "0.answer.2"),
        *("1.summarise.0", "1.answer.0", "1.summarise.1", "1.answer.1", "1.summarise.2", "1.answer.2"),
    ]
    assert edges(played, "1.summarise.0") == {("0.answer.1", "saw"), ("0.answer.2", "saw")}
    assert edges(played, "1.summarise.1") == {("1.answer.0", "saw"), ("0.answer.2", "saw")}
    assert edges(played, "1.summarise.2") == {("1.answer.0", "saw"), ("1.answer.1", "saw")}


def test_there_is_no_summary_of_nobody() -> None:
    def answer(ask: Ask) -> Any:
        return failure_of(ask) if node_of(ask) == "0.answer.0" else "43"

    played = play(society(summarize=True, topology="star"), TASK, answer)  # the hub is gone: nobody sees anybody
    assert played.asked() == ["0.answer.0", "0.answer.1", "0.answer.2", "1.answer.1", "1.answer.2"]
    assert played.ask("1.answer.1").messages[-1].text.endswith("ALONE")


def test_generators_open_and_their_paired_critics_revise() -> None:
    critics = players("c0", "c1", "c2", sampling=Sampling(temperature=0.2))
    played = play(society(critics=critics, rounds=3), TASK, lambda ask: f"[{node_of(ask)}]")
    assert [ask.agent for ask in played.asks] == ["g0", "g1", "g2", "c0", "c1", "c2", "c0", "c1", "c2"]
    assert played.ask("1.answer.2").sampling.temperature == 0.2
    assert played.ask("1.answer.2").messages[2] == assistant("[0.answer.2]")  # the critic goes on with the same chat


def test_alone_an_agent_checks_itself() -> None:
    played = play(society(1, summarize=True), TASK, lambda ask: f"[{node_of(ask)}]")
    assert played.asked() == ["0.answer.0", "1.answer.0"]
    assert played.asks[1].messages[-1].text == f"Q {TASK.question} OWN [0.answer.0] ALONE"
    assert edges(played, "1.answer.0") == {("0.answer.0", "memory")}


def test_the_last_one_left_checks_itself() -> None:
    played = play(society(), TASK, by_node(_0_answer_2="43", _1_answer_2="43"))
    assert played.asked() == ["0.answer.0", "0.answer.1", "0.answer.2", "1.answer.2"]
    assert "ALONE" in told(played.asks[-1])
    assert played.verdict.answer == "43"


def test_peers_who_said_nothing_are_still_peers() -> None:
    prompts = PromptSet(
        "quiet", {**dict.fromkeys(Society.SLOTS, ""), "revise": "PEERS ${peers}", "self_check": "ALONE"}, Society.SLOTS
    )
    played = play(society(2, prompts=prompts), TASK, lambda _: "")
    assert played.asks[-1].messages[-1].text == "PEERS "


def test_no_more_than_max_peers_are_shown_and_not_always_the_same_ones() -> None:
    seen = set()
    for seed in range(20):
        played = play(society(5, max_peers=2), TASK, lambda ask: f"[{node_of(ask)}]", seed=seed)
        shown = frozenset(source for source, kind in edges(played, "1.answer.0") if kind == "saw")
        assert len(shown) == 2
        seen.add(shown)
    assert len(seen) > 3


def test_the_shuffle_depends_on_the_seed_the_round_and_the_agent_alone() -> None:
    def shown(seed: int) -> list[str]:
        played = play(society(6, rounds=3), TASK, lambda ask: f"[{node_of(ask)}]", seed=seed)
        return [ask.messages[-1].text for ask in played.asks]

    assert shown(1) == shown(1)
    assert shown(1) != shown(2)


def test_every_ask_has_its_own_seed() -> None:
    played = play(society(rounds=3, summarize=True), TASK, lambda ask: "43", seed=9)
    seeds = [ask.sampling.seed for ask in played.asks]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] == derive_seed(9, "0.answer.0")
    assert played.asks[0].id == "d#0.answer.0"


def test_images_go_with_the_opening_and_stay_in_the_chat() -> None:
    image = ImagePart(sha256="0" * 64)
    task = msgspec.structs.replace(TASK, images=(image,))
    for memory in ("chat", "stateless"):
        played = play(society(memory=memory), task, lambda _: "43")
        assert all([i for message in ask.messages for i in message.images] == [image] for ask in played.asks)


def test_personas_are_told_in_the_system_message() -> None:
    cast = {"generator": players("a", "b", persona="You are a geometer.")}
    played = play(Society(SocietySettings(), cast, PLAIN), TASK, lambda _: "1")
    assert played.asks[0].messages[0].text == "Be brief.\n\nYou are a geometer."


@pytest.mark.parametrize("settings", [{}, {"memory": "stateless"}, {"summarize": True}])
def test_gold_is_in_no_prompt(settings: dict[str, Any]) -> None:
    task = msgspec.structs.replace(TASK, gold=("THE-GOLD", "43"))
    played = play(society(rounds=3, **settings), task, lambda ask: "${gold} I do not know")
    assert not any("THE-GOLD" in msgspec.json.encode(ask).decode() for ask in played.asks)
    assert played.verdict.oracle is False
    assert all("${gold} I do not know" in told(ask) for ask in played.asks if not node_of(ask).startswith("0."))


def test_without_gold_nothing_is_graded() -> None:
    played = play(society(), msgspec.structs.replace(TASK, gold=()), lambda _: "43")
    assert {node.correct for node in played.debate.utterances} == {None}
    assert played.verdict.correct is None


def test_unparsed_replies_do_not_vote_and_are_wrong() -> None:
    replies = {"1.answer.0": "no idea", "1.answer.1": "no idea", "1.answer.2": "43"}
    played = play(society(), TASK, lambda ask: replies.get(node_of(ask), "44"))
    assert (played.verdict.answer, played.verdict.support, played.verdict.votes) == ("43", 1, 1)
    assert [played.debate.utterance(f"1.answer.{i}").correct for i in range(3)] == [False, False, True]
    silent = play(society(), TASK, lambda _: "no idea")
    assert (silent.verdict.answer, silent.verdict.votes, silent.verdict.correct) == (None, 0, False)


def test_ties_are_broken_by_the_debates_seed() -> None:
    winners = {play(society(2), TASK, lambda ask: ask.agent[1:], seed=seed).verdict.answer for seed in range(20)}
    assert winners == {"0", "1"}
    assert play(society(2), TASK, lambda ask: ask.agent[1:]).verdict.tie
    assert play(society(2, tie_break="lexicographic"), TASK, lambda ask: ask.agent[1:], seed=1).verdict.answer == "1"


# What goes wrong


def test_an_agent_that_fails_leaves_and_the_others_go_on() -> None:
    def answer(ask: Ask) -> Any:
        return failure_of(ask) if node_of(ask) == "1.answer.0" else saying(WORKED)(ask) or "43"

    played = play(society(rounds=3), TASK, answer)
    assert [node.id for node in played.debate.turns(round=2)] == ["2.answer.1", "2.answer.2"]
    assert edges(played, "2.answer.1") == {("1.answer.1", "memory"), ("1.answer.2", "saw")}
    assert (played.verdict.answer, played.verdict.votes, played.verdict.stop_reason) == ("43", 2, "rounds")


def test_a_late_agent_leaves_and_its_reply_is_refused() -> None:
    machine = society()
    played = open_debate(machine, TASK)
    late, *others = played.asks
    for ask in others:
        played.take(Replied(reply_to(ask, "43")))
    played.take(DeadlinePassed(1))
    assert played.asked()[3:] == ["1.answer.1", "1.answer.2"]
    with pytest.raises(IllegalEventError, match=r"nobody waits for 'd#0\.answer\.0'"):
        machine.receive(Replied(reply_to(late, "44")))


def test_nobody_answers() -> None:
    played = play(society(), TASK, lambda _: None)
    assert played.verdict == Verdict(answer=None, stop_reason="no_replies", aggregator="majority_vote", correct=False)
    assert played.debate.utterances == []
    failed = play(society(), TASK, failure_of)
    assert failed.verdict == played.verdict


def test_when_everybody_fails_in_a_later_round_the_answers_before_it_vote() -> None:
    played = play(society(), TASK, lambda ask: "43" if node_of(ask).startswith("0.") else failure_of(ask))
    assert (played.verdict.answer, played.verdict.votes, played.verdict.stop_reason) == ("43", 3, "failures")


@pytest.mark.parametrize("summarize", [False, True])
@pytest.mark.parametrize("at", range(1, 9))
@pytest.mark.parametrize("what", ["deadline", "budget"])
def test_a_deadline_or_an_empty_purse_at_any_point_ends_in_a_recorded_state(
    summarize: bool, at: int, what: str
) -> None:
    if at > 6 and not summarize:
        return  # over by then
    at_events: dict[str, Any] = {"deadline_at": [at]} if what == "deadline" else {"budget_at": at}
    played = play(society(summarize=summarize), TASK, lambda ask: "43", **at_events)
    replied = [event.reply.ask_id for event in played.events if isinstance(event, Replied)]
    assert [node.reply.ask_id for node in played.debate.utterances] == replied  # nothing paid for is lost
    assert played.verdict.stop_reason in ({"rounds", "failures", "no_replies"} if what == "deadline" else {"budget"})
    assert played.machine.outstanding == {}


def test_when_the_budget_is_spent_everyones_latest_answer_votes() -> None:
    replies = {"1.answer.0": "44"}
    played = play(society(), TASK, lambda ask: replies.get(node_of(ask), "43"), budget_at=5)
    assert [node.id for node in played.debate.turns(round=1)] == ["1.answer.0"]
    assert (played.verdict.answer, played.verdict.support, played.verdict.votes) == ("43", 2, 3)
    assert played.verdict.stop_reason == "budget"


def illegal_events(played: Played) -> list[Event]:
    ask = played.asks[0]
    index = played.machine.phase_index
    opened: list[Event] = [Opened(debate_id="e", task=TASK, seed=3), BudgetSpent()] if played.machine.closed else []
    return [
        *opened,
        Replied(reply_to(msgspec.structs.replace(ask, id="d#9.answer.9"), "1")),
        AgentFailed(failure_of(msgspec.structs.replace(ask, id=""))),
        DeadlinePassed(index - 1),
        DeadlinePassed(index + 1),
    ]


def test_illegal_events_change_nothing_at_any_point() -> None:
    played = open_debate(society(summarize=True), TASK)
    while not played.machine.closed:
        before = repr(vars(played.machine))
        for event in illegal_events(played):
            with pytest.raises(IllegalEventError):
                played.machine.receive(event)
            assert repr(vars(played.machine)) == before
        ask = next(iter(played.machine.outstanding.values()))
        played.take(Replied(reply_to(ask, "43")))
        with pytest.raises(IllegalEventError):
            played.machine.receive(Replied(reply_to(ask, "again")))
    before = repr(vars(played.machine))
    for event in illegal_events(played):
        with pytest.raises(IllegalEventError):
            played.machine.receive(event)
    assert repr(vars(played.machine)) == before


def test_nothing_but_the_opening_opens_a_debate() -> None:
    machine = society()
    for event in (BudgetSpent(), DeadlinePassed(0)):
        with pytest.raises(IllegalEventError, match="society is waiting"):
            machine.receive(event)


def test_a_task_whose_answers_nobody_can_read_is_refused_before_anything_is_asked() -> None:
    machine = society()
    before = repr(vars(machine))
    task = msgspec.structs.replace(TASK, answer_format="poem")
    with pytest.raises(TaskError, match="answer_format='poem' must be one of number"):
        machine.receive(Opened(debate_id="d", task=task, seed=0))
    assert repr(vars(machine)) == before


# What is refused before it starts


@pytest.mark.parametrize(
    ("settings", "cast", "says"),
    [
        ({}, {}, "cast.generator is empty"),
        ({}, {"generator": ()}, "cast.generator is empty"),
        ({}, {"generator": players("a"), "judge": players("j")}, "no role 'judge'"),
        ({}, {"generator": players("a", "b"), "critic": players("c")}, "cast.critic has 1 agents and cast.generator 2"),
        ({"summarize": True}, {"generator": players("a")}, "cast.summariser needs exactly one"),
        (
            {},
            {"generator": players("a", "b"), "critic": (*players("c"), *players("d", persona="You doubt."))},
            r"agents\.d\.persona would never be told",
        ),
        ({"summarize": True}, {"generator": players("a"), "summariser": players("s", "t")}, "takes at most 1"),
    ],
)
def test_a_cast_that_does_not_fit_is_refused(
    settings: dict[str, Any], cast: dict[str, tuple[Player, ...]], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        Society(SocietySettings(**settings), cast, PLAIN)


@pytest.mark.parametrize(
    "settings",
    [{"rounds": 0}, {"max_peers": 0}, {"deadline_s": 0.0}, {"deadline_s": -1.0}, {"deadline_s": math.nan}],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    name = next(iter(settings))
    with pytest.raises(ValueError, match=f"{name}="):
        SocietySettings(**settings)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"tie": "first"}, SocietySettings)


def test_speaking_in_turn_each_sees_who_spoke_before_it_this_round() -> None:
    played = play(society(rounds=2, visibility="sequential"), TASK, lambda ask: f"[{node_of(ask)}]", seed=2)
    assert played.asked() == [f"{number}.answer.{member}" for number in (0, 1) for member in (0, 1, 2)]
    assert edges(played, "0.answer.0") == set()
    assert edges(played, "0.answer.1") == {("0.answer.0", "saw")}
    assert edges(played, "0.answer.2") == {("0.answer.0", "saw"), ("0.answer.1", "saw")}
    assert edges(played, "1.answer.0") == {("0.answer.0", "memory"), ("0.answer.1", "saw"), ("0.answer.2", "saw")}
    assert edges(played, "1.answer.1") == {("0.answer.1", "memory"), ("1.answer.0", "saw"), ("0.answer.2", "saw")}
    assert "PEERS" in told(played.ask("0.answer.1"))


@pytest.mark.parametrize(
    ("topology", "seen"),
    [
        ("full", [{1, 2, 3}, {0, 2, 3}, {0, 1, 3}, {0, 1, 2}]),
        ("ring", [{3, 1}, {0, 2}, {1, 3}, {2, 0}]),
        ("star", [{1, 2, 3}, {0}, {0}, {0}]),
    ],
)
def test_the_topology_says_who_sees_whom(topology: str, seen: list[set[int]]) -> None:
    played = play(society(4, topology=topology), TASK, lambda ask: f"[{node_of(ask)}]")
    for member, others in enumerate(seen):
        saw = {source for source, kind in edges(played, f"1.answer.{member}") if kind == "saw"}
        assert saw == {f"0.answer.{other}" for other in others}


def test_a_sparse_topology_is_drawn_once_a_debate() -> None:
    def drawn(seed: int) -> list[set[str]]:
        played = play(society(6, rounds=3, topology="sparse", degree=2), TASK, lambda ask: "43", seed=seed)
        found = [
            {source.split(".")[2] for source, kind in edges(played, f"{number}.answer.{member}") if kind == "saw"}
            for number in (1, 2)
            for member in range(6)
        ]
        assert found[:6] == found[6:]
        assert all(len(others) == 2 for others in found)
        return found[:6]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("stop", "answers", "asks", "reason", "oracle"),
    [
        (("unanimity",), ["44", "44", "44.0"], 3, "unanimity", False),
        (("unanimity",), ["44", "44", "43"], 9, "rounds", False),
        (("oracle",), ["43", "43", "43"], 3, "oracle", True),
        (("oracle",), ["44", "44", "44"], 9, "rounds", True),
        (("oracle", "unanimity"), ["44", "44", "44"], 3, "unanimity", True),
    ],
)
def test_rules_that_end_a_debate_early(
    stop: tuple[str, ...], answers: list[str], asks: int, reason: str, oracle: bool
) -> None:
    played = play(
        society(rounds=3, stop=stop), TASK, lambda ask: rf"\boxed{{{answers[int(node_of(ask).split('.')[2])]}}}"
    )
    assert len(played.asks) == asks
    assert (played.verdict.stop_reason, played.verdict.oracle) == (reason, oracle)


def test_an_agent_can_be_told_its_number() -> None:
    prompts = PromptSet("ids", {**dict.fromkeys(Society.SLOTS, ""), "system": "You are agent ${agent}."}, Society.SLOTS)
    played = play(society(prompts=prompts), TASK, lambda _: "43")
    assert [ask.messages[0].text for ask in played.asks[:3]] == [f"You are agent {number}." for number in (1, 2, 3)]


def test_choices_reach_every_prompt_lettered() -> None:
    task = Task(id="t", question="Which is larger?", choices=("seven", "nine"))
    played = play(society(summarize=True), task, lambda _: "43")
    for ask in played.asks:
        assert "Which is larger?\nChoices:\n(A) seven\n(B) nine" in told(ask)


@pytest.mark.parametrize("settings", [{}, {"summarize": True}, {"visibility": "sequential"}])
def test_the_bound_on_asks_is_met_when_nobody_fails(settings: dict[str, Any]) -> None:
    machine = society(4, rounds=3, **settings)
    played = play(machine, TASK, lambda _: "43")
    assert len(played.asks) == Society.max_asks(machine.settings, machine.cast)
