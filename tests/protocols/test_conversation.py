"""What the base of all protocols does for them: second tries, chats that stay in their room, budgets, stop rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from protocols.answer import Answer
from protocols.conversation import Conversation, Flow, Player, ProtocolSettings, Role, Script, Turn
from protocols.errors import ConfigError, IllegalEventError, TaskError
from protocols.machine import AgentFailed, DeadlinePassed, Opened, Phase, Replied
from protocols.message import Ask, Reply, Usage, assistant, user
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
