"""What agents are sent and what they send back: messages made of parts, asks, replies, failures.

Everything here is a frozen msgspec struct. Fields are only ever added, with a default, so that an old journal still
decodes. Images are parts named by the hash of their bytes: the bytes are stored once, beside the run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from protocols.errors import FailureKind

Speaker = Literal["system", "user", "assistant"]


class TextPart(msgspec.Struct, frozen=True, gc=False, tag="text"):
    """A stretch of plain text."""

    text: str


class ImagePart(msgspec.Struct, frozen=True, gc=False, tag="image", kw_only=True):
    """An image, by the SHA-256 of its encoded bytes; the bytes live in the run's media folder under that name."""

    sha256: str
    media_type: str = "image/png"
    width_px: int = 0
    height_px: int = 0


Part = TextPart | ImagePart


class Message(msgspec.Struct, frozen=True, gc=False):
    """One chat message: who it is put in the mouth of, and its parts in reading order."""

    role: Speaker
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts joined; images leave nothing."""
        if len(self.parts) == 1 and isinstance(first := self.parts[0], TextPart):
            return first.text
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        if len(self.parts) == 1 and isinstance(self.parts[0], TextPart):
            return ()  # most of them
        return tuple(part for part in self.parts if isinstance(part, ImagePart))


def system(text: str) -> Message:
    return Message("system", (TextPart(text),))


def user(text: str, images: Iterable[ImagePart] = ()) -> Message:
    """A user message; images come first, as vision models are trained to see them."""
    return Message("user", (*images, TextPart(text)))


def assistant(text: str) -> Message:
    return Message("assistant", (TextPart(text),))


class Sampling(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a reply is drawn. ``seed`` is set per ask by the protocol, never shared between asks."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int | None = None
    structured: bool = False  # held to the schema that the prompt set has for what is asked, where it has one

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 10.0:
            raise ValueError(f"temperature={self.temperature:g} must be a number from 0 to 10")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p={self.top_p:g} must be above 0 and at most 1")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens={self.max_tokens} must be at least 1")


class Usage(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Tokens of one reply, as its backend counts them.

    Of ``prompt_tokens``, ``cached_tokens`` came from a prefix cache and ``image_tokens`` stand for images; of
    ``completion_tokens``, ``reasoning_tokens`` were thought and not said.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    image_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.image_tokens + other.image_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


class Ask(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a protocol wants from one agent.

    ``id`` is unique within a run and is built from what is asked, not from when: ``<debate>#<round>.<phase>.<agent>``.
    A replayed machine therefore asks under the same id, and a reply on record is found again. ``schema`` is the JSON
    Schema, as text, that the model is held to while it decodes; "" for none.
    """

    id: str
    debate_id: str
    agent: str
    role: str
    messages: tuple[Message, ...]
    sampling: Sampling
    schema: str = ""


FinishReason = Literal["stop", "length", "other"]

MAX_ATTEMPTS = 16  # failed tries that an outcome carries: the last ones


class Attempt(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A try that brought no reply. ``latency_s`` counts from when it was sent.

    A hedged ask's slower try is of kind ``timeout`` with the reason "hedged". ``cost_usd`` and ``tokens`` are what a
    budget was charged for it: the most it can have cost, where the provider may bill it and does not say.
    """

    kind: FailureKind
    reason: str = ""
    latency_s: float = 0.0
    cost_usd: float = 0.0
    tokens: int = 0


class Reply(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="reply", omit_defaults=True):
    """What came back for one ask.

    ``token_ids`` and ``logprobs`` are both [T], the sampled tokens (end-of-turn token included) and their natural
    log-probabilities under the model and adapter named here; both are empty where a backend does not tell.
    """

    ask_id: str
    text: str
    model: str
    adapter: str = ""  # adapter version that spoke, "" for the base model
    finish_reason: FinishReason = "stop"
    usage: Usage = Usage()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    latency_s: float = 0.0
    tries: int = 1
    attempts: tuple[Attempt, ...] = ()  # those that failed before it, in order; the last ``MAX_ATTEMPTS``
    cost_usd: float = 0.0  # of this reply alone, US dollars; 0 where no price is known
    cached: bool = False  # not asked for now: it answered the same ask before; ``usage`` is what it took then

    def __post_init__(self) -> None:
        if self.logprobs and len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"{len(self.token_ids)} token_ids but {len(self.logprobs)} logprobs")


class Failure(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag="failure", omit_defaults=True):
    """An ask that brought no reply, after every try its kind deserves."""

    ask_id: str
    kind: FailureKind
    reason: str
    tries: int = 1
    latency_s: float = 0.0
    attempts: tuple[Attempt, ...] = ()  # in order, the last of them the one told here; the last ``MAX_ATTEMPTS``


Outcome = Reply | Failure


class Stopped(msgspec.Struct, frozen=True, tag="stopped"):
    """A host's last word to an arena: it sends nothing more, what it held stays unanswered, the run can go on later.

    ``reason`` is one sentence with the way out.
    """

    host: str
    reason: str
