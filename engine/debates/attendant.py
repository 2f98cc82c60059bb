"""The driver's side of control: commands left in the run's folder are carried out, its status is kept fresh.

One run has one attendant, as long as its driver lives. What a stage must know of it is in ``engine.debates.control``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from actors.agent import HostStats
from actors.limits.shared_gate import of_keeper
from engine.config.recipe import Recipe
from engine.debates.changes import changed, keep_changes
from engine.debates.cluster import Cluster
from engine.debates.control import DRAINED, TERMINATED, Control
from engine.debates.desk import Desk
from engine.live.command_files import Answer, Command, Inbox, Taken
from engine.live.progress import Progress
from engine.live.status import Aside, ModelStatus, Status, write_status
from engine.record.attempts import split_id
from engine.record.folder import RunFolder
from protocols.errors import ConfigError, MootError, PausedError, TerminatedError
from protocols.message import Usage

log = logging.getLogger("moot.control")

POLL_S = 0.25  # between looks for commands
TELL_S = 1.0  # between two of status.json
ACT_S = 20.0  # that a command may take: a process that cannot be reached must not keep its commander waiting
STATS_S = 2.0  # that hosts are waited for; what they said last is told again
WINDOW_S = 10.0  # over which rates are taken
GRACE_S = 10.0  # beyond run.drain_s, for the journals to be written and let go
SHOWN_ASIDE = 20

T = TypeVar("T")


class Attendant:
    """Use as a context manager around the run, and ``attend`` around what needs its cluster.

    Raises: ConfigError: the run's folder cannot be written.
    """

    def __init__(self, folder: RunFolder, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        self._inbox = Inbox(folder.path)
        self._cluster: Cluster | None = None
        self._hosts: dict[str, HostStats] = {}
        self._rates = _Rates()
        self._obeying = asyncio.Lock()
        self._stop_by = float("inf")  # monotonic; then the run ends, whatever is still on its way
        self._said: set[str] = set()  # warnings, once each

    def __enter__(self) -> Attendant:
        try:
            self._inbox.open()
            write_status(self._folder.path, self._status())
        except OSError as err:
            raise ConfigError(f"{self._folder.path}: cannot be written: {err.strerror}") from err
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._try(partial(self._inbox.refuse, "the run has ended"))
        last = self._status("stopped" if kind else "done", str(err) or "interrupted" if kind else "")
        self._try(partial(write_status, self._folder.path, last))

    async def start(self, starting: Coroutine[Any, Any, T]) -> T:
        """Give signs of life while the cluster starts: a large model takes minutes."""
        telling = asyncio.ensure_future(self._tell())
        try:
            return await starting
        finally:
            telling.cancel()
            await asyncio.wait([telling])

    async def attend(self, cluster: Cluster, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, and whatever commands and signals say meanwhile.

        Raises: PausedError: the run was drained, or told to end, while no stage was at work; what the work raises.
        """
        self._cluster = cluster
        working = asyncio.ensure_future(work)
        helpers = [asyncio.ensure_future(helper) for helper in (self._obey(), self._tell(), self._end())]
        loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        try:
            await asyncio.wait([working, *helpers], return_when=asyncio.FIRST_COMPLETED)
            await self._obeying.acquire()  # a command that was taken is answered, and no other is taken
            await self._refresh()
        finally:
            for task in (working, *helpers):
                task.cancel()
            await asyncio.gather(working, *helpers, return_exceptions=True)
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)
        if working.cancelled():
            for helper in helpers:
                if not helper.cancelled():
                    helper.result()  # raises: a helper ends for no other reason
        return working.result()

    @property
    def _control(self) -> Control:
        assert self._cluster is not None  # while something is attended
        return self._cluster.control

    def _terminate(self) -> None:
        """SIGTERM: bring in what is in the models, then end. The second one ends at once, as Ctrl-C does."""
        if self._control.stopping:
            signal.raise_signal(signal.SIGINT)
            return
        assert self._cluster is not None
        drain_s = self._cluster.recipe.run.drain_s
        self._progress.note(f"SIGTERM: what is in the models may come in for {drain_s:g} s; another one ends at once")
        self._control.stopping, self._stop_by = True, time.monotonic() + drain_s + GRACE_S

    async def _end(self) -> None:
        """Raises: PausedError: the run is to end and no stage can say so, as none is at work, or one takes too long."""
        while True:
            if self._control.desk is None:
                self._control.check()
                if self._control.draining:
                    raise PausedError(DRAINED)
            if time.monotonic() > self._stop_by:
                raise TerminatedError(TERMINATED)
            await asyncio.sleep(POLL_S)

    async def _obey(self) -> None:
        while True:
            async with self._obeying:
                for taken in await asyncio.to_thread(self._try, self._inbox.take) or ():
                    answer = await self._answer(taken)
                    await asyncio.to_thread(self._inbox.answer, taken, answer)
            await asyncio.sleep(POLL_S)

    async def _answer(self, taken: Taken) -> Answer:
        if isinstance(command := taken.command, str):
            return Answer(error=command)
        told = " ".join((command.verb, *command.args))
        try:
            async with asyncio.timeout(ACT_S):
                done = await self._act(command)
        except TimeoutError:
            return Answer(error=f"{told}: a process of the run has not answered within {ACT_S:g} s; give it once more")
        except MootError as err:
            return Answer(error=str(err))
        self._progress.note(f"ctl: {told}")
        return Answer(done={"state": self._control.state} | done)

    async def _act(self, command: Command) -> dict[str, Any]:
        control, cluster = self._control, self._cluster
        assert cluster is not None
        if control.stopping:
            raise ConfigError("the run is stopping; give it again when it was resumed")
        match command.verb:
            case "pause":
                control.paused = True
                await cluster.hosts.hold(True)
            case "resume":
                control.paused = control.draining = False
                await cluster.hosts.hold(False)
            case "drain":
                control.paused, control.draining = False, True
                await cluster.hosts.hold(False)  # what is open can only end when it is answered
            case "retry":
                return {"debates": self._again(command.args)}
            case "set":
                return {"changed": await self._set(cluster, command.args)}
        return {}

    def _again(self, tasks: Sequence[str]) -> list[str]:
        if (desk := self._control.desk) is None:
            raise ConfigError(
                f"no stage is at work that could take a task; give `moot ctl retry {self._folder.path}` when the run "
                "has ended, then resume it"
            )
        return desk.again(tasks)

    async def _set(self, cluster: Cluster, settings: Sequence[str]) -> list[str]:
        """Change settings of the run under way, on all its hosts; on record before it is answered."""
        old, where = cluster.recipe, Path(self._folder.manifest.recipe_path).parent
        new, found = changed(old, settings, where)
        if new.run.budget != old.run.budget and not old.run.budget:
            raise ConfigError(
                "the run was started without a budget, so nobody counts what it spends; stop it, then go on with "
                "`moot resume RUN --budget usd=Y`"
            )
        await _retune(cluster, old, new)
        if new.run.budget != old.run.budget:
            await of_keeper(partial(cluster.keeper.set_budget.remote, new.run.budget))
        cluster.recipe = new
        keep_changes(self._folder, new, found)
        return [str(item) for item in found]

    async def _tell(self) -> None:
        while True:
            await self._refresh(TELL_S / 2)  # somebody else may have asked the hosts just now
            await asyncio.to_thread(self._try, partial(write_status, self._folder.path, self._status()))
            await asyncio.sleep(TELL_S)

    async def _refresh(self, max_age_s: float = 0.0) -> None:
        if self._cluster is None:
            return
        try:
            async with asyncio.timeout(STATS_S):
                self._hosts = await self._cluster.hosts.stats(max_age_s)
        except TimeoutError:
            log.info("the hosts have not said how they stand within %g s", STATS_S)

    def _try(self, write: Callable[[], T]) -> T | None:
        """A run goes on though its folder has no room for its status; it is told once, not every second."""
        try:
            return write()
        except OSError as err:
            text = f"{self._folder.path}: the run cannot be controlled or told of: {err}"
            if text not in self._said:
                self._said.add(text)
                log.warning(text)
            return None

    def _status(self, state: str = "", reason: str = "") -> Status:
        state = state or (self._cluster.control.state if self._cluster else "starting")
        manifest, desk = self._folder.manifest, self._cluster.control.latest if self._cluster else None
        models = _by_model(self._cluster, self._hosts) if self._cluster else {}
        tokens = sum((host.usage for host in self._hosts.values()), Usage()).total_tokens
        replies = sum(host.replies for host in self._hosts.values())
        replies_per_s, tokens_per_s = self._rates.of(time.monotonic(), replies, tokens)
        return Status(
            run=str(self._folder.path),
            id=manifest.id,
            kind=manifest.kind,
            state=state,
            reason=reason,
            host=os.uname().nodename,
            pid=os.getpid(),
            at=time.time(),
            started_at=manifest.started_at,
            replies=replies,
            replies_per_s=replies_per_s,
            tokens=tokens,
            tokens_per_s=tokens_per_s,
            cost_usd=round(sum(host.cost_usd for host in self._hosts.values()), 6),
            models=models,
            changes=tuple(str(change) for change in manifest.changes),
            **(_of_stage(desk) if desk else {}),
        )


