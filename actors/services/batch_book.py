"""The book of a batched model: what is gathered, what was submitted, what is waited for. Pure: time is an argument.

A row is one ask, known by its key. ``decide`` says which steps to take; whoever takes one tells the book what came of
it. A row that was submitted stays known until its result was handed out: asked again, by a resumed run too, it waits
for the batch it is in.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable

import msgspec

from protocols.bounds import UP, check_above_0, check_bounds

MAX_LINGERS = 10  # a batch leaves when its oldest ask has waited so many times ``linger_s``, though more keep coming
MAX_OPEN = 10_000  # batches of one model; services allow far fewer
CANCEL_GRACE_S = 3600.0  # that a cancelled batch may take to end; services name ten minutes


class BatchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How asks become batches. The times suit services that answer within minutes, and must within a day."""

    max_requests: int = 10_000  # of one batch; services take 50,000 (OpenAI) or 100,000 (Anthropic)
    linger_s: float = 20.0  # a batch leaves when it is full, or when nothing new has come for so long
    poll_s: float = 15.0  # before a batch is first looked at; doubles each time ...
    max_poll_s: float = 300.0  # ... up to this
    max_wait_s: float = 86_400.0  # then it is cancelled, and what is not done asked again
    max_open: int = 32  # batches in flight at once

    def __post_init__(self) -> None:
        check_bounds(self, max_requests=(1, UP), max_open=(1, MAX_OPEN))
        if not (0 <= self.linger_s < float("inf") and 0 < self.poll_s <= self.max_poll_s < float("inf")):
            raise ValueError(
                f"linger_s={self.linger_s:g}, poll_s={self.poll_s:g} and max_poll_s={self.max_poll_s:g} must be "
                "numbers from 0 up, poll_s above 0 and not above max_poll_s"
            )
        check_above_0(self, "max_wait_s")

    @property
    def limits(self) -> dict[str, float]:
        """What a model's limits are in batches: a try lasts from gathering to the end of a batch that was cancelled."""
        return {"timeout_s": self.max_wait_s + 2 * CANCEL_GRACE_S}


class Submit(msgspec.Struct, frozen=True):
    """A batch may leave. Answer with ``submitted``, ``unsent``, ``unsure`` or ``forget``."""

    tag: str
    keys: tuple[str, ...]


class Find(msgspec.Struct, frozen=True):
    """Nobody knows whether this batch was submitted. Answer with ``submitted``, ``unsent`` or ``unsure``."""

    tag: str
    keys: tuple[str, ...]
    at_s: float


class Look(msgspec.Struct, frozen=True):
    """Answer with ``still``, ``over``, ``unsent`` or ``forget``."""

    tag: str
    id: str
    keys: tuple[str, ...]


class Cancel(msgspec.Struct, frozen=True):
    """Answer with ``cancelled``."""

    tag: str
    id: str


Step = Submit | Find | Look | Cancel


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as the ledger has it. ``id`` is the service's, "" where it was never recorded."""

    tag: str
    keys: tuple[str, ...]
    at_s: float
    id: str = ""


class _Row(msgspec.Struct):
    size_bytes: int
    at_s: float


class _Batch(msgspec.Struct, kw_only=True):
    tag: str
    keys: tuple[str, ...]
    at_s: float
    id: str = ""
    waiting: dict[str, int] = msgspec.field(default_factory=dict)  # keys that somebody waits for -> bytes
    busy: bool = False  # a step is being taken
    next_s: float = 0.0
    poll_s: float = 0.0
    overdue: bool = False  # to be cancelled
    cancelled_s: float | None = None


