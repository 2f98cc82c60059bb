"""Messages on the wire: they check themselves, and old bytes still decode."""

from __future__ import annotations

import math
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import MootError, ReplyError
from protocols.message import (
    Ask,
    Failure,
    ImagePart,
    Message,
    Outcome,
    Reply,
    Sampling,
    TextPart,
    Usage,
    assistant,
    system,
    user,
)
from protocols.task import Task, stable_id

OUTCOME = msgspec.msgpack.Decoder(Outcome)


def ask(**fields: Any) -> Ask:
    defaults: dict[str, Any] = {
        "id": "d#0.answer.0",
        "debate_id": "d",
        "agent": "a",
        "role": "generator",
        "messages": (),
        "sampling": Sampling(),
    }
    return Ask(**(defaults | fields))


def test_a_message_keeps_its_parts_in_order_and_images_come_first() -> None:
    image = ImagePart(sha256="0" * 64)
    message = user("what is this?", [image])
    assert message.parts == (image, TextPart("what is this?"))
    assert message.text == "what is this?"
    assert message.images == (image,)
    assert [system("").role, user("").role, assistant("").role] == ["system", "user", "assistant"]


@given(st.lists(st.text(), max_size=4), st.floats(0, 10), st.integers(0, 2**31 - 1))
def test_asks_survive_the_wire(texts: list[str], temperature: float, seed: int) -> None:
    sent = ask(
        messages=(*(Message("user", (ImagePart(sha256="ab"), TextPart(text))) for text in texts), system("s")),
        sampling=Sampling(temperature=temperature, seed=seed, stop=("\n",)),
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Ask) == sent


@given(st.text(), st.lists(st.tuples(st.integers(0, 2**31), st.floats(allow_nan=False)), max_size=5))
def test_outcomes_survive_the_wire_and_are_told_apart(text: str, tokens: list[tuple[int, float]]) -> None:
    reply = Reply(
        ask_id="x", text=text, model="m", token_ids=tuple(t for t, _ in tokens), logprobs=tuple(p for _, p in tokens)
    )
    failure = Failure(ask_id="x", kind="timeout", reason=text, tries=3)
    assert [OUTCOME.decode(msgspec.msgpack.encode(outcome)) for outcome in (reply, failure)] == [reply, failure]


def test_bytes_from_before_a_field_was_added_still_decode() -> None:
    old_reply = msgspec.msgpack.encode({"type": "reply", "ask_id": "x", "text": "hi", "model": "m"})
    assert OUTCOME.decode(old_reply) == Reply(ask_id="x", text="hi", model="m")
    old_failure = msgspec.msgpack.encode({"type": "failure", "ask_id": "x", "kind": "quota", "reason": "spent"})
    assert OUTCOME.decode(old_failure) == Failure(ask_id="x", kind="quota", reason="spent")
    old_task = msgspec.msgpack.encode({"id": "t", "question": "1+1"})
    assert msgspec.msgpack.decode(old_task, type=Task) == Task(id="t", question="1+1")


def test_fields_of_a_later_version_are_passed_over() -> None:
    newer = msgspec.msgpack.encode({"type": "reply", "ask_id": "x", "text": "hi", "model": "m", "mood": "good"})
    assert OUTCOME.decode(newer) == Reply(ask_id="x", text="hi", model="m")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": 10.5}, "temperature=10.5"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"top_p": math.nan}, "top_p=nan"),
        ({"max_tokens": 0}, "max_tokens=0"),
    ],
)
def test_sampling_names_the_setting_that_is_wrong(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Sampling(**fields)
    with pytest.raises(msgspec.ValidationError, match=says):
        msgspec.convert(fields, Sampling)


def test_a_misspelt_sampling_setting_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="temprature"):
        msgspec.convert({"temprature": 1.0}, Sampling)


def test_log_probs_are_as_many_as_the_tokens() -> None:
    Reply(ask_id="x", text="", model="m", token_ids=(1, 2))
    with pytest.raises(ValueError, match="1 token_ids but 2 logprobs"):
        Reply(ask_id="x", text="", model="m", token_ids=(1,), logprobs=(-0.1, -0.2))
    with pytest.raises(msgspec.ValidationError):
        OUTCOME.decode(
            msgspec.msgpack.encode({"type": "reply", "ask_id": "x", "text": "", "model": "m", "logprobs": [-1.0]})
        )


def test_usage_adds_up() -> None:
    assert sum([Usage(1, 2, 1), Usage(10, 20, 5)], Usage()) == Usage(11, 22, 6)


def test_stable_ids_depend_on_content_alone() -> None:
    assert stable_id("sums", "1+1", "2") == stable_id("sums", "1+1", "2")
    assert (
        len({stable_id("sums", "1+1"), stable_id("sums", "1+2"), stable_id("gsm", "1+1"), stable_id("sums", "1", "+1")})
        == 4
    )
    assert stable_id("sums", "1+1").startswith("sums-")


@pytest.mark.parametrize("error", [MootError("it broke"), ReplyError("too fast", "rate_limited")])
def test_errors_cross_process_borders(error: MootError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))
