"""What every protocol keeps, whatever the cast, the settings, the replies, the failures and their order of arrival."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import msgspec
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from protocols.baseline import BaselineSettings, Match, Method
from protocols.catalogue import PROTOCOLS, build_machine, load_protocol_prompts
from protocols.conversation import Player
from protocols.dialectic import DialecticSettings
from protocols.errors import IllegalEventError, TaskError
from protocols.graph import Debate, decode_debate, encode_debate
from protocols.machine import AgentFailed, DeadlinePassed, Event, Machine, Replied, Request, derive_seed
from protocols.mad import MadSettings
from protocols.message import Ask, Failure, Sampling
from protocols.persuasion import PersuasionSettings
from protocols.prompt import PromptSet
from protocols.reflect import ReflectSettings
from protocols.rewrite import CATEGORIES, RewriteSettings
from protocols.society import SocietySettings
from protocols.task import Task
from tests.fakes import Played, failure_of, node_of, replay, reply_to, told
from tests.fakes import play as played_out

EVENTS = msgspec.msgpack.Decoder(list[Event])
SLOW = settings(suppress_health_check=[HealthCheck.too_slow])


Spot = tuple[int, str, str]


@dataclass(frozen=True)
class Setup:
    """One way to hold a debate, and what it must keep to.

    ``max_steps`` counts the phases entered at most: no debate may take more events than all its asks and their phases'
    deadlines. ``may_see`` says whether a node's own message may show a reply of another, each as (round, step, seat).
    """

    protocol: str
    settings: Any
    cast: dict[str, tuple[Player, ...]]
    max_steps: int
    may_see: Callable[[Spot, Spot], bool]
    max_tries: int = 1  # of one turn

    @property
    def max_events(self) -> int:
        asks = PROTOCOLS[self.protocol].max_asks(self.settings, self.cast)
        return 1 + asks * self.max_tries + self.max_steps

    def machine(self) -> Machine:
        return build_machine(
            self.protocol, self.settings, self.cast, load_protocol_prompts(self.protocol, self.settings)
        )


@st.composite
def societies(draw: st.DrawFn) -> Setup:
    size, rounds, summarize = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.booleans())
    memory: Literal["chat", "stateless"] = draw(st.sampled_from(["chat", "stateless"]))

    def cast_of(role: str, count: int) -> tuple[Player, ...]:
        nobody = role == "c" and memory == "chat"  # who goes on with another's chat is told nothing of its own
        return tuple(
            Player(
                name=f"{role}{draw(st.integers(0, 2))}",
                persona="" if nobody else draw(st.sampled_from(["", "You are terse."])),
                sampling=Sampling(temperature=draw(st.sampled_from([0.0, 1.0]))),
            )
            for _ in range(count)
        )

    cast = {"generator": cast_of("g", size)}
    if draw(st.booleans()):
        cast["critic"] = cast_of("c", size)
    if summarize:
        cast["summariser"] = cast_of("s", 1)
    chosen = SocietySettings(
        rounds=rounds,
        summarize=summarize,
        memory=memory,
        max_peers=draw(st.integers(1, 4)),
        tie_break=draw(st.sampled_from(["seeded", "first", "lexicographic"])),
        visibility=draw(st.sampled_from(["snapshot", "sequential"])),
        topology=draw(st.sampled_from(["full", "ring", "star", "sparse"])),
        stop=draw(st.sampled_from([(), ("unanimity",), ("oracle",), ("unanimity", "oracle")])),
        budget_tokens=draw(st.sampled_from([0, 25])),
        max_context_tokens=draw(st.sampled_from([0, 40])),
    )
    sequential = chosen.visibility == "sequential"

    def may_see(node: Spot, seen: Spot) -> bool:
        if node[1] == "answer" and seen == (node[0], "summarise", node[2]):
            return True
        if seen[1] != "answer" or seen[0] > node[0]:
            return False
        return seen[0] < node[0] or (sequential and int(seen[2]) < int(node[2]))

    return Setup("society", chosen, cast, rounds * (size if sequential else 1) * (1 + summarize), may_see)


@st.composite
def reflections(draw: st.DrawFn) -> Setup:
    oracle, tries, size = draw(st.booleans()), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    teachers = draw(st.integers(1, size))
    players = tuple(Player(name=f"a{seat}", persona=draw(st.sampled_from(["", "Be brief."]))) for seat in range(size))
    chosen = ReflectSettings(
        rounds=draw(st.integers(1, 4)),
        oracle=oracle,
        stop=draw(st.sampled_from([(), ("unanimity",), ("oracle",)] if oracle else [(), ("unanimity",)])),
        feedback=draw(st.booleans()),
        reflection=draw(st.booleans()),
        critique_last=draw(st.booleans()),
        context=draw(st.sampled_from(["shuffled", "named"])),
        samples=tries,
        budget_tokens=draw(st.sampled_from([0, 25])),
        max_context_tokens=draw(st.sampled_from([0, 40])),
    )

    def may_see(node: Spot, seen: Spot) -> bool:
        if node[1] == "answer":  # all of the last round, and nothing else
            return seen[0] == node[0] - 1
        return seen[:2] == (node[0], "answer") and seen[2] in node[2].split("-")

    cast = {"teacher": players[:teachers], "student": players[teachers:]}
    return Setup("reflect", chosen, cast, 2 * chosen.rounds, may_see, max_tries=tries)


@st.composite
def baselines(draw: st.DrawFn) -> Setup:
    method = draw(st.sampled_from(get_args(Method)))
    chosen = BaselineSettings(
        method=method,
        samples=draw(st.integers(1, 4)),
        match=draw(st.sampled_from([None, Match(agents=3, rounds=2)])) if method == "majority" else None,
        rounds=draw(st.integers(1, 4)),
        stop=draw(st.sampled_from([(), ("oracle",)])) if method == "self_reflect" else (),
        tie_break=draw(st.sampled_from(["seeded", "first", "lexicographic"])),
        budget_tokens=draw(st.sampled_from([0, 25])),
        max_context_tokens=draw(st.sampled_from([0, 40])),
        prompts="baseline.translation.en" if method == "maps" else "baseline.number.en",
    )
    cast: dict[str, tuple[Player, ...]] = {"solver": (Player(name="s"),)}
    if method in ("rerank", "maps") and draw(st.booleans()):
        cast["scorer"] = (Player(name="judge"),)

    def may_see(node: Spot, seen: Spot) -> bool:  # a scorer its candidate, an informed answer its own knowledge
        return seen[0] == node[0] and (seen[1:] == ("answer", node[2]) if node[1] == "score" else seen[1] == node[2])

    return Setup("baseline", chosen, cast, max(3, chosen.rounds), may_see, max_tries=2)


@st.composite
def dialectics(draw: st.DrawFn) -> Setup:
    size = draw(st.integers(1, 4))
    chosen = DialecticSettings(
        rounds=draw(st.integers(1, 4)),
        visibility=draw(st.sampled_from(["sequential", "snapshot"])),
        consistency=draw(st.sampled_from(["judge", "parsed", "off"])),
        judge_last_round=draw(st.booleans()),
        images=draw(st.sampled_from(["attach", "omit"])),
        stop=draw(st.sampled_from([(), ("unanimity",), ("oracle",)])),
        budget_tokens=draw(st.sampled_from([0, 25])),
        max_context_tokens=draw(st.sampled_from([0, 40])),
        prompts=draw(st.sampled_from(["dialectic.bracket.en", "dialectic.sum.en"])),
    )
    cast = {"debater": tuple(Player(name=f"d{draw(st.integers(0, 2))}") for _ in range(size))}
    cast |= {role: (Player(name=role),) for role in ("judge", "summariser")}
    if draw(st.booleans()):
        cast["condenser"] = (Player(name="condenser"),)
    sequential = chosen.visibility == "sequential"

    def may_see(node: Spot, seen: Spot) -> bool:
        if seen[1] != "answer" or seen[0] > node[0]:
            return False
        if node[1] != "answer":  # a judge's round is its own; who concludes may see any
            return seen[0] == node[0] or node[1] != "judge"
        return seen[0] < node[0] or (sequential and node[0] > 0 and int(seen[2]) < int(node[2]))

    return Setup("dialectic", chosen, cast, chosen.rounds * ((size if sequential else 1) + 1) + 1, may_see)


@st.composite
def mads(draw: st.DrawFn) -> Setup:
    sides = ["affirmative", "negative", *(f"debater-{number}" for number in range(3, 3 + draw(st.integers(0, 2))))]
    chosen = MadSettings(
        rounds=draw(st.integers(1, 4)),
        level=draw(st.integers(0, 3)),
        adaptive=draw(st.booleans()),
        judge_evidence=draw(st.sampled_from(["openings", "last", "full"])),
        repair=draw(st.booleans()),
        stop=draw(st.sampled_from([(), ("unanimity",), ("oracle",)])),
        budget_tokens=draw(st.sampled_from([0, 25])),
        max_context_tokens=draw(st.sampled_from([0, 60])),
        prompts=draw(st.sampled_from(["mad.number.en", "mad.translation.zh", "mad.sum.en"])),
    )
    cast: dict[str, tuple[Player, ...]]
    cast = {role: (Player(name=role, persona=draw(st.sampled_from(["", "Be brief."]))),) for role in sides[:2]}
    cast["debater"] = tuple(Player(name="d") for _ in sides[2:])
    cast |= {role: (Player(name="m"),) for role in ("moderator", *draw(st.sampled_from([(), ("base",), ("judge",)])))}

    def may_see(node: Spot, seen: Spot) -> bool:
        if node[1] == "argue" and seen[1] == "argue":  # who came before in this round, or has not spoken in it yet
            return seen[0] == node[0] - (sides.index(seen[2]) > sides.index(node[2])) and seen[2] != node[2]
        if node[1] == "argue":
            return node[0] == 0 and seen[1] == "base"
        if node[1] == "judge":
            openings = chosen.judge_evidence == "openings"
            return node[2] == "0" and seen[1] == "argue" and (seen[0] == 0 or not openings)
        return node[1] == "moderate" and seen[:2] == (node[0], "argue")

    return Setup("mad", chosen, cast, 3 + chosen.rounds * (len(sides) + 1), may_see, max_tries=2)


@st.composite
def rewrites(draw: st.DrawFn) -> Setup:
    chosen = RewriteSettings(
        category=draw(st.sampled_from(CATEGORIES)),
        pairs=(pairs := draw(st.integers(1, 3))),
        min_pairs=draw(st.integers(1, pairs)),
        max_pairs=3,
        filter=draw(st.booleans()),
        scores=draw(st.booleans()),
        images=draw(st.sampled_from(["attach", "omit"])),
        answer_from=draw(st.sampled_from(["details", "gold"])),
        budget_tokens=draw(st.sampled_from([0, 25])),
        max_context_tokens=draw(st.sampled_from([0, 40])),
        prompts=draw(st.sampled_from(["rewrite.en", "rewrite.tiny.en"])),
    )
    cast: dict[str, tuple[Player, ...]] = {role: (Player(name=role),) for role in ("rewriter", "judge", "scorer")}

    def may_see(node: Spot, seen: Spot) -> bool:  # the last message of a second try names nothing
        return seen[1] == "rewrite" and node[1] != "rewrite"

    return Setup("rewrite", chosen, cast, 3, may_see, max_tries=2)


def play(*args: Any, **kwargs: Any) -> Played:
    """A debate of a task that the protocol takes; one that it refuses is another example's."""
    try:
        return played_out(*args, **kwargs)
    except TaskError:
        reject()