class Book:
    """See the module. Times are seconds since the epoch, as a book outlives its process.

    Args:
        max_bytes: of one batch.
        new_tag: a name for a batch that no other has.
        known: batches that were submitted, or may have been, in the order of their submission.
    """

    def __init__(
        self, settings: BatchSettings, *, max_bytes: int, new_tag: Callable[[], str], known: Iterable[Known] = ()
    ) -> None:
        self._settings, self._max_bytes, self._new_tag = settings, max_bytes, new_tag
        self._gathered: OrderedDict[str, _Row] = OrderedDict()
        self._gathered_bytes, self._newest_s = 0, 0.0
        self._batches: dict[str, _Batch] = {}
        self._holder: dict[str, str] = {}  # key -> tag of the batch that it was last submitted in
        self._room = settings.max_requests  # rows that the account takes at once, as far as is known
        self._pause_s, self._paused_until_s = 0.0, 0.0
        for item in known:
            self._keep(_Batch(tag=item.tag, keys=item.keys, at_s=item.at_s, id=item.id), item.at_s + settings.poll_s)

    def _keep(self, batch: _Batch, next_s: float) -> None:
        batch.next_s, batch.poll_s = next_s, self._settings.poll_s
        self._batches[batch.tag] = batch
        self._holder.update(dict.fromkeys(batch.keys, batch.tag))

    # what the asks do

    def ask(self, key: str, size_bytes: int, now_s: float) -> None:
        """Somebody waits for this row from now on."""
        if (tag := self._holder.get(key)) is None:
            self._gather(key, size_bytes, now_s)
            return
        batch = self._batches[tag]
        if not batch.waiting and batch.id:
            batch.next_s, batch.poll_s = now_s, self._settings.poll_s  # it may have been over for long
        batch.waiting[key] = size_bytes

    def _gather(self, key: str, size_bytes: int, now_s: float) -> None:
        self._gathered[key] = _Row(size_bytes, now_s)
        self._gathered_bytes += size_bytes
        self._newest_s = now_s

    def drop(self, key: str) -> None:
        """Nobody waits for it any more. Not submitted, it never will be; submitted, it stays known."""
        if (row := self._gathered.pop(key, None)) is not None:
            self._gathered_bytes -= row.size_bytes
        elif (tag := self._holder.get(key)) is not None:
            self._batches[tag].waiting.pop(key, None)

    def leave_out(self, tag: str, key: str) -> None:
        """A row of a batch that is about to leave cannot go with it."""
        batch = self._batches[tag]
        batch.keys = tuple(other for other in batch.keys if other != key)
        batch.waiting.pop(key, None)
        self._release(key, tag)

    # what to do

    def decide(self, now_s: float) -> list[Step]:
        """Steps to take now; each is named once."""
        steps: list[Step] = []
        for batch in self._batches.values():
            if batch.waiting and not batch.busy and now_s >= batch.next_s:
                batch.busy = True
                steps.append(self._step(batch))
        while now_s >= self._leaving_s():
            steps.append(self._close(now_s))
        return steps

    def _step(self, batch: _Batch) -> Step:
        if not batch.id:
            return Find(batch.tag, batch.keys, batch.at_s)
        if batch.overdue and batch.cancelled_s is None:
            return Cancel(batch.tag, batch.id)
        return Look(batch.tag, batch.id, batch.keys)

    def _leaving_s(self) -> float:
        """When the next batch may leave; infinity while none may."""
        if not self._gathered or self.num_open >= self._settings.max_open:
            return float("inf")
        if len(self._gathered) >= self._room or self._gathered_bytes >= self._max_bytes:
            return self._paused_until_s
        oldest_s, linger_s = next(iter(self._gathered.values())).at_s, self._settings.linger_s
        return max(self._paused_until_s, min(self._newest_s + linger_s, oldest_s + MAX_LINGERS * linger_s))

    def _close(self, now_s: float) -> Submit:
        """Put as many of the gathered as fit into a batch; at least one."""
        keys: list[str] = []
        left_bytes = self._max_bytes
        for key, row in itertools.islice(self._gathered.items(), self._room):
            left_bytes -= row.size_bytes
            if keys and left_bytes < 0:
                break
            keys.append(key)
        sizes = {key: self._gathered.pop(key).size_bytes for key in keys}
        self._gathered_bytes -= sum(sizes.values())
        batch = _Batch(tag=self._new_tag(), keys=tuple(keys), at_s=now_s, waiting=sizes, busy=True)
        self._keep(batch, now_s)
        return Submit(batch.tag, batch.keys)

    def next_s(self) -> float | None:
        """When to ask ``decide`` again though nothing happened; None: never."""
        looks = [batch.next_s for batch in self._batches.values() if batch.waiting and not batch.busy]
        due = min([*looks, self._leaving_s()])
        return due if due < float("inf") else None

    # what came of it

    def submitted(self, tag: str, batch_id: str, now_s: float) -> None:
        """The batch is at the service, under this id."""
        batch = self._batches[tag]
        batch.id, batch.busy, batch.next_s = batch_id, False, now_s + batch.poll_s

    def unsure(self, tag: str, now_s: float) -> None:
        """No answer came: it may be at the service, which is asked a little later."""
        self._later(self._batches[tag], now_s)

    def unsent(self, tag: str, now_s: float, *, full: bool = False, pause_s: float = 0.0) -> None:
        """It is certainly not at the service. What is waited for is gathered again, and leaves after a pause.

        Args:
            pause_s: that the service asks for, at least.
            full: the account takes no more at the moment. With nothing of ours under way it was the batch itself that
                is too large: the next are half as large, and grow again with every batch that is over.
        """
        waiting = self._batches[tag].waiting
        self._remove(tag)
        for key, size_bytes in reversed(waiting.items()):
            self._gather(key, size_bytes, now_s)
            self._gathered.move_to_end(key, last=False)
        settings = self._settings
        self._pause_s = min(settings.max_poll_s, max(settings.poll_s, 2 * self._pause_s))
        self._paused_until_s = now_s + max(self._pause_s, pause_s)
        if full and not self.num_open:
            self._room = max(1, len(waiting) // 2)

    def still(self, tag: str, now_s: float) -> frozenset[str]:
        """It is not over yet, or could not be looked at.

        Returns: the keys that were waited for, if it is given up: it was cancelled, and has not ended even so.
        """
        batch = self._batches[tag]
        if batch.cancelled_s is not None and now_s >= batch.cancelled_s + CANCEL_GRACE_S:
            return self.forget(tag)
        self._later(batch, now_s)
        if batch.id and batch.cancelled_s is None and now_s >= batch.at_s + self._settings.max_wait_s:
            batch.overdue, batch.next_s = True, now_s
        return frozenset()

    def cancelled(self, tag: str, now_s: float) -> None:
        """The service was told to end it; what it has done by then is a result all the same."""
        batch = self._batches[tag]
        batch.cancelled_s, batch.poll_s = now_s, self._settings.poll_s
        self._later(batch, now_s)

    def over(self, tag: str) -> frozenset[str]:
        """Its results are here. Returns: the keys that are waited for, each handed out now; others stay known."""
        batch = self._batches[tag]
        handed = frozenset(batch.waiting)
        batch.waiting, batch.busy = {}, False
        for key in handed:
            self._release(key, tag)
        if not any(self._holder.get(key) == tag for key in batch.keys):
            del self._batches[tag]
        self._room = min(self._settings.max_requests, 2 * self._room)
        self._pause_s = self._paused_until_s = 0.0
        return handed

    def forget(self, tag: str) -> frozenset[str]:
        """Nothing can come of it any more. Returns: the keys that were waited for; asked again, they are new."""
        handed = frozenset(self._batches[tag].waiting)
        self._remove(tag)
        return handed

    def _later(self, batch: _Batch, now_s: float) -> None:
        batch.busy, batch.next_s = False, now_s + batch.poll_s
        batch.poll_s = min(2 * batch.poll_s, self._settings.max_poll_s)

    def _remove(self, tag: str) -> None:
        for key in self._batches.pop(tag).keys:
            self._release(key, tag)

    def _release(self, key: str, tag: str) -> None:
        if self._holder.get(key) == tag:  # it may have been submitted again since
            del self._holder[key]

    # figures

    @property
    def num_gathered(self) -> int:
        return len(self._gathered)

    @property
    def num_open(self) -> int:
        """Batches that somebody waits for."""
        return sum(bool(batch.waiting) for batch in self._batches.values())

    def holds(self, key: str) -> bool:
        """Whether a row is in a batch that was submitted, for sure."""
        return (tag := self._holder.get(key)) is not None and bool(self._batches[tag].id)

    def waiting(self, tag: str) -> frozenset[str]:
        """The keys of a batch that somebody waits for."""
        return frozenset(self._batches[tag].waiting)
