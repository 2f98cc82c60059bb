"""What a service of batches is to a batched model, and what the endpoints of all services share.

Nothing is remembered here. Rows come as keys and request bodies; a result is the answer that the service would have
given to that request by itself, or the error that kept it from one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Iterator, Sequence
from typing import Literal, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from actors.services.api_backend import ApiBackend
from actors.services.http_client import Answer
from protocols.errors import ReplyError

log = logging.getLogger("moot.batch")

MAX_RESULTS_BYTES = 2**30  # of one batch
SKEW_S = 300.0  # that a service's clock may differ from ours
CALL_S = 900.0  # that a call may take
PAGE = 100  # batches a page of a list

Row = tuple[str, bytes]
Result = Answer | ReplyError
State = Literal["running", "full", "gone"]
"""``full``: it was never begun, as the account has too much in its queue. ``gone``: the service does not know it."""

T = TypeVar("T")


class BatchService(Protocol):
    """One service's endpoints. Every method raises ReplyError where it is refused or not answered."""

    max_bytes: int  # of one batch

    async def check(self) -> None:
        """Whether there are batches at all, which costs nothing."""
        ...

    async def upload(self, rows: Sequence[Row]) -> bytes:
        """Bring the rows there, which costs nothing yet. Returns: what ``create`` sends."""
        ...

    async def create(self, tag: str, uploaded: bytes) -> str:
        """Start the batch. Returns: its id. ReplyError of kind ``transient``: it may have been started all the same."""
        ...

    async def find(self, tag: str, keys: Sequence[str], at_s: float, known: Container[str]) -> str:
        """The id of a batch whose ``create`` had no answer; "" where there is none, for sure.

        Args:
            at_s: when it was meant to be made, seconds since the epoch.
            known: ids of other batches of ours.
        """
        ...

    async def look(self, batch_id: str, keys: Sequence[str]) -> State | dict[str, Result]:
        """How far it is. Returns: its results by key once it is over; of a row without one, nothing is known."""
        ...

    async def cancel(self, batch_id: str) -> None:
        """Ask it to end with what is done."""
        ...


class Endpoint:
    """Calls to one service with its key."""

    def __init__(self, backend: ApiBackend, url: str) -> None:
        self.backend, self.url = backend, url

    async def call(self, method: str, url: str, body: bytes | None = None, content_type: str = "") -> Answer:
        try:
            async with asyncio.timeout(CALL_S):
                answer = await self.backend.client.call(
                    method, url, body, content_type=content_type, max_bytes=MAX_RESULTS_BYTES
                )
        except TimeoutError as err:
            raise ReplyError(f"{url}: no answer within {CALL_S:g} s") from err
        if answer.status != 404 and not 200 <= answer.status < 300:
            raise self.backend.refusal(answer)
        return answer

    async def struct(self, kind: type[T], method: str, url: str, body: bytes | None = None, **how: str) -> T:
        answer = await self.call(method, url, body, **how)
        if answer.status == 404:
            raise ReplyError(f"{url}: status 404: this service has no batches at this address", "malformed")
        return decoded_as(kind, url, answer)

    async def check(self) -> None:
        await self.struct(dict, "GET", f"{self.url}?limit=1")

    def batch_url(self, batch_id: str, page: str = "") -> str:
        return f"{self.url}/{quote(batch_id, safe='')}{page}"

    async def cancel(self, batch_id: str) -> None:
        await self.call("POST", self.batch_url(batch_id, "/cancel"), b"{}")


def decoded_as(kind: type[T], url: str, answer: Answer) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (ValueError, RecursionError) as err:
        raise ReplyError(f"{url}: an answer that cannot be read: {str(err)[:200]}") from err


def lines(kind: type[T], body: bytes) -> Iterator[T]:
    """The lines that can be read: a row whose line cannot has no result, and is asked again."""
    decoder = msgspec.json.Decoder(kind)
    for line in body.splitlines():
        try:
            yield decoder.decode(line)
        except (ValueError, RecursionError) as err:
            log.warning("a line of a batch's results cannot be read: %s", type(err).__name__)  # a reply may be in it
