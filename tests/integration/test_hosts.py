"""Models whose processes are killed under a run: started again, their asks asked again, their adapters with them."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from actors.models.backend import AdapterRef
from actors.models.scripted import ScriptedSettings
from actors.placement import HostSpec
from engine.config.recipe_file import load_recipe
from engine.data.tasks import load_split
from engine.debates.cluster import Cluster
from engine.debates.hosts import Hosts
from engine.debates.stage import run_stage
from engine.live.progress import Progress
from engine.run import create, make_manifest
from tests.integration.command import Moot, Process, RunOnDisk, check_clean, run_here, timeless, waited

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

HOSTS = 3
RECIPE = """
name: society
seed: 3
tasks: {source: arithmetic, level: mixed10, train: 60, test: 0}
models:
  twin: {backend: scripted, latency_s: 0.3, replicas: 2, limits: {max_concurrency: 8}}
  lone: {backend: scripted, latency_s: 0.3, limits: {max_concurrency: 8}}
agents:
  ada: {model: twin}
  bo: {model: twin}
  cy: {model: lone}
protocol: {name: society, rounds: 2}
cast: {generator: [ada, bo, cy]}
run: {num_arenas: 2}
"""


def kill_host(process: Process, number: int) -> None:
    """One of the models' processes, once all are up, in the order in which they were started."""
    assert process.running_when(lambda: len(process.members("ray::AgentActor")) == HOSTS, 60.0), process.stderr
    os.kill(sorted(process.members("ray::AgentActor"))[number], signal.SIGKILL)
    assert waited(lambda: len(process.members("ray::AgentActor")) < HOSTS, 30.0)


def test_a_run_whose_models_are_killed_ends_like_an_untouched_one(moot: Moot, local_ray: Any) -> None:
    whole, run = RunOnDisk(moot.folder / "untouched"), RunOnDisk(moot.folder / "killed")
    at_once = [f"models.{model}.latency_s=0" for model in ("twin", "lone")]
    run_here(moot.folder / "recipe.yaml", whole.path, *at_once)
    process = moot.start_until(
        *("run", "recipe.yaml", "--run-dir", "killed", "--json"),
        ready=lambda process: len(run.outcomes("debate")) > 20,
    )
    for number in range(3):  # each model, a replica among them, one after another
        kill_host(process, number)
    assert process.wait() == 0, process.stderr
    check_clean(process.stderr)
    assert process.stderr.count("went down, starting it again") == 3
    outcomes = run.outcomes("debate")
    assert len(outcomes) == len(set(outcomes)) and sorted(outcomes) == sorted(whole.outcomes("debate"))
    assert {key: timeless(debate) for key, debate in run.debates("debate").items()} == {
        key: timeless(debate) for key, debate in whole.debates("debate").items()
    }


class Watched:
    """Hosts under watch, as they are while a stage runs, and what whoever watches is told."""

    def __init__(self, hosts: Hosts, notes: list[str]) -> None:
        self.hosts, self.notes = hosts, notes
        self.watching = asyncio.ensure_future(hosts.watch())

    async def kill(self, host: str) -> Any:
        """Returns: the handle of the process that took its place."""
        import ray

        dead = self.hosts.of("m")[host]
        ray.kill(dead)
        async with asyncio.timeout(60):
            while (now := self.hosts.of("m").get(host)) is dead:
                await asyncio.sleep(0.05)
        return now


async def watched(max_restarts: int) -> Watched:
    notes: list[str] = []
    specs = [
        HostSpec(name=f"m/{number}", model="m", backend="scripted", settings=ScriptedSettings()) for number in range(2)
    ]
    return Watched(await Hosts.start(specs, {"m": max_restarts}, notes.append), notes)


