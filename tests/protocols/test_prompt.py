"""Prompt sets: mistakes are found when they are loaded, and what a model wrote stays text."""

from __future__ import annotations

from string import Template

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.catalogue import PROTOCOLS, load_protocol_prompts
from protocols.errors import ConfigError
from protocols.message import assistant, user
from protocols.prompt import PromptSet, load_prompts, prompt_names

SLOTS = {"opening": frozenset({"question"}), "peer": frozenset({"reply", "number"})}


def prompts(**parts: str) -> PromptSet:
    return PromptSet("mine", {"opening": "Q: ${question}", "peer": "${number}) ${reply}"} | parts, SLOTS)


def test_slots_are_filled_and_dollars_kept() -> None:
    assert (
        prompts(opening="  It costs $$5: ${question}\n").fill("opening", question="how much?")
        == "It costs $5: how much?"
    )


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"opening": "${gold}"}, "unknown slot 'gold'"),
        ({"opening": "$gold"}, "unknown slot 'gold'"),
        ({"opening": "${Question}"}, "unknown slot 'Question'"),
        ({"peer": "${question}"}, "unknown slot 'question'"),
        ({"ending": "bye"}, "unknown part 'ending'"),
        ({"opening": "it costs $5"}, r"\$\$ for a dollar sign"),
        ({"opening": "it costs 5 $"}, r"\$\$ for a dollar sign"),
        ({"opening": "${question"}, r"\$\$ for a dollar sign"),
        ({"opening": "${}"}, r"\$\$ for a dollar sign"),
        ({"opening": "${question }"}, r"\$\$ for a dollar sign"),
    ],
)
def test_mistakes_in_a_set_are_found_when_it_is_loaded(parts: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        prompts(**parts)
    assert "'mine'" in str(caught.value)


def test_a_missing_part_is_named() -> None:
    with pytest.raises(ConfigError, match="no part 'peer'"):
        PromptSet("mine", {"opening": "${question}"}, SLOTS)


@pytest.mark.parametrize(
    "hostile", ["${question}", "$question", "$$", "${gold}", "$", "\\1 \\g<0>", "%s {reply}", "\x00${number}"]
)
def test_what_a_model_wrote_opens_no_slot(hostile: str) -> None:
    assert prompts().fill("peer", number="1", reply=hostile) == f"1) {hostile}"


@given(st.text(), st.text())
def test_any_value_is_put_in_as_it_is(number: str, reply: str) -> None:
    assert prompts().fill("peer", number=number, reply=reply) == f"{number}) {reply}"


@given(st.text(alphabet="${}q uestion_ü5\n", max_size=20))
def test_a_set_that_loads_can_be_filled(text: str) -> None:
    try:
        loaded = prompts(opening=text)
    except ConfigError:
        return
    assert loaded.uses("opening", "question") == ("question" in Template(text).get_identifiers())
    loaded.fill("opening", question="q")


def test_empty_parts_say_nothing() -> None:
    assert prompts(opening=" \n").fill("opening", question="q") == ""
    assert not prompts(opening=" \n").has("opening")
    assert prompts().has("opening")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("opening = ", "not valid TOML"),
        ("opening = 5\npeer = ''", "part 'opening' must be text, not int"),
        ("peer = ''", "no part 'opening'"),
        ("opening = ''\npeer = ''\n[examples]\nopening = [['one']]", "pairs"),
        ("opening = ''\npeer = ''\n[examples]\nclosing = [['q', 'a']]", "'closing'"),
        ("examples = 3\nopening = ''\npeer = ''", "pairs"),
    ],
)
def test_a_file_that_is_no_prompt_set_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_prompts("mine", SLOTS, text=text)


@pytest.mark.parametrize("name", ["nowhere", "../../pyproject", "a\x00b", ""])
def test_a_set_that_is_not_shipped_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError, match=r"society\.number\.en"):
        load_prompts(name, SLOTS)


def test_examples_are_shown_as_earlier_turns() -> None:
    loaded = load_prompts(
        "mine", SLOTS, text="opening = ''\npeer = ''\n[examples]\nopening = [['1+1', '2'], ['$', '${x}']]"
    )
    assert loaded.examples("opening") == (user("1+1"), assistant("2"), user("$"), assistant("${x}"))
    assert loaded.examples("peer") == ()


def test_the_digest_tells_sets_apart_by_what_they_say() -> None:
    assert prompts().digest == prompts().digest
    assert prompts().digest != prompts(opening="${question}").digest


@pytest.mark.parametrize("name", prompt_names())
def test_every_shipped_set_loads_and_shows_the_question(name: str) -> None:
    protocol = name.partition(".")[0]
    machine = PROTOCOLS[protocol]
    loaded = load_prompts(name, machine.SLOTS)
    for part, slots in machine.SLOTS.items():
        filled = loaded.fill(part, **{slot: f"<{slot}>" for slot in slots})
        assert "$" not in filled
    assert any(loaded.uses(part, "question") for part in machine.SLOTS)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_ships_its_default_set(name: str) -> None:
    assert load_protocol_prompts(name, PROTOCOLS[name].SETTINGS()).name in prompt_names()
