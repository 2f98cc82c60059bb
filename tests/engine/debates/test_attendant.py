"""A run whose driver is asked for things from outside, with real hosts and arenas in this process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from actors.agent import AgentHost
from engine import ctl
from engine.config.recipe import Recipe
from engine.data.tasks import load_split
from engine.debates import attendant as module
from engine.debates.attendant import Attendant
from engine.debates.stage import StageResult, run_stage
from engine.live.progress import Progress
from engine.live.status import read_status
from engine.record.folder import Manifest, RunFolder
from engine.record.journal import read_journal
from protocols.errors import ConfigError, PausedError, TerminatedError
from protocols.machine import AgentFailed, Replied
from tests.engine.config.test_recipe import built
from tests.engine.in_process import InProcess

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

SLOW = (
    "models.simulated.latency_s=0.02",
    "tasks.train=16",
    "run.sync=normal",
    "run.max_open=4",
    "models.simulated.limits={max_concurrency: 2}",
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.005)
    monkeypatch.setattr(module, "TELL_S", 0.01)
    monkeypatch.setattr("engine.debates.shard.COLLECT_S", 0.01)


class Run:
    """One run under way, and those who control it."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        manifest = Manifest(
            id="r", kind="run", name="r", fingerprint=recipe.fingerprint, num_arenas=recipe.run.num_arenas,
            recipe=recipe.source, recipe_path=str(path / "r.yaml"),
        )  # fmt: skip
        self.folder = RunFolder.create(path, manifest)
        self.cluster: InProcess

    async def go(self) -> StageResult:
        tasks = load_split(self.recipe.tasks).train
        with Attendant(self.folder, progress := Progress(live=False)) as attendant:
            self.cluster = await attendant.start(InProcess.up(self.recipe))
            try:
                work = run_stage(self.cluster, self.folder, "debate", tasks, progress=progress)
                return await attendant.attend(self.cluster, work)
            finally:
                await self.cluster.stop()

    async def until(self, ready: Any) -> None:
        async with asyncio.timeout(20):
            while not ready():
                await asyncio.sleep(0.005)

    async def under_way(self) -> asyncio.Task[StageResult]:
        going = asyncio.create_task(self.go())
        await self.until(lambda: going.done() or self.replies() > 3)
        assert not going.done(), going
        return going

    async def ctl(self, verb: Any, *args: str) -> dict[str, Any]:
        return await asyncio.to_thread(ctl.give, self.path, verb, args)

    def replies(self) -> int:
        status = self.status
        return status.replies if status else 0

    @property
    def host(self) -> AgentHost:
        return self.cluster.actors["simulated"]._host

    @property
    def status(self) -> Any:
        return read_status(self.path)

    def outcomes(self) -> list[str]:
        found = [
            event for item in read_journal(self.path / "journal/debate/arena-000.sqlite") for _, event in item.events
        ]
        return [event.reply.ask_id for event in found if isinstance(event, Replied)] + [
            event.failure.ask_id for event in found if isinstance(event, AgentFailed)
        ]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        def make(*overrides: str) -> Run:
            run = Run(tmp_path / "r", built(*SLOW, *overrides))
            stack.callback(run.folder.release)
            return run

        yield make


async def test_a_paused_run_sends_nothing_lets_no_phase_run_out_and_goes_on(runs: Any) -> None:
    run = runs("protocol.deadline_s=1")
    going = await run.under_way()
    assert await run.ctl("pause") == {"run": str(run.path), "state": "paused"}
    await run.until(lambda: run.host.stats().running == 0 and len(run.outcomes()) == run.host.stats().replies)
    await run.until(lambda: run.status.state == "paused" and run.status.models["simulated"].running == 0)
    before = run.outcomes()
    await asyncio.sleep(1.2)
    assert run.outcomes() == before and not going.done()
    told = await run.ctl("set", "ada.concurrency=9", "run.max_open=20", "simulated.timeout_s=7")
    assert told["changed"] == [
        "models.simulated.limits.max_concurrency: 2 -> 9",
        "models.simulated.limits.timeout_s: not set -> 7",
        "run.max_open: 4 -> 20",
    ]
    assert run.folder.manifest.recipe["models"]["simulated"]["limits"] == {"max_concurrency": 9, "timeout_s": 7}
    assert (await run.ctl("resume"))["state"] == "running"
    result = await going
    assert len(result.closed) == 16 and not result.set_aside
    assert not [item.debate.failures for item in result.closed if item.debate.failures]
    assert len(run.outcomes()) == len(set(run.outcomes())) == 64
    assert [change.new for change in RunFolder.open(run.path).manifest.changes] == [9, 7, 20]
    assert run.status.state == "done"


async def test_a_drained_run_ends_what_is_open_and_goes_on_later(runs: Any) -> None:
    run = runs()
    going = await run.under_way()
    await run.ctl("pause")
    assert (await run.ctl("drain"))["state"] == "draining"  # also one that was paused
    with pytest.raises(PausedError, match="drained"):
        await going
    found = list(read_journal(run.path / "journal/debate/arena-000.sqlite"))
    assert all(item.graph is not None for item in found) and 4 <= len(found) < 16
    assert (run.status.state, run.status.closed, run.status.waiting) == ("stopped", len(found), 16 - len(found))
    assert len((await run.go()).closed) == 16


async def test_a_drain_can_be_taken_back(runs: Any) -> None:
    run = runs()
    going = await run.under_way()
    await run.ctl("drain")
    assert (await run.ctl("resume"))["state"] == "running"
    assert len((await going).closed) == 16