@st.composite
def persuasions(draw: st.DrawFn) -> Setup:
    debate, critique, helped = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    cast = {
        "debater": tuple(Player(name=f"d{seat}") for seat in range(1 + debate)),
        "judge": tuple(Player(name=f"j{draw(st.integers(0, 1))}") for _ in range(draw(st.integers(1, 3)))),
    }
    if critique:
        cast["critic"] = (Player(name="d0"),)
    if helped:
        cast["preference"] = (Player(name="p"),)
    chosen = PersuasionSettings(
        method="debate" if debate else "consultancy",
        assign=draw(st.sampled_from(["seeded", "gold"])),
        rounds=draw(st.integers(1, 3)),
        style=draw(st.sampled_from(["simultaneous", "sequential"])),
        interactive=draw(st.sampled_from([None, False, True])),
        best_of=draw(st.integers(1, 3)),
        critique=critique,
        swap=draw(st.booleans()),
        judge_style=draw(st.sampled_from(["plain", "cot"])),
        tie_break=draw(st.sampled_from(["seeded", "first", "lexicographic"])),
        budget_tokens=draw(st.sampled_from([0, 25])),
        max_context_tokens=draw(st.sampled_from([0, 400])),
        prompts=draw(st.sampled_from(["persuasion.quotes.en", "persuasion.small.en"])),
    )

    def may_see(node: Spot, seen: Spot) -> bool:
        (number, step, seat), (earlier, kind, other) = node, seen
        if kind == "question":
            return earlier < number or (earlier == number and step != "question")
        if kind in ("argue", "refine") and (earlier < number or step == "judge"):
            return earlier <= number
        if earlier > number or kind not in ("argue", "refine", "criticise") or step in ("question", "judge"):
            return False
        if other[0] != seat[0]:  # the other side, in the same round
            return chosen.style == "sequential" and seat[0] == "b" and kind != "criticise"
        return (kind == "argue" and step in ("criticise", "refine")) or seen == (
            (number, "argue", seat) if step == "prefer" else (number, "criticise", seat if step == "refine" else "")
        )

    moments = 2 if debate and chosen.style == "sequential" else 1
    steps = chosen.rounds * (1 + moments * (2 + 2 * critique)) + 1
    return Setup("persuasion", chosen, cast, steps, may_see, max_tries=2)


