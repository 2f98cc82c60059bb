"""Prompt sets: mistakes are found when they are loaded, and what a model wrote stays text."""

from __future__ import annotations

import itertools
import json
import re
from string import Template

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.catalogue import PROTOCOLS, load_protocol_prompts
from protocols.errors import ConfigError
from protocols.mad_replies import read_verdict
from protocols.message import assistant, user
from protocols.prompt import PromptSet, load_prompts, prompt_names
from protocols.task import Task

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
        ("opening = ''\npeer = ''\nschema = 3", "a schema must be a table or JSON text"),
        ("opening = ''\npeer = ''\n[schema]\nopening = '{'", "a schema must be a table or JSON text"),
        ("opening = ''\npeer = ''\n[schema]\nopening = '[]'", "a schema must be a table or JSON text"),
        ("opening = ''\npeer = ''\n[schema.closing]\ntype = 'object'", "a schema for an unknown part 'closing'"),
        ("opening = ''\npeer = ''\n[schema.peer]\ntype = 'array'", "schema.peer: must have type = 'object'"),
        ("opening = ''\npeer = ''\n[schema.peer]\ntype = 'object'", "schema.peer: must have type = 'object'"),
        (
            "opening = ''\npeer = ''\n[schema.peer]\ntype = 'object'\nproperties = {a = {}}\nrequired = ['a', 'b']",
            "schema.peer: requires 'b'",
        ),
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
    # as it was before sets could hold schemas: runs of then can be resumed
    assert prompts().digest == "b48e4cb95fce9505d27fcbed891076317b3e394b2994dfae311ee26ec778aeb1"
    with_schema, other = (
        load_prompts("mine", SLOTS, text=f"{PLAIN}[schema.peer]\ntype = 'object'\nproperties = {{{name} = {{}}}}")
        for name in ("a", "b")
    )
    assert len({load_prompts("mine", SLOTS, text=PLAIN).digest, with_schema.digest, other.digest}) == 3


PLAIN = "opening = ''\npeer = ''\n"


def test_a_schema_is_read_from_a_table_or_from_json_with_its_fields_in_order() -> None:
    table = "[schema.peer]\ntype = 'object'\nproperties = {b = {type = 'string'}, a = {}}\nrequired = ['a']"
    text = (
        """[schema]\npeer = '{"type": "object", "properties": {"b": {"type": "string"}, "a": {}}, "required": ["a"]}'"""
    )
    for given_as in (table, text):
        loaded = load_prompts("mine", SLOTS, text=PLAIN + given_as)
        assert loaded.schemas == {
            "peer": '{"type":"object","properties":{"b":{"type":"string"},"a":{}},"required":["a"]}'
        }
    assert load_prompts("mine", SLOTS, text=PLAIN).schemas == {}


OBJECT = re.compile(r"^\{\".*\}$", re.MULTILINE)  # as prompts show it, and as worked examples write it
SHIPPED = {name: load_prompts(name, PROTOCOLS[name.partition(".")[0]].SLOTS) for name in prompt_names()}


def shown(name: str, part: str) -> list[dict[str, str]]:
    """The objects that a part shows as the form of its reply; where it shows none, those of the set's examples."""
    prompts, slots = SHIPPED[name], PROTOCOLS[name.partition(".")[0]].SLOTS
    text = prompts.fill(part, **dict.fromkeys(slots[part], "X"))
    examples = [message.text for known in slots for message in prompts.examples(known) if message.role == "assistant"]
    found = [json.loads(match) for match in OBJECT.findall(text)]
    return found or list(map(json.loads, filter(OBJECT.fullmatch, examples)))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_part_that_shows_an_object_has_a_schema(name: str) -> None:
    parts = PROTOCOLS[name.partition(".")[0]].SLOTS
    asking = {part for part in parts if OBJECT.search(SHIPPED[name].fill(part, **dict.fromkeys(parts[part], "X")))}
    assert asking <= SHIPPED[name].schemas.keys()
    assert bool(SHIPPED[name].schemas) == name.startswith("mad.")


@pytest.mark.parametrize(
    ("name", "part"), [(name, part) for name, prompts in SHIPPED.items() for part in prompts.schemas]
)
def test_every_shipped_schema_takes_replies_in_the_form_that_its_prompt_shows(name: str, part: str) -> None:
    """What a prompt says in words, such as "yes or no", stands for each of the words that the schema allows."""
    schema = json.loads(SHIPPED[name].schemas[part])
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    assert schema["additionalProperties"] is False  # as OpenAI and Anthropic want it
    assert schema["required"] == list(schema["properties"])
    fitting = 0
    for form in shown(name, part):
        if form.keys() != schema["properties"].keys():
            continue  # of another part
        fitting += 1
        assert list(form) == schema["required"]  # in the order in which they are asked for
        words = {key: field["enum"] for key, field in schema["properties"].items() if "enum" in field}
        for key, allowed in words.items():
            assert form[key] in allowed or all(word in form[key] for word in allowed)
        for said in itertools.product(*words.values()):
            reply = form | dict(zip(words, said, strict=True))
            validator.validate(reply)
            assert read_verdict(json.dumps(reply), Task(id="t", question="?", answer_format="text")).how == "fields"
            for key in reply:
                assert not validator.is_valid({other: text for other, text in reply.items() if other != key})
    assert fitting


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
