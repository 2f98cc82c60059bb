"""The one interface behind which every model stands, and what it tells about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from protocols.errors import ReplyError
from protocols.message import Ask, Reply

EMBEDDED = "embedded"  # what recipes call the model that comes with moot; see ``actors.local.embedded``


class AdapterRef(msgspec.Struct, frozen=True, kw_only=True):
    """One version of one agent's adapter. ``name`` never names two sets of weights: ``<agent>@<run>-v<version>``."""

    name: str
    agent: str
    path: str  # folder in PEFT layout; of a hosted version, where its record lies
    model: str = ""  # a hosted version: a whole model, by the id that its service gave it
    whole: bool = False  # a whole model in ``path``, which its host was started with in the place of its own


class BackendInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a started backend is. ``max_concurrency``: asks it can usefully hold at once."""

    model: str
    context_tokens: int
    max_concurrency: int
    takes_images: bool = False
    takes_adapters: bool = False


@runtime_checkable
class KeepsFiles(Protocol):
    """A backend that keeps files beside the run. The host sets ``folder`` before ``start``: the model's own folder in
    the run's, which whoever writes first has to make; None where there is no run."""

    folder: Path | None


@runtime_checkable
class KeepsAsks(Protocol):
    """A backend whose asks outlive it: asked again, by a later process too, they are found again and paid for once. So
    nobody waits for them for long when a run stops."""

    def bought(self, ask: Ask) -> bool:
        """Whether it was sent before and its reply not yet handed out."""
        ...


@runtime_checkable
class Sleeps(Protocol):
    """A backend that can give up its device for a while and keep its model in main memory. The host sets ``may_sleep``
    before ``start``, and sees to it that nothing is asked or loaded from ``sleep`` until ``wake`` has returned."""

    may_sleep: bool

    async def sleep(self) -> None:
        """Returns once the device is free. What was cached of earlier prompts is gone."""
        ...

    async def wake(self) -> None:
        """Take the device again, as it was; adapters that were loaded still are."""
        ...


class Backend(Protocol):
    """A model that answers asks. One backend serves any number of agents; their adapters differ, the base does not.

    A backend holds no retry, limit or queue of its own beyond what its engine needs: the agent actor owns those.
    """

    async def start(self) -> BackendInfo:
        """Load or connect. Raises: AgentError: it cannot, with the reason and the way out."""
        ...

    async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
        """One reply. Cancelling the caller must free what the ask holds.

        Raises: ReplyError: with the kind that says whether another try can help.
        """
        ...

    async def load_adapter(self, adapter: AdapterRef) -> None:
        """Make an adapter servable; returns once it is. Raises: AgentError: it is not for this model, or not there."""
        ...

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        """Free an adapter that no ask will use again."""
        ...

    def metrics(self) -> dict[str, float]:
        """Figures of the engine since its start, by name."""
        ...

    async def close(self) -> None:
        """Stop and free everything; safe to call twice."""
        ...


def check_room(ask: Ask, model: str, context_tokens: int, prompt_tokens: int) -> None:
    """Raises: ReplyError (context_too_long): a prompt of so many tokens leaves no room for the reply."""
    room = context_tokens - prompt_tokens
    if ask.sampling.max_tokens > room:
        raise ReplyError(
            f"ask {ask.id} has {prompt_tokens} prompt tokens and max_tokens={ask.sampling.max_tokens}, but {model} "
            f"holds {context_tokens} in all; shorten the prompt or set max_tokens <= {max(room, 0)}",
            "context_too_long",
        )
