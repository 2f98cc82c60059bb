"""What the base of all protocols does for them: second tries, chats that stay in their room, budgets, stop rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from protocols.answer import Answer
from protocols.catalogue import checked
from protocols.context import estimate_messages
from protocols.conversation import Conversation, Flow, Player, ProtocolSettings, Role, Script, Turn
from protocols.errors import ConfigError, GraphError, IllegalEventError, TaskError
from protocols.graph import Edge
from protocols.machine import AgentFailed, BudgetSpent, DeadlinePassed, Opened, Phase, Replied
from protocols.message import Ask, ImagePart, Reply, Usage, assistant, user
from protocols.prompt import PromptSet
from protocols.task import Task
from tests.fakes import failure_of, node_of, open_debate, play, reply_to, told

TASK = Task(id="t", question="QUESTION 1 + 1?", gold=("2",))


class P(Phase):
    WAITING = "waiting"
    TALKING = "talking"
    RESTING = "resting"
    CLOSED = "closed"


class Talk(Conversation):
    """One agent talks to itself for as many turns as ``TURNS``, each with ``OPTIONS``."""

    NAME, SOURCE = "talk", "none"
    FLOW: ClassVar[Flow] = {
        P.WAITING: frozenset({P.TALKING}),
        P.TALKING: frozenset({P.TALKING, P.RESTING, P.CLOSED}),
        P.RESTING: frozenset({P.CLOSED}),
        P.CLOSED: frozenset(),
    }
    ROLES: ClassVar[Mapping[str, Role]] = {"talker": Role("talks", 1, 2)}
    TEMPLATES: ClassVar[Mapping[str, str]] = {
        "system": "SYSTEM",
        "say": "${question} ${more} INSTRUCTION",
        "next": "NEXT ${more} INSTRUCTION",
    }
    TURNS: ClassVar[int] = 1
    OPTIONS: ClassVar[dict[str, Any]] = {}

    def script(self) -> Script:
        last: Turn | None = None
        for number in range(self.TURNS):
            self.round = number
            prompt = self.told(
                self.the("talker"),
                "next" if last else "say",
                thread="t",
                context={"more": [last.text] if last else []},
            )
            options = {"answers": True} | self.OPTIONS
            last = Turn(
                player=self.the("talker"), role="talker", step="say", seat="0", prompt=prompt, thread="t", **options
            )
            yield P.TALKING, [last]
        return self.conclude(self.settled([last]) or "rounds" if last else "rounds")


def talk(kind: type[Talk] = Talk, **settings: Any) -> Talk:
    return kind(
        ProtocolSettings(**settings), {"talker": (Player(name="ada"),)}, PromptSet("p", Talk.TEMPLATES, Talk.SLOTS)
    )


def kind_of(**fields: Any) -> type[Talk]:
    return type("Kind", (Talk,), fields)


def test_slots_follow_from_the_templates() -> None:
    assert {"system": frozenset(), "say": {"question", "more"}, "next": {"more"}} == Talk.SLOTS


def test_an_unreadable_reply_is_asked_for_again_and_every_try_is_kept() -> None:
    machine = talk(kind_of(OPTIONS={"retries": 2, "repair": "REPAIR"}))
    said = {"0.say.0": "hm", "0.say.0~1": "well", "0.say.0~2": r"\boxed{2}"}
    played = play(machine, TASK, lambda ask: said[node_of(ask)])
    assert played.asked() == list(said)
    first, second, third = played.asks
    assert second.messages == (*first.messages, assistant("hm"), user("REPAIR"))
    assert third.messages == (*second.messages, assistant("well"), user("REPAIR"))
    assert len({ask.sampling.seed for ask in played.asks}) == 3
    assert [(node.id, node.answers) for node in played.debate.utterances] == [
        ("0.say.0", False),
        ("0.say.0~1", False),
        ("0.say.0~2", True),
    ]
    assert tuple(played.debate.conversation("0.say.0~2")) == third.messages
    assert (played.verdict.answer, played.verdict.votes) == ("2", 1)


def test_without_a_repair_the_same_question_is_drawn_anew() -> None:
    machine = talk(kind_of(OPTIONS={"retries": 4}, TURNS=2))
    said = {"0.say.0": "hm", "0.say.0~1": "2", "1.say.0": "2"}
    played = play(machine, TASK, lambda ask: said[node_of(ask)])
    assert played.asks[0].messages == played.asks[1].messages
    assert played.asks[0].sampling.seed != played.asks[1].sampling.seed
    assert played.asks[2].messages[: len(played.asks[0].messages) + 1] == (*played.asks[1].messages, assistant("2"))
    assert {(e.source, e.target) for e in played.debate.edges} == {("0.say.0~1", "1.say.0")}


def test_the_last_try_counts_even_where_nothing_could_be_read() -> None:
    played = play(talk(kind_of(OPTIONS={"retries": 1})), TASK, lambda _: "hm")
    assert played.asked() == ["0.say.0", "0.say.0~1"]
    assert [node.answers for node in played.debate.utterances] == [False, True]
    assert played.verdict.answer is None


def test_a_second_try_that_fails_leaves_the_first() -> None:
    machine = talk(kind_of(OPTIONS={"retries": 1}, TURNS=2))
    answers = {"0.say.0": "hm", "1.say.0": "2"}
    played = play(machine, TASK, lambda ask: answers.get(node_of(ask)) or failure_of(ask))
    assert played.asked() == ["0.say.0", "0.say.0~1", "1.say.0"]
    assert [(node.id, node.answers) for node in played.debate.utterances] == [("0.say.0", True), ("1.say.0", True)]
    assert played.verdict.answer == "2"


def test_a_reply_read_to_hold_no_answer_is_not_asked_for_again() -> None:
    options = {"retries": 1, "reads": lambda _: Answer(None, "fields"), "answers": False}
    assert play(talk(kind_of(OPTIONS=options)), TASK, lambda _: "none yet").asked() == ["0.say.0"]


def test_a_long_chat_loses_its_oldest_turns_but_never_the_question() -> None:
    machine = talk(kind_of(TURNS=6), max_context_tokens=170)
    played = play(machine, TASK, lambda ask: f"reply {node_of(ask)} " + "x" * 60 + " 2")
    last = played.asks[-1]
    assert [message.role for message in last.messages] == ["system", "user", *["assistant", "user"] * 2]
    assert "QUESTION" in last.messages[1].text
    assert "reply 0.say.0" not in told(last)
    assert "reply 4.say.0" in told(last)
    assert "INSTRUCTION" in last.messages[-1].text
    for ask in played.asks:
        assert tuple(played.debate.conversation(node_of(ask))) == ask.messages
    assert played.debate.utterances[-1].elided == 6


def test_context_is_cut_and_question_and_instruction_stay() -> None:
    machine = talk(kind_of(TURNS=2), max_context_tokens=60)
    played = play(machine, TASK, lambda _: "begin " + "x" * 900 + " 2")
    text = played.asks[1].messages[-1].text
    assert text.startswith("NEXT begin x") and text.endswith("2 INSTRUCTION") and "[...]" in text
    assert len(text) < 200


def test_a_token_budget_ends_the_debate_after_the_step_that_spent_it() -> None:
    played = play(talk(kind_of(TURNS=9), budget_tokens=25), TASK, lambda ask: reply_to(ask, "2"))
    assert len(played.asks) == 3  # ten tokens each
    assert (played.verdict.stop_reason, played.verdict.answer) == ("budget", "2")


def test_a_budget_spent_with_the_last_reply_is_no_reason_to_stop() -> None:
    played = play(talk(kind_of(TURNS=3), budget_tokens=25), TASK, lambda ask: reply_to(ask, "2"))
    assert (len(played.asks), played.verdict.stop_reason) == (3, "rounds")
    played = play(talk(kind_of(TURNS=3), budget_tokens=25, stop=("unanimity",)), TASK, lambda ask: reply_to(ask, "2"))
    assert played.verdict.stop_reason == "unanimity"


def test_a_time_budget_counts_the_slowest_reply_of_each_phase() -> None:
    def slow(ask: Ask) -> Reply:
        return Reply(ask_id=ask.id, text="2", model="m", usage=Usage(1, 1), latency_s=2.0)

    assert len(play(talk(kind_of(TURNS=9), budget_s=5.0), TASK, slow).asks) == 3


@pytest.mark.parametrize(
    ("stop", "said", "reason"),
    [
        (("unanimity",), "2", "unanimity"),
        (("unanimity",), "hm", "rounds"),
        (("oracle",), "2", "oracle"),
        (("oracle",), "3", "rounds"),
    ],
)
def test_stop_rules_name_themselves(stop: tuple[Any, ...], said: str, reason: str) -> None:
    verdict = play(talk(stop=stop), TASK, lambda _: said).verdict
    assert verdict.stop_reason == reason
    assert verdict.oracle == ("oracle" in stop)


def test_a_canonical_spelling_that_comes_with_the_reply_is_what_counts() -> None:
    task = Task(id="t", question="?", gold=("x",), canonical_gold=("CANON",))
    machine = talk()
    played = open_debate(machine, task)
    played.take(Replied(reply_to(played.asks[0], r"\boxed{7}"), canonical="CANON"))
    assert played.debate.utterances[0].answer == Answer("7", "boxed", "CANON")
    assert (played.verdict.correct, played.verdict.canonical) == (True, "CANON")


def test_a_script_that_leaves_its_flow_is_caught() -> None:
    def script(self: Talk) -> Script:
        turn = Turn(player=self.the("talker"), role="talker", step="say", seat="0", prompt=(user("q"),))
        yield P.RESTING, [turn]
        return self.conclude("rounds")

    with pytest.raises(IllegalEventError, match="went from waiting to resting"):
        open_debate(talk(kind_of(script=script)), TASK)


@pytest.mark.parametrize(
    ("flow", "says"),
    [
        ({P.TALKING: {P.CLOSED}, P.RESTING: {P.CLOSED}}, "phase resting cannot be reached from waiting"),
        (
            {P.TALKING: {P.RESTING, P.CLOSED}, P.RESTING: {P.RESTING}},
            "phase resting is a dead end: FLOW leads from it to no end",
        ),
        ({P.TALKING: {P.RESTING, P.CLOSED}}, "phase resting does not handle Replied"),
        ({P.TALKING: {P.WAITING, P.CLOSED}}, "phase waiting is the start, yet something leads back to it"),
    ],
)
def test_a_flow_with_holes_is_refused_when_the_protocol_is_loaded(flow: Any, says: str) -> None:
    whole = {P.WAITING: frozenset({P.TALKING})} | flow | {P.CLOSED: frozenset()}
    with pytest.raises(ConfigError, match=f"protocol 'talk' cannot be used: .*({says})"):
        checked(kind_of(FLOW=whole))
    assert checked(Talk) is Talk


def test_a_flow_without_phases_is_refused_when_the_protocol_is_loaded() -> None:
    for flow in ({}, {P.WAITING: frozenset({P.CLOSED}), P.CLOSED: frozenset()}):
        with pytest.raises(ConfigError, match="FLOW needs three phases at least"):
            checked(kind_of(FLOW=flow))


def test_steps_without_turns_are_skipped() -> None:
    def script(self: Talk) -> Script:
        yield P.TALKING, []
        yield P.RESTING, []
        return self.conclude("no_replies")

    with pytest.raises(IllegalEventError, match="went from waiting to closed"):
        open_debate(talk(kind_of(script=script)), TASK)


def test_an_unknown_answer_format_is_refused_before_anything_is_asked() -> None:
    machine = talk()
    with pytest.raises(TaskError, match=r"answer_format='poem' must be one of number"):
        machine.receive(Opened(debate_id="d", task=Task(id="t", question="?", answer_format="poem"), seed=0))
    assert machine.phase == P.WAITING


@pytest.mark.parametrize(
    ("cast", "says"),
    [
        ({"talker": ()}, "cast.talker is empty; talk needs at least 1"),
        ({"talker": tuple(Player(name=n) for n in "abc")}, "cast.talker has 3 agents; talk takes at most 2"),
        ({"talker": (Player(name="a"),), "judge": ()}, "talk has no role 'judge'; its roles: talker"),
    ],
)
def test_a_cast_is_checked_against_the_roles(cast: dict[str, tuple[Player, ...]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Talk(ProtocolSettings(), cast, PromptSet("p", Talk.TEMPLATES, Talk.SLOTS))


@pytest.mark.parametrize(
    "settings", [{"deadline_s": 0.0}, {"deadline_s": float("nan")}, {"budget_tokens": -1}, {"budget_s": float("nan")}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ProtocolSettings(**settings)


def test_late_and_failed_turns_leave_nothing_behind() -> None:
    machine = talk(kind_of(TURNS=3))
    played = open_debate(machine, TASK)
    played.take(AgentFailed(failure_of(played.asks[-1])))
    played.take(DeadlinePassed(machine.phase_index))
    played.take(Replied(reply_to(played.asks[-1], "2")))
    assert [node.id for node in played.debate.utterances] == ["2.say.0"]
    assert played.debate.edges == []
    assert played.asks[-1].messages[0].text == "SYSTEM"  # the chat begins with the first reply


# A script that makes a mistake is told so, before it loses a reply


def said_by(seat: str, step: str = "say", **options: Any) -> Turn:
    return Turn(player=Player(name="ada"), role="talker", step=step, seat=seat, prompt=(user("q"),), **options)


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([["0", "0"]], "asks for node '0.say.0' a second time"),
        ([["0", "1"], ["1"]], "asks for node '0.say.1' a second time"),
        ([["a.b"]], "leave '.', '#' and '~' out"),
        ([["0~1"]], "leave '.', '#' and '~' out"),
    ],
)
def test_every_ask_of_a_debate_has_a_node_of_its_own(steps: list[list[str]], says: str) -> None:
    def script(self: Talk) -> Script:
        for seats in steps:
            yield P.TALKING, [said_by(seat) for seat in seats]
        return self.conclude("rounds")

    with pytest.raises(GraphError, match=says):
        play(talk(kind_of(script=script)), TASK, failure_of)  # whether or not the first ask brought anything


def test_a_turn_is_asked_once() -> None:
    def script(self: Talk) -> Script:
        turn = said_by("0")
        for self.round in range(2):
            yield P.TALKING, [turn]
        return self.conclude("rounds")

    with pytest.raises(GraphError, match="make a new Turn for every ask"):
        play(talk(kind_of(script=script)), TASK, lambda _: "2")


def test_a_chat_takes_one_turn_at_a_time() -> None:
    def script(self: Talk) -> Script:
        yield P.TALKING, [said_by("0", thread="t"), said_by("1", thread="t")]
        return self.conclude("rounds")

    with pytest.raises(GraphError, match="asks twice at once in the chat 't'"):
        open_debate(talk(kind_of(script=script)), TASK)


# Events that come at an awkward moment


def test_a_deadline_while_a_second_try_is_out_leaves_the_first() -> None:
    machine = talk(kind_of(OPTIONS={"retries": 1, "repair": "REPAIR"}, TURNS=2))
    played = open_debate(machine, TASK)
    played.take(Replied(reply_to(played.asks[0], "hm")))
    played.take(DeadlinePassed(machine.phase_index))
    with pytest.raises(IllegalEventError, match=r"nobody waits for 'd#0\.say\.0~1'"):
        machine.receive(Replied(reply_to(played.asks[1], "2")))
    played.take(Replied(reply_to(played.asks[2], "2")))
    assert [(node.id, node.answers) for node in played.debate.utterances] == [("0.say.0", True), ("1.say.0", True)]
    assert [message.text for message in played.asks[2].messages[-3:-1]] == [f"{TASK.question}  INSTRUCTION", "hm"]


def test_a_budget_that_is_spent_while_a_second_try_is_out_ends_with_the_first() -> None:
    played = open_debate(talk(kind_of(OPTIONS={"retries": 1})), TASK)
    played.take(Replied(reply_to(played.asks[0], "hm")))
    played.take(BudgetSpent())
    assert [(node.id, node.answers) for node in played.debate.utterances] == [("0.say.0", True)]
    assert (played.verdict.stop_reason, played.verdict.answer, played.machine.outstanding) == ("budget", None, {})


def test_a_canonical_spelling_of_a_second_try_is_of_that_try_alone() -> None:
    task = Task(id="t", question="?", gold=("x",), canonical_gold=("CANON",))
    machine = talk(kind_of(OPTIONS={"retries": 1, "repair": "REPAIR"}))
    played = open_debate(machine, task)
    assert machine.unsettled(reply_to(played.asks[0], "hm")) == ""  # nothing to find a spelling for
    played.take(Replied(reply_to(played.asks[0], "hm")))
    assert machine.unsettled(reply_to(played.asks[1], r"\boxed{7}")) == "7"
    played.take(Replied(reply_to(played.asks[1], r"\boxed{7}"), canonical="CANON"))
    assert [node.answer.canonical for node in played.debate.utterances] == ["", "CANON"]
    assert played.verdict.correct


def test_a_turn_that_failed_is_no_source() -> None:
    def script(self: Talk) -> Script:
        first = [said_by("0"), said_by("1")]
        yield P.TALKING, first
        yield P.TALKING, [said_by("2", saw=tuple((turn, "saw") for turn in (*first, first[1])), answers=True)]
        return self.conclude("rounds")

    played = play(talk(kind_of(script=script)), TASK, lambda ask: failure_of(ask) if node_of(ask) == "0.say.0" else "2")
    assert played.debate.edges == [Edge("0.say.1", "0.say.2", "saw")]  # and what is named twice is one


@pytest.mark.parametrize(("said", "reason"), [(("2", "-", "-"), "unanimity"), (("2", "-", "3"), ""), (("-",) * 3, "")])
def test_stop_rules_look_at_those_who_replied(said: tuple[str, ...], reason: str) -> None:
    found: list[str] = []

    def script(self: Talk) -> Script:
        turns = [said_by(str(seat), answers=True) for seat in range(len(said))]
        yield P.TALKING, turns
        found.append(self.settled(turns))
        return self.conclude("rounds")

    texts = dict(zip(("0.say.0", "0.say.1", "0.say.2"), said, strict=True))
    machine = talk(kind_of(script=script), stop=("unanimity",))
    play(machine, TASK, lambda ask: failure_of(ask) if texts[node_of(ask)] == "-" else texts[node_of(ask)])
    assert found == [reason]


# Room


@pytest.mark.parametrize("limit", [90, 150, 400])
def test_ones_own_latest_reply_counts_when_others_texts_are_fitted(limit: int) -> None:
    said = "begin " + "x" * 180 + " 2"  # some 60 tokens
    played = play(talk(kind_of(TURNS=4), max_context_tokens=limit), TASK, lambda _: said)
    least = estimate_messages((*played.asks[0].messages, assistant(said), user("NEXT  INSTRUCTION"))) + 12
    assert all(estimate_messages(ask.messages) <= max(limit, least) for ask in played.asks)


def test_a_part_without_the_slot_leaves_its_room_to_the_rest() -> None:
    machine = talk(max_context_tokens=60)
    machine.task = TASK
    known = {"more": ["short"], "unused": ["x" * 900]}
    assert "short" in machine.told(machine.the("talker"), "say", context=known)[-1].text


def test_a_chat_of_one_exchange_is_never_cut() -> None:
    played = play(talk(kind_of(TURNS=2), max_context_tokens=1), TASK, lambda _: "x" * 300 + " 2")
    assert [message.role for message in played.asks[1].messages] == ["system", "user", "assistant", "user"]
    assert played.debate.utterances[1].elided == 0


def test_a_second_try_makes_room_before_what_it_mends() -> None:
    machine = talk(kind_of(OPTIONS={"retries": 2, "repair": "REPAIR"}, TURNS=4), max_context_tokens=150)
    texts = {"3.say.0": "hm " + "y" * 120, "3.say.0~1": "well " + "z" * 120, "3.say.0~2": "2"}
    played = play(machine, TASK, lambda ask: texts.get(node_of(ask), f"{node_of(ask)} " + "x" * 60 + " 2"))
    first, second, third = played.asks[3:]
    assert [len(ask.messages) for ask in (first, second, third)] == [6, 6, 8]  # of seven, then nine, then eleven
    assert [played.debate.utterance(node_of(ask)).elided for ask in (first, second, third)] == [2, 4, 4]
    assert [message.text[:4] for message in third.messages[2:]] == ["2.sa", "NEXT", "hm y", "REPA", "well", "REPA"]
    assert "QUESTION" in second.messages[1].text
    for ask in played.asks:
        assert tuple(played.debate.conversation(node_of(ask))) == ask.messages


def test_images_take_room_too() -> None:
    machine = talk(max_context_tokens=1300)
    machine.task = TASK
    image, player = ImagePart(sha256="0" * 64, width_px=784, height_px=1000), machine.the("talker")
    assert estimate_messages([user("", [image])]) == 1 + 1000
    assert estimate_messages([user("", [ImagePart(sha256="0" * 64)])]) == 1 + 576
    text = "x" * 1500
    assert text in machine.told(player, "say", context={"more": [text]})[-1].text
    fitted = machine.told(player, "say", images=[image], context={"more": [text]})
    assert "[...]" in fitted[-1].text and fitted[-1].images == (image,)
    assert 1250 < estimate_messages(fitted) <= 1300
