"""What holds for all formats: a file that was read can be written again, and hostile ones are data or are refused."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from protocols.catalogue import PROTOCOLS, build_machine, load_protocol_prompts
from protocols.conversation import Player
from protocols.errors import ConfigError, MootError, TaskError
from protocols.formats import (
    graphml,
    messages_rows,
    node_link,
    preference_rows,
    read_llava,
    read_m2d,
    read_mad,
    read_maft,
    read_mag,
    read_magdi,
    write_llava,
    write_m2d,
    write_mad,
    write_maft,
    write_mag,
    write_magdi,
    write_magdi_graph,
)
from protocols.formats.llava import conversations
from protocols.formats.m2d import without_secrets
from protocols.graph import Debate, decode_debate, encode_debate
from protocols.machine import derive_seed
from protocols.message import Ask
from protocols.task import Task
from tests.fakes import node_of, play
from tests.protocols.formats import samples
from tests.protocols.test_every_protocol import ANY_SETUP, Setup

SLOW = settings(max_examples=settings().max_examples // 2, suppress_health_check=[HealthCheck.too_slow])


class Format(NamedTuple):
    read: Callable[[str, str], Iterable[Debate]]
    write: Callable[[list[Debate]], str]
    samples: list[Any]
    anything: st.SearchStrategy[Any]


@contextmanager
def reads_or_says(start: str) -> Iterator[None]:
    """What is done inside works, or is refused with a sentence that begins so."""
    try:
        yield
    except MootError as err:
        said = str(err)
        if not said.startswith(start) or len(said) > 500:
            raise


def _first_log(debates: list[Debate]) -> str:
    return next(text for _, text in write_mad(debates))


def _lines(debates: list[Debate]) -> str:
    return "".join(write_mag(debates))


FORMATS = {
    "mad": Format(
        read_mad,
        _first_log,
        [samples.published_mad(), samples.translation_mad(), samples.question_mad()],
        samples.any_mad(),
    ),
    "maft": Format(read_maft, lambda debates: "".join(write_maft(debates)), [samples.maft()], samples.any_maft()),
    "mag": Format(read_mag, _lines, [samples.mag_row()], samples.any_mag()),
    "magdi": Format(read_magdi, lambda debates: "".join(write_magdi(debates)), [samples.magdi()], samples.any_magdi()),
    "m2d": Format(read_m2d, lambda debates: "".join(write_m2d(debates)), [samples.m2d()], samples.any_m2d()),
    "llava": Format(read_llava, lambda debates: "".join(write_llava(debates)), [samples.llava()], samples.any_llava()),
}


def expected(name: str, value: Any) -> Any:
    """What a file comes back as: of M2D's the options without secrets, and the items."""
    if name != "m2d":
        return value
    if isinstance(value, list):
        return {"args": {}, "debate_process": value}
    return {"args": without_secrets(value.get("args", {})), "debate_process": value["debate_process"]}


def assert_comes_back(name: str, value: Any) -> None:
    form = FORMATS[name]
    debates = list(form.read(samples.dumped(value), "file"))
    written = form.write(debates)
    assert json.loads(written) == expected(name, value)
    assert list(form.read(written, "file")) == debates
    for debate in debates:
        assert decode_debate(encode_debate(debate)) == debate
        assert debate.verdict is not None


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_read_is_written_as_it_was(name: str) -> None:
    for value in FORMATS[name].samples:
        assert_comes_back(name, value)


@SLOW
@given(st.data())
@pytest.mark.parametrize("name", FORMATS)
def test_any_file_comes_back(name: str, data: st.DataObject) -> None:
    value = data.draw(FORMATS[name].anything)
    try:
        list(FORMATS[name].read(samples.dumped(value), "file"))
    except ConfigError:  # random chats may hold no reply
        return
    assert_comes_back(name, value)