SETUPS: dict[str, st.SearchStrategy[Setup]] = {
    "rewrite": rewrites(),
    "dialectic": dialectics(),
    "society": societies(),
    "persuasion": persuasions(),
    "reflect": reflections(),
    "baseline": baselines(),
    "mad": mads(),
}
"""Protocol -> the ways to hold it. A new protocol adds its line."""

ANY_SETUP = st.one_of(*SETUPS.values())
TASKS = st.builds(
    Task,
    id=st.just("t"),
    question=st.sampled_from(["1 + 1", "${question} $", "", "x" * 50, "\x00"]),
    gold=st.sampled_from([(), ("2",), ("GOLD-TOKEN", "3")]),
    answer_format=st.sampled_from(["number", "boxed", "text"]),
    choices=st.sampled_from([(), ("2", "3")]),
    details=st.sampled_from([{}, {"passage": "One and one is 2. ${question}", "incorrect_answer": "5"}]),
)
ORDERS = st.integers(0, 2**32)
SEEDS = st.integers(0, 2**63)


MARK = re.compile(r"⟦([^⟧\s]*)⟧")  # one that was cut for room holds a space, and names nothing


def spot(node_id: str) -> Spot:
    """A node's round, step and seat; a second try sits where the first did."""
    number, step, seat = node_id.partition("~")[0].split(".")
    return int(number), step, seat


