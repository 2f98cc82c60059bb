"""The simulated model: the same ask is answered the same, whatever happened around it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from actors.models.backend import AdapterRef
from actors.models.scripted import ScriptedBackend, ScriptedSettings, evaluate
from protocols.answer import parse_answer
from protocols.errors import FailureKind, ReplyError
from protocols.message import Ask, Reply, Sampling, assistant, user

ADAPTER = AdapterRef(name="ada@r-v1", agent="ada", path="nowhere")


def ask(number: int, text: str = "What is 3 + 4*5 - 6?") -> Ask:
    return Ask(
        id=f"d{number}#0.answer.0", debate_id=f"d{number}", agent="ada", role="generator", messages=(user(text),),
        sampling=Sampling(),
    )  # fmt: skip


def say(backend: ScriptedBackend, wanted: Ask, adapter: AdapterRef | None = None) -> Reply:
    return asyncio.run(backend.generate(wanted, adapter))


def test_a_reply_depends_on_the_ask_and_the_seed_alone() -> None:
    def texts(numbers: list[int], seed: int = 0) -> dict[int, str]:
        backend = ScriptedBackend(ScriptedSettings(seed=seed))
        return {number: say(backend, ask(number)).text for number in numbers}

    there = list(range(50))
    assert texts(there) == texts(there[::-1])
    assert texts(there) != texts(there, seed=1)
    assert texts([7])[7] == texts(there)[7]


@pytest.mark.parametrize(("skill", "adapter", "expected"), [(1.0, None, 1.0), (0.0, None, 0.0), (0.9, ADAPTER, 1.0)])
def test_skill_is_the_chance_of_being_right(skill: float, adapter: AdapterRef | None, expected: float) -> None:
    backend = ScriptedBackend(ScriptedSettings(skill=skill, unparsed=0.0))
    right = [r"\boxed{17}" in say(backend, ask(number), adapter).text for number in range(100)]
    assert sum(right) / 100 == expected


def test_skill_in_between_is_met_roughly() -> None:
    backend = ScriptedBackend(ScriptedSettings(skill=0.6, unparsed=0.0))
    right = sum(r"\boxed{17}" in say(backend, ask(number)).text for number in range(1000))
    assert 550 < right < 650


def test_it_follows_the_majority_it_is_shown() -> None:
    shown = "What is 1 + 1?\nOne says \\boxed{9}.\nTwo says \\boxed{9}.\nThree says \\boxed{2}."
    backend = ScriptedBackend(ScriptedSettings(conformity=1.0, unparsed=0.0))
    assert all(r"\boxed{9}" in say(backend, ask(number, shown)).text for number in range(20))


def test_it_can_name_no_answer_at_all() -> None:
    backend = ScriptedBackend(ScriptedSettings(unparsed=1.0))
    assert "boxed" not in say(backend, ask(1)).text


def test_faults_come_at_their_rates_and_a_retry_may_succeed() -> None:
    faults: dict[FailureKind, float] = {"transient": 0.2, "refused": 0.1}

    def kinds(backend: ScriptedBackend) -> list[str]:
        async def each() -> list[str]:
            asked = (backend.generate(ask(number), None) for number in range(1000))
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            return [outcome.kind if isinstance(outcome, ReplyError) else "" for outcome in outcomes]

        return asyncio.run(each())

    backend = ScriptedBackend(ScriptedSettings(faults=faults))
    first, second = kinds(backend), kinds(backend)
    counts = Counter(first)
    assert 160 < counts["transient"] < 240
    assert 70 < counts["refused"] < 130
    assert first != second  # drawn anew for each try
    assert kinds(ScriptedBackend(ScriptedSettings(faults=faults))) == first


def test_what_is_said_does_not_depend_on_the_tries_before() -> None:
    backend = ScriptedBackend(ScriptedSettings(faults={"transient": 0.5}))
    plain = ScriptedBackend(ScriptedSettings())
    for number in range(20):
        said = None
        while said is None:
            try:
                said = say(backend, ask(number)).text
            except ReplyError:
                continue
        assert said == say(plain, ask(number)).text


def test_a_reply_counts_words_and_names_the_adapter() -> None:
    reply = say(ScriptedBackend(ScriptedSettings(unparsed=0.0)), ask(1), ADAPTER)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, len(reply.text.split()))
    assert (reply.adapter, reply.model, reply.ask_id) == ("ada@r-v1", "scripted", "d1#0.answer.0")


@pytest.mark.parametrize(
    "text",
    [
        "Nothing to work out here.",
        "In the year 2020\n- 5 people came",  # a list, not a sum
        "٣ + ٤",  # digits, but not those that Python reads
        "007 + 1",
        "+ ".join(["1 "] * 200),
        "9" * 5000 + " + 1",
    ],
)
def test_any_prompt_is_answered(text: str) -> None:
    assert say(ScriptedBackend(ScriptedSettings()), ask(1, text)).text


@pytest.mark.parametrize(
    ("expression", "value"),
    [("3 + 4*5 - 6", 17), ("2*3*4", 24), ("1-2-3", -4), (" 7 + 1 ", 8), ("12", 12), ("+".join(["1"] * 40), 40)],
)
def test_evaluate(expression: str, value: int) -> None:
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "", " ", "1 +", "+ 1", "-1 + 2", "2**9**9", "1/0", "1 // 1", "7 % 2", "1 << 99999", "(1 + 2)*3", "1.5 + 1",
        "1e9 + 1", "0x10 + 1", "True + 1", "'a' * 9", "a + 1", "__import__('os').system('true')", "[1][0]",
        "(lambda: 1)()", "1 if 1 else 2", "1 < 2", "x := 1", "1\n+ 2", "1 + \0", "007 + 1", "~" * 100_000 + "1",
        "(" * 500 + "1" + ")" * 500, "+".join(["1"] * 41), "9" * 5000 + " + 1", "1, 2", "1 + 2 # 3", "٣ + ٤", "½ + 1",
    ],
)  # fmt: skip
def test_evaluate_refuses_everything_else(expression: str) -> None:
    with pytest.raises(ValueError, match=r"is not|has more than"):
        evaluate(expression)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"skill": 1.5}, "skill=1.5 must be between 0 and 1"),
        ({"conformity": float("nan")}, "conformity=nan must be between 0 and 1"),
        ({"faults": {"timeout": 0.7, "refused": 0.7}}, "must be chances that add up to at most 1"),
        ({"latency_s": -1.0}, "latency_s=-1 must be a number from 0 up"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ScriptedSettings(**settings)  # type: ignore[arg-type]


def test_the_sum_may_stand_earlier_in_the_chat() -> None:
    ask = Ask(
        id="d#1.answer.0",
        debate_id="d",
        agent="ada",
        role="writer",
        messages=(user("What is 20 + 22?"), assistant("41"), user("Mend it.")),
        sampling=Sampling(),
    )
    reply = asyncio.run(ScriptedBackend(ScriptedSettings(skill=1.0)).generate(ask, None))
    assert r"\boxed{42}" in reply.text


def test_of_lettered_choices_it_takes_one() -> None:
    question = "Which?\nChoices:\n(A) red\n(B) blue\n(C) green"
    said = set()
    for number in range(20):
        ask = Ask(
            id=f"d{number}#0.answer.0",
            debate_id="d",
            agent="ada",
            role="generator",
            messages=(user(question),),
            sampling=Sampling(),
        )
        reply = asyncio.run(ScriptedBackend(ScriptedSettings(skill=1.0)).generate(ask, None))
        said.add(parse_answer(reply.text, "choice").value)
    assert len(said) == 1 and said <= {"A", "B", "C"}