async def test_sigterm_brings_in_what_is_in_the_models(runs: Any) -> None:
    run = runs("models.simulated.latency_s=0.1", "models.simulated.latency_sigma=0")
    going = await run.under_way()
    await run.until(lambda: run.host.stats().running == 2)
    sent = [ask_id for ask_id, known in run.host._under_way.items() if known.in_model]
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(TerminatedError, match="told to end by SIGTERM"):
        await going
    left = sorted(path.name for path in (run.path / "journal/debate").iterdir())
    assert left == ["arena-000.lock", "arena-000.sqlite"]  # sealed: nothing is left to be written into it
    assert len(sent) == 2 and set(sent) <= set(run.outcomes())
    assert run.status.state == "stopped" and "SIGTERM" in run.status.reason


async def test_what_takes_too_long_is_dropped_and_asked_again(runs: Any) -> None:
    run = runs("models.simulated.latency_s=0.1", "run.drain_s=0.01")
    going = await run.under_way()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(TerminatedError):
        await going
    run.recipe = built(*SLOW, "models.simulated.latency_s=0.1", "run.max_open=30", "models.simulated.limits={}")
    assert len((await run.go()).closed) == 16 and len(run.outcomes()) == len(set(run.outcomes())) == 64


async def test_what_was_set_aside_is_debated_again_while_the_run_goes_on(runs: Any) -> None:
    run = runs("models.simulated.faults={refused: 0.6}", "tasks.train=20")
    going = await run.under_way()
    await run.until(lambda: run.status.set_aside > 0)
    aside = run.status.aside[0]
    assert aside.times == 1 and "refused" in aside.reason
    told = await run.ctl("retry", aside.task)
    assert told["debates"] == [f"debate~2/{aside.task}"]
    with pytest.raises(ConfigError, match="is open, or waits for its turn"):
        await run.ctl("retry", aside.task)
    result = await going
    assert len(result.closed) == 20
    (second,) = [item for item in result.closed if item.debate.task.id == aside.task]
    assert second.debate.id == f"debate~2/{aside.task}"
    assert not second.set_aside or second.set_aside.startswith("set aside 2 times")


async def test_what_is_no_command_stops_nothing(runs: Any) -> None:
    run = runs()
    going = await run.under_way()
    for number, text in enumerate(("{", '{"verb": "halt"}', '{"verb": "set", "args": ["models.simulated.skill=1"]}')):
        (run.path / "control" / f"{number}.command.json").write_text(text)
    with pytest.raises(ConfigError, match="no task of stage"):
        await run.ctl("retry", "nobody")
    answers = [(run.path / "control" / f"{number}.answer.json").read_text() for number in range(3)]
    assert "it is no command" in answers[0] and "it is no command" in answers[1] and "cannot be set while" in answers[2]
    assert len((await going).closed) == 16


async def test_rates_and_a_budget_can_be_set_where_they_are_counted(runs: Any) -> None:
    run = runs("models.simulated.limits={max_concurrency: 2, requests_per_minute: 6000}", "run.budget={tokens: 900000}")
    going = await run.under_way()
    await run.ctl("set", "simulated.requests_per_minute=9000", "run.budget.tokens=800000")
    assert (await run.cluster.kept.figures())["scripted:simulated"]["requests_per_minute"] == 9000
    assert run.cluster.kept._purse.budget.tokens == 800000
    await run.ctl("drain")
    with pytest.raises(PausedError):
        await going


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("run.budget.usd=3", "without a budget"),
        ("simulated.requests_per_minute=9", "was started without rates"),
        ("simulated.concurrency=-1", "limits.max_concurrency=-1 must be a number from 0 to"),
        ("run.num_arenas=3", "cannot be set while a run goes on"),
    ],
)
async def test_what_cannot_be_set_is_refused_and_changes_nothing(runs: Any, setting: str, said: str) -> None:
    run = runs("models.another={backend: scripted}", "agents.bo.model=another")
    going = await run.under_way()
    with pytest.raises(ConfigError, match=said):
        await run.ctl("set", "run.max_open=9", "another.concurrency=5", setting)
    assert run.cluster.recipe.run.max_open == 4 and not run.folder.manifest.changes
    assert run.cluster.actors["another"]._host.stats().concurrency == 1_000_000
    assert run.host._limits == run.recipe.models["simulated"].limits
    going.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going


async def test_a_run_gives_signs_of_life_while_its_models_start(runs: Any) -> None:
    run = runs()
    with Attendant(run.folder, Progress(live=False)) as attendant:
        began = run.status.at

        async def start() -> Any:
            await run.until(lambda: run.status.at > began)
            return run.status.state

        assert await attendant.start(start()) == "starting"


async def test_a_drain_between_stages_ends_the_run(runs: Any) -> None:
    run = runs()
    run.cluster = await InProcess.up(run.recipe)
    with Attendant(run.folder, Progress(live=False)) as attendant:
        going = asyncio.create_task(attendant.attend(run.cluster, asyncio.sleep(60)))
        await run.until(lambda: run.status.state == "running")
        with pytest.raises(ConfigError, match="no stage is at work that could take a task"):
            await run.ctl("retry")
        await run.ctl("drain")
        with pytest.raises(PausedError, match="drained"):
            await going
    await run.cluster.stop()


async def test_a_run_goes_on_though_nobody_can_be_told_of_it(runs: Any, caplog: pytest.LogCaptureFixture) -> None:
    run = runs()
    going = await run.under_way()
    with caplog.at_level(logging.WARNING, "moot.control"):
        (run.path / "control").rmdir()
        (run.path / "control").write_text("in the way")
        assert len((await going).closed) == 16
    told = [record.message for record in caplog.records if "cannot be controlled" in record.message]
    assert len(told) == len(set(told))  # one a reason: the folder may be looked for before the file is there
    assert len([said for said in told if "Not a directory" in said]) == 1