def marked(ask: Ask) -> str:
    """A mark that no other reply has."""
    return f"⟦{node_of(ask)}⟧"


def wild(seed: int) -> Callable[[Ask], str | Failure | None]:
    """Replies, failures and silence by the ask's id alone, so that no order of arrival can change them."""

    def answer(ask: Ask) -> str | Failure | None:
        rng = random.Random(derive_seed(seed, "fake", ask.id))
        kind = rng.random()
        if kind < 0.1:
            return failure_of(ask, "timeout")
        if kind < 0.2:
            return None
        body = rng.choice(
            [
                *(r"\boxed{2}", "the answer is 3", "2", "", "no idea", r"\boxed{${peers}", "=" * 9, "answer: 1/2\x00"),
                *("[2]", "[Yes]", "<instruction>2?</instruction><response>2</response>"),
                *('{"answer": "2", "side": "Negative"}', '{"answer": "", "side": "Affirmative"}'),
            ]
        )
        return f"{marked(ask)} {body}"

    return answer


def drawn(order: int) -> Callable[[Sequence[Event]], Event]:
    return random.Random(order).choice


def test_every_protocol_is_held_to_this() -> None:
    assert SETUPS.keys() == PROTOCOLS.keys()


@SLOW
@given(
    ANY_SETUP, TASKS, SEEDS, ORDERS, st.sets(st.integers(1, 30), max_size=3), st.one_of(st.none(), st.integers(1, 30))
)
def test_a_replay_commands_the_same_byte_for_byte(
    setup: Setup, task: Task, seed: int, order: int, deadlines: set[int], budget_at: int | None
) -> None:
    played = play(
        setup.machine(),
        task,
        wild(seed),
        seed=seed,
        choose=drawn(order),
        deadline_at=sorted(deadlines),
        budget_at=budget_at,
    )
    recorded = EVENTS.decode(msgspec.msgpack.encode(played.events))
    random.seed(order)  # the global generator plays no part
    again = replay(setup.machine(), recorded)
    assert [msgspec.msgpack.encode(step) for step in again] == [msgspec.msgpack.encode(step) for step in played.steps]