async def _retune(cluster: Cluster, old: Recipe, new: Recipe) -> None:
    """All models, or none. Raises: ConfigError: one cannot be."""
    done: list[str] = []
    try:
        for model in sorted(new.models_in_use):
            if new.models[model].limits != old.models[model].limits:
                await cluster.hosts.retune(model, new.models[model].limits)
                done.append(model)
    except ConfigError:
        for model in done:
            await cluster.hosts.retune(model, old.models[model].limits)
        raise


def _by_model(cluster: Cluster, hosts: dict[str, HostStats]) -> dict[str, ModelStatus]:
    of: dict[str, list[HostStats]] = defaultdict(list)
    models = cluster.hosts.models
    for name, stats in hosts.items():
        of[models.get(name, name)].append(stats)
    return {
        model: ModelStatus(
            hosts=len(found),
            queued=sum(stats.queued for stats in found),
            running=sum(stats.running for stats in found),
            concurrency=sum(stats.concurrency for stats in found),
            replies=sum(stats.replies for stats in found),
            failures=sum(sum(stats.failures.values()) for stats in found),
            cost_usd=round(sum(stats.cost_usd for stats in found), 6),
        )
        for model, found in sorted(of.items())
    }


def _of_stage(desk: Desk) -> dict[str, Any]:
    aside = desk.set_aside
    shown = (
        Aside(task=item.debate.task.id, times=split_id(item.debate.id)[2], reason=item.set_aside)
        for item in aside[-SHOWN_ASIDE:]
    )
    return {
        "stage": desk.stage,
        "total": len(desk),
        "closed": desk.num_done,
        "open": len(desk) - desk.num_done - len(desk.waiting),
        "waiting": len(desk.waiting),
        "set_aside": len(aside),
        "aside": tuple(shown),
    }


class _Rates:
    """Replies and tokens a second, over the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def of(self, now_s: float, replies: int, tokens: int) -> tuple[float, float]:
        if self._seen and replies < self._seen[-1][1]:
            self._seen.clear()  # a host that was started again counts anew
        self._seen.append((now_s, replies, tokens))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()
        began, first_replies, first_tokens = self._seen[0]
        passed = now_s - began
        if passed <= 0:
            return 0.0, 0.0
        return round((replies - first_replies) / passed, 2), round((tokens - first_tokens) / passed, 2)