@SLOW
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
@pytest.mark.parametrize("name", FORMATS)
def test_any_json_is_read_or_refused(name: str, value: Any) -> None:
    with reads_or_says("file"):
        list(FORMATS[name].read(samples.dumped(value), "file"))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "text", ["{", "nonsense", '{"a": NaN}', '["\\ud800"]', "[" * 100_000, "1" * 10_000, '{"a":1,"a":2}']
)
def test_what_is_no_json_is_one_sentence(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^file") as caught:
        list(FORMATS[name].read(text, "file"))
    assert len(str(caught.value)) < 400


def _mutations(value: Any) -> Iterable[Any]:
    """The value with one thing in it, however deep, replaced by something of another kind."""
    yield from (None, 7, [], {}, "x")
    if isinstance(value, dict):
        for key in value:
            yield {other: value[other] for other in value if other != key}
            yield from ({**value, key: inner} for inner in _mutations(value[key]))
    elif isinstance(value, list):
        for at in range(len(value)):
            yield from ([*value[:at], inner, *value[at + 1 :]] for inner in _mutations(value[at]))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_with_something_wrong_in_it_is_read_or_refused(name: str) -> None:
    for value in _mutations(FORMATS[name].samples[0]):
        with reads_or_says("file"):
            if list(FORMATS[name].read(samples.dumped(value), "file")):
                assert_comes_back(name, value)


HOSTILE = "</script><script>alert(1)</script>\x00\x1b[31m\u202e" + "{" * 50


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_words_are_kept_as_words(name: str) -> None:
    value = json.loads(samples.dumped(FORMATS[name].samples[0]).replace("look again", "x"))
    hostile = _replace_replies(value)
    assert_comes_back(name, hostile)
    (debate, *_) = FORMATS[name].read(samples.dumped(hostile), "file")
    assert any(HOSTILE in node.reply.text for node in debate.utterances)
    assert "\x00" not in graphml(debate)


def _replace_replies(value: Any) -> Any:
    """Hostile text behind what any model said."""
    if isinstance(value, list):
        return [_replace_replies(item) for item in value]
    if not isinstance(value, dict):
        return value
    said = value.get("role") == "assistant" or value.get("from") == "gpt"
    return {
        key: f"{inner}{HOSTILE}"
        if isinstance(inner, str)
        and ((said and key in ("content", "value")) or "_raw_" in key or "Agent_" in key or key == "reasoning")
        else _replace_replies(inner)
        for key, inner in value.items()
    }


def wild(seed: int) -> Callable[[Ask], str | None]:
    """Some answer, some say nothing that can be read, some never reply."""

    def answer(ask: Ask) -> str | None:
        rng = random.Random(derive_seed(seed, ask.id))
        said = f"{node_of(ask)} <b>\x00 [{rng.randrange(3)}] \\boxed{{{rng.randrange(3)}}}"
        return rng.choice([said, said, said, "no idea", None])

    return answer


WRITERS: dict[str, Callable[[Debate], str]] = {
    "mad": lambda debate: _first_log([debate]),
    "maft": lambda debate: "".join(write_maft([debate])),
    "mag": lambda debate: "".join(write_mag([debate])),
    "magdi": lambda debate: "".join(write_magdi([debate])),
    "m2d": lambda debate: "".join(write_m2d([debate])),
    "llava": lambda debate: "".join(write_llava([debate])),
}
OTHERS: list[Callable[[Debate], Any]] = [
    lambda debate: list(write_magdi_graph([debate])),
    lambda debate: list(messages_rows(debate)),
    lambda debate: list(preference_rows(debate, label="gold")),
    graphml,
    node_link,
]


@SLOW
@given(ANY_SETUP, st.integers(0, 2**32))
def test_any_debate_of_ours_is_written_so_that_it_can_be_read_or_refused_by_name(setup: Setup, seed: int) -> None:
    task = Task(id="t", question="1 + 1?", gold=("2",), choices=("2", "3"))
    try:
        debate = play(setup.machine(), task, wild(seed), seed=seed, debate_id="debate/t").debate
    except TaskError:  # a protocol that wants another kind of task
        reject()
    for name, write in WRITERS.items():
        with reads_or_says("debate 'debate/t' cannot be written as "):
            written = write(debate)
            nothing_kept = name == "llava" and not list(conversations(debate))  # of what was to be rewritten, say
            assert list(FORMATS[name].read(written, "file")) or nothing_kept
    for other in OTHERS:
        with reads_or_says("debate 'debate/t' cannot be written as "):
            other(debate)


HOMES = {
    "society": ("maft", {"generator": 3}),
    "reflect": ("mag", {"teacher": 2, "student": 1}),
    "dialectic": ("m2d", {"debater": 2, "judge": 1, "summariser": 1, "condenser": 1}),
    "mad": ("mad", {"base": 1, "affirmative": 1, "negative": 1, "moderator": 1, "judge": 1}),
}


def held(protocol: str) -> Debate:
    """A debate in which everybody replies, nobody agrees and nothing fails."""
    cast = {
        role: tuple(Player(name=f"{role}{number}") for number in range(count))
        for role, count in HOMES[protocol][1].items()
    }
    settings = PROTOCOLS[protocol].SETTINGS()
    machine = build_machine(protocol, settings, cast, load_protocol_prompts(protocol, settings))
    task = Task(id="t", question="1 + 1?", gold=("2",))
    played = play(machine, task, lambda ask: f"[{len(node_of(ask))}] {node_of(ask)}")
    return replace(played.debate, cast={role: tuple(player.name for player in cast[role]) for role in cast})


@pytest.mark.parametrize("protocol", HOMES)
def test_a_protocols_debates_come_back_from_its_sources_format(protocol: str) -> None:
    form = FORMATS[HOMES[protocol][0]]
    debate = held(protocol)
    (again,) = form.read(form.write([debate]), "file")
    assert [(node.round, node.reply.text) for node in again.turns()] == [
        (node.round, node.reply.text) for node in debate.turns()
    ]
    assert sorted(node.phase for node in again.utterances) == sorted(node.phase for node in debate.utterances)
    assert again.verdict is not None and debate.verdict is not None
    assert again.verdict.oracle == debate.verdict.oracle