def test_a_host_that_is_started_again_has_its_adapters_and_one_too_many_deaths_leave_its_replicas(
    local_ray: Any,
) -> None:
    first = AdapterRef(name="ada@r-v1", agent="ada", path="somewhere")

    async def play() -> None:
        this = await watched(max_restarts=1)
        await this.hosts.publish("m", first)
        again = await this.kill("m/0")
        assert (await again.stats.remote()).adapters == {"ada": "ada@r-v1"}
        assert await this.kill("m/0") is None
        assert list(this.hosts.of("m")) == ["m/1"] and not this.watching.done()
        assert "given up; 1 of its replicas go on" in this.notes[-1]
        second = AdapterRef(name="ada@r-v2", agent="ada", path="elsewhere")
        await this.hosts.publish("m", second)  # to those that are left
        stats = await this.hosts.stats()
        assert {name: item.adapters for name, item in stats.items()} == {"m/1": {"ada": "ada@r-v2"}}
        again = await this.kill("m/1")
        assert (await again.stats.remote()).adapters == {"ada": "ada@r-v2"}
        assert await this.kill("m/1") is None
        with pytest.raises(ExceptionGroup) as caught:
            await this.watching
        assert "model 'm/1' went down 2 times" in str(caught.value.exceptions[0])
        assert "go on with `moot resume RUN`" in str(caught.value.exceptions[0])
        await this.hosts.stop()

    asyncio.run(play())


def test_hosts_that_are_sent_away_for_a_while_lose_nothing_that_is_asked_or_published(
    moot: Moot, local_ray: Any
) -> None:
    at_once = [f"models.{model}.latency_s=0.05" for model in ("twin", "lone")]
    recipe = load_recipe(moot.folder / "recipe.yaml", [*at_once, "tasks.train=40"])
    tasks = load_split(recipe.tasks).train
    path = moot.folder / "away"
    folder = create(path, make_manifest("away", "run", recipe, moot.folder / "recipe.yaml", None))
    run, notes = RunOnDisk(path), list[str]()
    first = AdapterRef(name="cy@r-v1", agent="cy", path="somewhere")

    async def play() -> None:
        cluster = await Cluster.start(recipe, folder=path, note=notes.append)
        hosts, names = cluster.hosts, list(cluster.hosts.models)
        stage = asyncio.ensure_future(run_stage(cluster, folder, "debate", tasks, progress=Progress(live=False)))
        while run.num_events("debate") <= 20:
            await asyncio.sleep(0.02)
        await hosts.send_away(names, "release")
        assert await hosts.stats() == {}
        await asyncio.sleep(1.5)  # the stage would be over by now
        assert not stage.done()
        publishing = asyncio.ensure_future(hosts.publish("lone", first))
        await asyncio.sleep(0.2)
        assert not publishing.done()
        await hosts.call_back("release")
        await publishing
        result = await stage
        assert len(result.closed) == len(tasks) and result.set_aside == []
        assert (await hosts.stats())["lone"].adapters == {"cy": "cy@r-v1"}
        assert set(hosts.restarts.values()) == {0}
        await cluster.stop()

    try:
        asyncio.run(play())
    finally:
        folder.release()
    asked = run.replies("debate")
    assert len(asked) == len(set(asked)) == 6 * len(tasks)
    assert notes == []


class Nowhere:
    """The handle of an actor that the cluster has no room for."""

    class start:  # noqa: N801  # a method of a handle
        @staticmethod
        def remote() -> asyncio.Future[None]:
            return asyncio.get_running_loop().create_future()


def test_a_host_without_a_place_delays_no_replica_and_is_given_up(
    local_ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = AdapterRef(name="ada@r-v1", agent="ada", path="somewhere")
    monkeypatch.setattr("engine.debates.hosts.START_S", 3.0)

    async def play() -> None:
        this = await watched(max_restarts=1)
        monkeypatch.setattr("engine.debates.hosts.place", lambda spec: Nowhere())
        monkeypatch.setattr(
            "ray.kill", lambda handle, kill=local_ray.kill: None if isinstance(handle, Nowhere) else kill(handle)
        )
        killing = asyncio.ensure_future(this.kill("m/0"))
        while not this.notes:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(2.5):  # m/0 is being started, in vain
            await this.hosts.publish("m", first)
        assert not killing.done()
        assert await killing is None
        assert "it did not start within 3 s" in this.notes[-1]
        assert {name: item.adapters for name, item in (await this.hosts.stats()).items()} == {
            "m/1": {"ada": "ada@r-v1"}
        }
        this.watching.cancel()
        await this.hosts.stop()

    asyncio.run(play())
