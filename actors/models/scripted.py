"""A simulated model: deterministic replies, a latency distribution, seeded faults. For tests and runs at scale.

It works an arithmetic question out with a set skill, and where it is shown the answers of others it follows their
majority with a set conformity. Of a question with lettered choices it takes one, the same whenever the skill is there,
right or not; to anything else it answers with a number: beyond sums it knows nothing, and accuracy means nothing. What
it says depends on the ask's id and the seed alone, so neither order nor timing nor a restart changes a reply.
"""

from __future__ import annotations

import ast
import asyncio
import random
import re
import time
from collections import Counter
from contextlib import suppress
from functools import lru_cache

import msgspec

from actors.models.backend import AdapterRef, BackendInfo
from protocols.answer import parse_answer
from protocols.bounds import UP, check_bounds
from protocols.errors import FailureKind, ReplyError
from protocols.machine import derive_seed
from protocols.message import Ask, Reply, Usage

_EXPRESSION = re.compile(r"[0-9]+(?: *[-+*] *[0-9]+)+")
_CHOICE = re.compile(r"^\(([A-Z])\) ", re.MULTILINE)  # as questions show their choices
_LOOKED_AT = 8  # sums of a message, the last ones
_MAX_CHARS = 1000
_MAX_TERMS = 40


class ScriptedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The simulated model's character."""

    skill: float = 0.6  # chance that it works a question out rightly
    skill_per_adapter: float = 0.1  # added where an adapter speaks: training that always helps
    conformity: float = 0.5  # chance that it follows the majority of the answers it is shown
    unparsed: float = 0.02  # chance that a reply names no answer
    latency_s: float = 0.0  # median of a lognormal distribution
    latency_sigma: float = 0.5  # of the logarithm; 1.0 is a heavy tail
    faults: dict[FailureKind, float] = {}  # kind -> chance per try
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("skill", "conformity", "unparsed"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name):g} must be between 0 and 1")
        if sum(self.faults.values()) > 1.0 or any(chance < 0 for chance in self.faults.values()):
            raise ValueError(f"faults={self.faults} must be chances that add up to at most 1")
        check_bounds(self, latency_s=(0, UP), latency_sigma=(0, UP))


class ScriptedBackend:
    """See the module. Faults are drawn per ask and try, so a retry may succeed."""

    def __init__(self, settings: ScriptedSettings) -> None:
        self._settings = settings
        self._tries: Counter[str] = Counter()
        self._adapters: set[str] = set()

    async def start(self) -> BackendInfo:
        return BackendInfo(
            model="scripted",
            context_tokens=1_000_000,
            max_concurrency=1_000_000,
            takes_images=True,
            takes_adapters=True,
        )

    async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
        began = time.monotonic()
        if self._settings.latency_s or self._settings.faults:
            await self._suffer(ask)
        text = self._say(ask, random.Random(derive_seed(self._settings.seed, ask.id)), trained=adapter is not None)
        prompt_words = sum(len(message.text.split()) for message in ask.messages)
        return Reply(
            ask_id=ask.id,
            text=text,
            model="scripted",
            adapter=adapter.name if adapter else "",
            usage=Usage(prompt_words, len(text.split())),
            latency_s=time.monotonic() - began,
        )

    async def _suffer(self, ask: Ask) -> None:
        """What a try meets with on its way."""
        self._tries[ask.id] += 1
        draw = random.Random(derive_seed(self._settings.seed, ask.id, self._tries[ask.id]))
        if self._settings.latency_s:
            await asyncio.sleep(self._settings.latency_s * draw.lognormvariate(0.0, self._settings.latency_sigma))
        self._maybe_fail(ask, draw.random())
        del self._tries[ask.id]

    def _maybe_fail(self, ask: Ask, drawn: float) -> None:
        for kind, chance in self._settings.faults.items():
            drawn -= chance
            if drawn < 0:
                raise ReplyError(f"scripted {kind} fault for {ask.id}", kind)

    def _say(self, ask: Ask, draw: random.Random, *, trained: bool) -> str:
        prompt = ask.messages[-1].text
        if letters := _CHOICE.findall(prompt):
            return self._choose(prompt, letters, draw)
        truth = _truth([message.text for message in reversed(ask.messages)])
        skill = self._settings.skill + (self._settings.skill_per_adapter if trained else 0.0)
        answer = truth if draw.random() < skill else truth + draw.choice((-10, -2, -1, 1, 2, 10))
        follows = draw.random() < self._settings.conformity
        said = (_majority(prompt) if follows else "") or str(answer)
        if draw.random() < self._settings.unparsed:
            return "I would rather not say."
        return f"Worked out step by step, this comes to \\boxed{{{said}}}."

    def _choose(self, prompt: str, letters: list[str], draw: random.Random) -> str:
        asked = "".join(line for line in prompt.splitlines() if _CHOICE.match(line))
        usual = letters[derive_seed(0, asked) % len(letters)]
        said = usual if draw.random() < self._settings.skill else draw.choice(letters)
        return f"All considered, the answer is ({said})."

    async def load_adapter(self, adapter: AdapterRef) -> None:
        self._adapters.add(adapter.name)

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        self._adapters.discard(adapter.name)

    def metrics(self) -> dict[str, float]:
        return {}

    async def close(self) -> None:
        return None


def _majority(prompt: str) -> str:
    """The answer that most of those shown give; "" where none is shown."""
    shown = [parse_answer(line, "boxed").value for line in prompt.splitlines() if "\\boxed{" in line]
    others = Counter(value for value in shown if value is not None)
    return others.most_common(1)[0][0] if others else ""


def _truth(chat: list[str]) -> int:
    """The value of the last sum in the chat, newest message first; without one, a number that is this prompt's own."""
    for text in chat:
        for expression in reversed(_EXPRESSION.findall(text)[-_LOOKED_AT:]):
            with suppress(ValueError):  # too long a one
                return evaluate(expression)
    return derive_seed(0, chat[0]) % 100


@lru_cache(maxsize=1 << 16)  # everybody in a debate works the same sum out, and thousands debate at once
def evaluate(expression: str) -> int:
    """The value of a sum of products of whole numbers, such as ``3 + 4*5 - 6``.

    Raises: ValueError: anything else, or more than forty terms or a thousand characters.
    """
    if len(expression) > _MAX_CHARS or not re.fullmatch(r"[-+*0-9 ]+", expression):  # before Python's parser sees it
        raise ValueError(f"{expression[:60]!r} is not a sum of products of whole numbers")
    if len(re.findall(r"[-+*]", expression)) >= _MAX_TERMS:
        raise ValueError(f"{expression[:60]!r}... has more than {_MAX_TERMS} terms")
    try:
        return _value(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError as err:
        raise ValueError(f"{expression!r} is not an expression") from err


def _value(node: ast.expr) -> int:
    """Not a closure of ``evaluate``: one that calls itself is garbage that reference counts do not free."""
    match node:
        case ast.Constant(value=int() as number):
            return number
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left) - _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left) * _value(right)
    raise ValueError(f"{ast.unparse(node)!r} is not a sum of products of whole numbers")