@SLOW
@given(
    ANY_SETUP, TASKS, SEEDS, ORDERS, st.sets(st.integers(1, 30), max_size=3), st.one_of(st.none(), st.integers(1, 30))
)
def test_after_a_crash_at_any_point_the_same_asks_are_out_word_for_word(
    setup: Setup, task: Task, seed: int, order: int, deadlines: set[int], budget_at: int | None
) -> None:
    played = play(
        setup.machine(),
        task,
        wild(seed),
        seed=seed,
        choose=drawn(order),
        deadline_at=sorted(deadlines),
        budget_at=budget_at,
    )
    out: dict[str, Ask] = {}  # followed by hand: what was asked, less what was settled or left behind with its phase
    machine = setup.machine()
    for cut, (event, commands) in enumerate(zip(played.events, played.steps, strict=True), 1):
        before = machine.phase_index
        machine.receive(event)
        asked = {command.ask.id: command.ask for command in commands if isinstance(command, Request)}
        if machine.phase_index != before:
            out = asked
        else:
            assert isinstance(event, Replied | AgentFailed)  # nothing else stays in a phase
            settled = event.reply.ask_id if isinstance(event, Replied) else event.failure.ask_id
            out = {name: ask for name, ask in (out | asked).items() if name != settled}
        resumed = setup.machine()
        replay(resumed, played.events[:cut])
        assert msgspec.msgpack.encode(list(resumed.outstanding.values())) == msgspec.msgpack.encode(list(out.values()))


@SLOW
@given(ANY_SETUP, SEEDS, st.integers(20, 400))
def test_a_limit_on_the_context_never_costs_the_question(setup: Setup, seed: int, limit: int) -> None:
    task = Task(id="t", question="QUESTION-TOKEN?", gold=("2",), choices=("2", "3"))
    free = msgspec.structs.replace(setup.settings, max_context_tokens=0)
    tight = msgspec.structs.replace(setup.settings, max_context_tokens=limit)
    one = play(replace(setup, settings=free).machine(), task, wild(seed), seed=seed)
    other = play(replace(setup, settings=tight).machine(), task, wild(seed), seed=seed)
    whole = {ask.id: "QUESTION-TOKEN?" in told(ask) for ask in one.asks}
    shared = [ask for ask in other.asks if ask.id in whole]
    assert shared and all(("QUESTION-TOKEN?" in told(ask)) >= whole[ask.id] for ask in shared)


@SLOW
@given(ANY_SETUP, TASKS, SEEDS)
def test_every_ask_is_held_to_the_schema_of_the_part_it_puts(setup: Setup, task: Task, seed: int) -> None:
    """Each part begins with its name here; a second try keeps the schema of the first."""
    parts = PROTOCOLS[setup.protocol].SLOTS
    shipped = load_protocol_prompts(setup.protocol, setup.settings)
    templates = {
        part: f"«{part}» {shipped.fill(part, **{slot: f'${{{slot}}}' for slot in parts[part]})}" for part in parts
    }
    schemas = {part: {"type": "object", "properties": {part: {}}} for part in parts}
    prompts = PromptSet("marked", templates, parts, schemas=schemas)

    def asks(structured: bool) -> list[Ask]:
        sampling = Sampling(structured=structured)
        players = {
            role: tuple(msgspec.structs.replace(player, sampling=sampling) for player in cast)
            for role, cast in setup.cast.items()
        }
        return play(build_machine(setup.protocol, setup.settings, players, prompts), task, wild(seed), seed=seed).asks

    held = asks(structured=True)
    first = {spot(node_of(ask)): ask for ask in reversed(held)}
    for ask in held:
        part = first[spot(node_of(ask))].messages[-1].text.partition("»")[0].removeprefix("«")
        assert ask.schema == prompts.schemas[part]
    assert {ask.schema for ask in asks(structured=False)} == {""}


@SLOW
@given(ANY_SETUP, TASKS, SEEDS, ORDERS)
def test_the_order_of_arrival_within_a_phase_leaves_no_trace(setup: Setup, task: Task, seed: int, order: int) -> None:
    one = play(setup.machine(), task, wild(seed), seed=seed)
    other = play(setup.machine(), task, wild(seed), seed=seed, choose=drawn(order))
    assert encode_debate(one.debate) == encode_debate(other.debate)
    assert sorted(one.asks, key=lambda ask: ask.id) == sorted(other.asks, key=lambda ask: ask.id)


