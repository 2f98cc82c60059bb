"""What tokens cost: the prices of well-known API models, the user's own before them, and upper bounds on an ask.

The list in ``prices.toml`` has a date and goes out of date: a recipe's ``prices:`` and ``models.NAME.price`` come
first.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from protocols.errors import FailureKind, ReplyError
from protocols.message import Ask, Usage

PER = 1_000_000  # tokens that a price is for
TOKENS_A_MESSAGE = 32  # what a chat template puts around a message, at most
TOKENS_A_PROMPT = 256  # and around them all: a tool's or a system's preamble
IMAGE_TOKENS = 3_000  # of one image, at most, where the price does not say
NOT_BILLED: frozenset[FailureKind] = frozenset(
    {"transient", "rate_limited", "quota", "authentication", "context_too_long"}
)
"""Failures for which providers ask no money. Any other may be billed, and nobody says how much: the most is assumed."""

_DATED = re.compile(r"[-@](?:20\d{6}|20\d\d-\d\d-\d\d)$")


class Price(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """US dollars per million tokens.

    ``cached_input``: of prompt tokens found in the provider's cache; default: as ``input``. Prompts of more than
    ``long_from`` tokens cost the ``long_`` prices, all of their tokens. ``image_tokens``: of one image, at most.
    ``training``: of tokens that the service trains on. ``tuned_``: of what it has trained; default: as untrained.
    """

    input: float
    output: float
    cached_input: float | None = None
    long_from: int = 0
    long_input: float = 0.0
    long_output: float = 0.0
    image_tokens: int = IMAGE_TOKENS
    batch_discount: float = 0.0  # share taken off by the provider's batch service
    training: float | None = None
    tuned_input: float | None = None
    tuned_output: float | None = None

    def __post_init__(self) -> None:
        for name in (
            *("input", "output", "cached_input", "long_input", "long_output"),
            *("training", "tuned_input", "tuned_output"),
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be a number of US dollars from 0 up")
        if not 0 <= self.batch_discount <= 1:
            raise ValueError(f"batch_discount={self.batch_discount} must be between 0 and 1")

    def in_batches(self) -> Price:
        """The price of the service's batches. Tokens from the cache count as any other there: not every service takes
        both off."""
        left = 1.0 - self.batch_discount
        return msgspec.structs.replace(
            self,
            input=self.input * left,
            output=self.output * left,
            cached_input=None,
            long_input=self.long_input * left,
            long_output=self.long_output * left,
            batch_discount=0.0,
        )

    @property
    def tuned(self) -> Price:
        """Of versions that the service has trained. A price of their own is that of all their prompt tokens."""
        fresh, said = self.tuned_input, self.tuned_output
        return msgspec.structs.replace(
            self,
            input=self.input if fresh is None else fresh,
            output=self.output if said is None else said,
            cached_input=self.cached_input if fresh is None else None,
        )

    def cost_usd(self, usage: Usage) -> float:
        """Of one reply, US dollars."""
        long = 0 < self.long_from < usage.prompt_tokens
        fresh, said = (self.long_input, self.long_output) if long else (self.input, self.output)
        cheap = fresh if long or self.cached_input is None else self.cached_input
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        return ((usage.prompt_tokens - cached) * fresh + cached * cheap + usage.completion_tokens * said) / PER

    def most_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The most that so many tokens can cost, US dollars."""
        dearest = max(self.input, self.cached_input or 0.0, self.long_input, self.tuned_input or 0.0)
        said = max(self.output, self.long_output, self.tuned_output or 0.0)
        return (prompt_tokens * dearest + completion_tokens * said) / PER


class Amount(NamedTuple):
    """What is reserved, or spent."""

    usd: float = 0.0
    tokens: int = 0


NOTHING = Amount()


class Meter:
    """What asks may cost and what replies did, at one model's price. Without a price tokens alone are counted."""

    def __init__(self, price: Price | None = None) -> None:
        self._price, self._tuned = price, price and price.tuned

    def most(self, ask: Ask) -> Amount:
        """The most that one try of this ask can come to, whatever the reply.

        No tokeniser in use makes more tokens than there are bytes of UTF-8, which is the bound on the prompt.
        """
        prompt = most_prompt_tokens(ask, self._price.image_tokens if self._price else IMAGE_TOKENS)
        usd = self._price.most_usd(prompt, ask.sampling.max_tokens) if self._price else 0.0
        return Amount(usd, prompt + ask.sampling.max_tokens)

    def cost_usd(self, usage: Usage, *, tuned: bool = False) -> float:
        """``tuned``: of a version that its service has trained."""
        price = self._tuned if tuned else self._price
        return price.cost_usd(usage) if price else 0.0

    def charged(self, ask: Ask, err: ReplyError) -> Amount:
        """What a budget is charged for a try that failed."""
        return NOTHING if err.kind in NOT_BILLED else self.most(ask)


def most_prompt_tokens(ask: Ask, image_tokens: int = IMAGE_TOKENS) -> int:
    """An upper bound on the tokens of an ask's prompt."""
    tokens = TOKENS_A_PROMPT
    for message in ask.messages:
        tokens += _size_bytes(message.text) + TOKENS_A_MESSAGE + image_tokens * len(message.images)
    return tokens


def prompt_bytes(ask: Ask) -> int:
    return sum(_size_bytes(message.text) for message in ask.messages)


def _size_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


@cache
def known_prices() -> Mapping[str, Price]:
    """``prices.toml``: model id -> price."""
    return msgspec.convert(_file()["models"], dict[str, Price])


def prices_date() -> str:
    """The day on which the list was right, as YYYY-MM-DD."""
    return str(_file()["date"])


def find_price(model: str, own: Mapping[str, Price] = MappingProxyType({})) -> Price | None:
    """The price of a model id: the user's own first, then the list's; a dated version costs what its model does.

    A provider's prefix, as in ``openai/gpt-4o``, is not looked through: resellers set prices of their own.
    """
    prices = {**known_prices(), **own}
    return prices.get(model) or prices.get(_DATED.sub("", model))


@cache
def _file() -> dict[str, object]:
    return tomllib.loads(files("actors").joinpath("prices.toml").read_text(encoding="utf-8"))