@SLOW
@given(ANY_SETUP, TASKS, SEEDS, ORDERS, st.sets(st.integers(1, 30), max_size=3))
def test_nobody_is_shown_what_its_protocol_keeps_from_it(
    setup: Setup, task: Task, seed: int, order: int, deadlines: set[int]
) -> None:
    played = play(setup.machine(), task, wild(seed), seed=seed, choose=drawn(order), deadline_at=sorted(deadlines))
    for ask in played.asks:
        node = spot(node_of(ask))
        for seen in MARK.findall(ask.messages[-1].text):
            assert setup.may_see(node, spot(seen)), f"{node_of(ask)} was shown {seen}"


@SLOW
@given(ANY_SETUP, TASKS, SEEDS, ORDERS)
def test_every_reply_that_is_shown_has_its_edge(setup: Setup, task: Task, seed: int, order: int) -> None:
    played = play(setup.machine(), task, wild(seed), seed=seed, choose=drawn(order))
    for node in played.debate.utterances:
        shown = {text for message in node.prompt for text in MARK.findall(message.text)}
        assert shown <= sources(played.debate, node.id) | {node.id}, node.id


def sources(debate: Debate, node_id: str) -> set[str]:
    """The nodes that an edge leads from, and what those that condensed others rest on."""
    direct = {edge.source for edge in debate.edges if edge.target == node_id}
    condensed = {edge.source for edge in debate.edges if edge.target == node_id and edge.kind == "summary"}
    return direct.union(*(sources(debate, source) for source in condensed))


@SLOW
@given(ANY_SETUP, TASKS, SEEDS, ORDERS)
def test_gold_is_in_no_prompt_unless_the_verdict_says_oracle(setup: Setup, task: Task, seed: int, order: int) -> None:
    played = play(setup.machine(), task, wild(seed), seed=seed, choose=drawn(order))
    if any("GOLD-TOKEN" in told(ask) for ask in played.asks):
        assert played.verdict.oracle


@SLOW
@given(
    ANY_SETUP, TASKS, SEEDS, ORDERS, st.sets(st.integers(1, 60), max_size=8), st.one_of(st.none(), st.integers(1, 60))
)
def test_every_debate_closes_in_time_with_a_whole_graph(
    setup: Setup, task: Task, seed: int, order: int, deadlines: set[int], budget_at: int | None
) -> None:
    played = play(
        setup.machine(),
        task,
        wild(seed),
        seed=seed,
        choose=drawn(order),
        deadline_at=sorted(deadlines),
        budget_at=budget_at,
        max_events=setup.max_events,
    )
    debate = played.debate
    replied = {event.reply.ask_id for event in played.events if isinstance(event, Replied)}
    assert {node.reply.ask_id for node in debate.utterances} == replied
    assert played.machine.outstanding == {}
    assert len({ask.id for ask in played.asks}) == len(played.asks)
    assert decode_debate(encode_debate(debate)) == debate
    for ask in played.asks:
        if ask.id in replied:
            assert tuple(debate.conversation(node_of(ask))) == ask.messages
    assert played.verdict.support <= played.verdict.votes <= len(debate.utterances)
    assert (played.verdict.correct is None) == (not task.gold)
    if played.verdict.answer is None:
        assert not played.verdict.correct


@SLOW
@given(ANY_SETUP, TASKS, SEEDS, ORDERS, st.integers(1, 20))
def test_illegal_events_at_any_point_change_nothing(setup: Setup, task: Task, seed: int, order: int, cut: int) -> None:
    played = play(setup.machine(), task, wild(seed), seed=seed, choose=drawn(order))
    machine = setup.machine()
    replay(machine, played.events[:cut])
    stale: list[Event] = [
        played.events[0],
        DeadlinePassed(machine.phase_index + 1),
        DeadlinePassed(machine.phase_index - 1),
    ]
    stale += [Replied(reply_to(ask, "again")) for ask in played.asks if ask.id not in machine.outstanding]
    before = repr(vars(machine))
    for event in stale:
        with pytest.raises(IllegalEventError):
            machine.receive(event)
        assert repr(vars(machine)) == before
    rest = replay(machine, played.events[cut:])
    assert rest == played.steps[cut:]
