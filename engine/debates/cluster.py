"""The Ray side of the engine: joining or starting a cluster, arenas as actors, the hosts of a recipe's agents."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from actors.limits.prices import NOTHING, Amount
from actors.limits.shared_gate import place_keeper
from actors.logs import log_to_file
from actors.placement import HostSpec, limits_rates
from actors.post.collector import calm_collector
from actors.post.remote import of_actor, reason
from actors.post.wire import Address, Listener, Wires
from actors.traces import Traces, check_traces
from engine.config.colocation import leaves, way_of
from engine.config.models import Way
from engine.config.named_protocol import find_protocol
from engine.config.recipe import Recipe
from engine.data.canonical import Canoniser
from engine.debates.arena import Arena, Assignment, Finished
from engine.debates.colocate import gpus_of, lane_of
from engine.debates.control import Control
from engine.debates.hosts import Hosts
from engine.debates.resources import (
    Machine,
    Need,
    check_arenas,
    check_resources,
    check_training,
    held_to,
    machines_of_cluster,
)
from engine.live.arena_stats import ArenaStats
from engine.live.metrics import Metrics
from engine.record.folder import LOCK_WAIT_S
from engine.record.mirror import place_of, restore_journal
from protocols.conversation import Player, ProtocolSettings
from protocols.errors import AgentError
from protocols.prompt import PromptSet

log = logging.getLogger("moot.cluster")

MAX_CALLS = 10_000  # concurrent calls one arena admits
RAY_TRIES = 3  # Ray gives its processes 30 s to come up, which a busy or cold machine can miss


class ArenaPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an arena must know of the recipe; travels to its process."""

    fingerprint: str
    protocol: str
    settings: ProtocolSettings
    cast: dict[str, tuple[Player, ...]]
    sync: str
    max_journal_mb: int
    mirror: str = ""
    mirror_every_s: float = 5.0
    folder: str = ""  # the run's own
    traced: str = ""  # the run's name, where spans are wanted

    @classmethod
    def of(cls, recipe: Recipe, folder: Path | None = None) -> ArenaPlan:
        return cls(
            fingerprint=recipe.fingerprint,
            protocol=recipe.protocol,
            settings=recipe.settings,
            cast=recipe.players,
            sync=recipe.run.sync,
            max_journal_mb=recipe.run.max_journal_mb,
            mirror=recipe.run.mirror,
            mirror_every_s=recipe.run.mirror_every_s,
            folder=str(folder.absolute()) if folder else "",
            traced=traced(recipe, folder),
        )


class _Seat(msgspec.Struct, frozen=True, kw_only=True):
    """A host that a run will have: one replica of a model."""

    model: str
    need: Need


def _seats(recipe: Recipe, machines: Sequence[Machine], colocate: Way | None) -> list[_Seat]:
    on_gpus, on_cpus = held_to("agents", machines), held_to("arenas", machines)
    found = []
    for name in sorted(recipe.models_in_use):
        model = recipe.models[name]
        for host in host_names(name, model.place.replicas):
            apart = on_gpus if model.place.num_gpus else on_cpus
            need = Need(host, model.place.num_cpus, gpus_of(model, colocate), apart)
            found.append(_Seat(model=name, need=need))
    return found


def _host_spec(
    recipe: Recipe, seat: _Seat, *, folder: Path | None, media: Sequence[Path], keeper: Any, may_sleep: bool
) -> HostSpec:
    model, need = recipe.models[seat.model], seat.need
    return HostSpec(
        name=need.host,
        model=seat.model,
        backend=model.backend,
        settings=model.settings,
        limits=model.limits,
        num_cpus=need.cpus,
        num_gpus=need.gpus,
        resources=dict(need.apart),
        may_sleep=may_sleep,
        folder=str(folder.absolute()) if folder else "",
        traced=traced(recipe, folder),
        media=tuple(str(path.absolute()) for path in media),
        price=recipe.price_of(seat.model),
        cache=model.cache and model.cache.absolute(),
        keeper=keeper,
        budgeted=bool(recipe.run.budget),
    )


class ArenaActor:
    """``Arena`` as a Ray actor. ``hosts``: model -> host -> its handle."""

    def __init__(
        self,
        name: str,
        journal: str,
        plan: ArenaPlan,
        prompts: PromptSet,
        models: Mapping[str, str],
        hosts: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self._name = name
        self._wires = Wires(name, lambda host, packed: of_actor(host.tell.remote(name, packed)))
        if plan.folder:
            log_to_file(Path(plan.folder) / "logs", f"arena {name}", run=Path(plan.folder).name, arena=name)
        self._traces = Traces(plan.traced) if plan.traced else None
        self._canoniser = Canoniser()  # starts nothing before the first answer that needs it
        machine = find_protocol(plan.protocol)
        mirror = place_of(plan.mirror, Path(journal)) if plan.mirror else ""
        if mirror:  # this machine may not be the one that it was written on last
            restore_journal(mirror, Path(journal), lock_wait_s=LOCK_WAIT_S)
        self._arena = Arena(
            name,
            Path(journal),
            fingerprint=plan.fingerprint,
            build=lambda: machine(plan.settings, plan.cast, prompts),
            protocol=plan.protocol,
            cast={role: tuple(player.name for player in players) for role, players in plan.cast.items()},
            deadline_s=plan.settings.deadline_s,
            models=models,
            hosts={
                model: {host: self._wires.to(host, handle).tell for host, handle in of.items()}
                for model, of in hosts.items()
            },
            sync=plan.sync,  # type: ignore[arg-type]  # checked when the recipe was read
            max_journal_mb=plan.max_journal_mb,
            lock_wait_s=LOCK_WAIT_S,
            mirror=mirror,
            mirror_every_s=plan.mirror_every_s,
            canonise=self._canoniser.canonise,
            traces=self._traces,
        )
        self._listener = Listener(lambda host, packed: self._arena.deliver(packed))

    async def address(self) -> Address | None:
        return await self._listener.address()

    async def host_lost(self, host: str) -> None:
        self._arena.host_lost(host)

    async def host_back(self, host: str, handle: Any) -> None:
        wire = self._wires.to(host, handle)
        wire.prepare()
        self._arena.host_back(host, wire.tell)

    async def still_held(self, held: Mapping[str, Sequence[str]]) -> None:
        self._arena.still_held(held)

    async def hold(self, held: bool) -> None:
        self._arena.hold(held)

    async def recover(self, among: Collection[str]) -> tuple[list[Finished], list[str]]:
        calm_collector()
        self._wires.prepare()
        return await self._arena.recover(among)

    async def open(self, assignments: Sequence[Assignment]) -> None:
        self._arena.open(assignments)

    async def deliver(self, packed: bytes) -> None:
        self._arena.deliver(packed)

    async def settle(self) -> None:
        await self._arena.settle()

    async def exchange(
        self, given: Sequence[Assignment], wait_s: float, rest_s: float
    ) -> tuple[list[Finished], ArenaStats]:
        return await self._arena.exchange(given, wait_s, rest_s)

    async def close(self) -> None:
        self._listener.close()
        await self._arena.close()
        self._wires.close()
        await asyncio.to_thread(self._canoniser.close)
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)


def host_names(model: str, replicas: int) -> list[str]:
    """Of a model's hosts: its own name, or one a replica."""
    return [model] if replicas == 1 else [f"{model}/{number}" for number in range(replicas)]


class Cluster:
    """A joined cluster with the recipe's models up. Use ``Cluster.start``, and ``stop`` in the end."""

    def __init__(
        self,
        recipe: Recipe,
        hosts: Hosts,
        *,
        ours: bool,
        keeper: Any = None,
        folder: Path | None = None,
        arenas_take: Mapping[str, float] = {},
    ) -> None:
        self.recipe = recipe
        self.hosts = hosts
        self.metrics = Metrics(run_name(recipe, folder))
        self._folder = folder
        self._arenas_take = dict(arenas_take)  # of nodes that are set apart for arenas
        self.keeper = keeper  # of the limits that hosts share; it lives as long as this does
        self.control = Control()
        self._ours = ours  # the Ray that was started here is stopped here

    @classmethod
    async def start(
        cls,
        recipe: Recipe,
        *,
        folder: Path | None = None,
        media: Sequence[Path] = (),
        spent: Amount = NOTHING,
        trains: bool = False,
        note: Callable[[str], None] = log.warning,
    ) -> Cluster:
        """Join Ray and start every model that the cast needs.

        Args:
            folder: the run's, for models that keep files there.
            media: folders of images that asks may show.
            spent: of the run's budget, before now.
            trains: whether learners are to be trained on it, too.
            note: is told when a model had to be started again.

        Raises: ConfigError: the cluster has not what the models need. AgentError: a model cannot start.
        """
        if recipe.run.traces:
            check_traces()
        ours = join_ray()
        machines, colocate = machines_of_cluster(), way_of(recipe) if trains else None
        seats = _seats(recipe, machines, colocate)
        check_resources([seat.need for seat in seats], machines)
        if trains and (lane := lane_of(recipe, machines)) is not None:
            staying = [seat.need for seat in seats if not leaves(recipe.models[seat.model], colocate)]
            check_training(lane, staying, machines)
        check_arenas(recipe.run.num_arenas, machines)
        keeper = place_keeper(recipe.run.budget, spent) if needs_keeper(recipe) else None
        specs = [
            _host_spec(recipe, seat, folder=folder, media=media, keeper=keeper, may_sleep=colocate == "sleep")
            for seat in seats
        ]
        max_restarts = {seat.model: recipe.models[seat.model].place.max_restarts for seat in seats}
        hosts = await Hosts.start(specs, max_restarts, note)
        arenas_take = held_to("arenas", machines, 1.0)
        return cls(recipe, hosts, ours=ours, keeper=keeper, folder=folder, arenas_take=arenas_take)

    async def start_arena(self, name: str, journal: Path, *, instead_of: Any = None) -> Any:
        """An arena actor on a journal, connected both ways; ``recover`` is for the caller.

        Args: instead_of: one that has died, or cannot be reached: what the hosts hold for it goes to the new one.
        """
        import ray

        if instead_of is not None:
            ray.kill(instead_of)  # whatever it may still do, it does not hold the journal any more

        models = {name: self.recipe.agents[name].model for name in self.recipe.speakers}
        hosts = {model: self.hosts.of(model) for model in models.values()}
        # Ray restarts nothing: a new process must be told of hosts and debates. Arenas are spread over the machines.
        actor = ray.remote(ArenaActor).options(
            num_cpus=0,
            resources=self._arenas_take,
            scheduling_strategy="SPREAD",
            max_concurrency=MAX_CALLS,
            max_restarts=0,
        )
        plan = ArenaPlan.of(self.recipe, self._folder)
        handle = actor.remote(name, str(journal.absolute()), plan, self.recipe.prompts, models, hosts)
        try:
            if held := await self.hosts.connect(name, handle):
                await of_actor(handle.still_held.remote(held))
        except BaseException:
            ray.kill(handle)
            raise
        return handle

    async def stop_arena(self, name: str, handle: Any) -> None:
        import ray

        try:
            await self.hosts.disconnect(name)
            await handle.close.remote()
        finally:
            ray.kill(handle)

    async def stop(self) -> None:
        import ray

        await self.hosts.stop()
        if self.keeper is not None:
            ray.kill(self.keeper)
        if self._ours:
            ray.shutdown()


def run_name(recipe: Recipe, folder: Path | None) -> str:
    """What a run is called wherever it is watched: as its folder."""
    return folder.absolute().name if folder else recipe.name


def traced(recipe: Recipe, folder: Path | None) -> str:
    """By which name spans tell of this run; "": it makes none."""
    return run_name(recipe, folder) if recipe.run.traces else ""


def needs_keeper(recipe: Recipe) -> bool:
    """Whether hosts share any limit: a budget, or an account of a service. A host alone minds its own account."""
    models = [recipe.models[name] for name in recipe.models_in_use]
    limited = sum(model.place.replicas for model in models if model.paid or limits_rates(model.limits))
    return bool(recipe.run.budget) or limited > 1


def join_ray() -> bool:
    """Join the cluster that RAY_ADDRESS names (as inside ``ray job submit``), else start one on this machine.

    Returns: whether it was started here.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS", "local")
    place = {"address": "local", "include_dashboard": False} if address == "local" else {}
    _hush_ray()
    on_term = signal.getsignal(signal.SIGTERM)  # Ray puts an exit in its place
    for left in reversed(range(RAY_TRIES if place else 1)):
        try:
            with few_processes():
                ray.init(**place, log_to_driver=False, configure_logging=False)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_term)
            break
        except Exception as err:  # a bare one is what Ray raises when its processes are not up within 30 s
            if left:
                ray.shutdown()  # the next try finds the files that this one has read into memory
                continue
            hint = "the machine is very busy, or short of memory or disk space" if place else "RAY_ADDRESS is wrong"
            raise AgentError(
                f"Ray cannot be {'started' if place else 'joined'} ({reason(err).rstrip('.')}): perhaps {hint}; "
                "go on with `moot resume` when that is mended"
            ) from err
    return address == "local"


def in_copy_of_a_job(path: Path) -> bool:
    """Whether a path lies in what ``ray job submit --working-dir`` has copied to one node, for as long as it likes."""
    return "working_dir_files" in path.absolute().parts


@contextmanager
def few_processes() -> Iterator[None]:
    """A Ray that is started here has no monitor of the autoscaler, for one machine, nor of logs, which nobody reads.

    Nor, unless Ray may tell of its use, the dashboard's server, which has nothing else to do without a dashboard. Each
    costs seconds of a small machine's CPU, and the start waits for the server; ``ray.init`` has no switch for them.
    """
    from ray._private import parameter, services

    params, server = parameter.RayParams, services.start_api_server
    parameter.RayParams = partial(params, no_monitor=True, include_log_monitor=False)
    if os.environ.get("RAY_USAGE_STATS_ENABLED") == "0":
        services.start_api_server = _start_no_server
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = params, server


def _start_no_server(
    dashboard: bool, must: bool, host: str, gcs: str, cluster: str, *others: Any, **more: Any
) -> tuple[str, None]:
    """Instead of Ray's own. Its agents look for the server's address, each second until there is one: nobody is there.

    Returns: no address to show, and no process.
    """
    from ray._private import ray_constants
    from ray._raylet import GcsClient

    place = ray_constants.DASHBOARD_ADDRESS.encode(), b"127.0.0.1:9", True, ray_constants.KV_NAMESPACE_DASHBOARD
    GcsClient(address=gcs, cluster_id=cluster).internal_kv_put(*place)
    return "", None


def _hush_ray() -> None:
    """Ray tells of processes that died on the driver's stdout, where ``--json`` promises one object: log it instead."""
    from ray._private import worker

    def to_log(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        log.info("%s: %s", data.get("pid"), " ".join(map(str, data["lines"])))

    worker.print_to_stdstream = to_log


def prepare_environment() -> None:
    """Set what Ray reads when it is first imported; nothing that the user has set is changed.

    Ray 2.60 guards a cluster with a token that it would write into the home folder, where every other cluster of this
    user would then ask for it: a cluster of ours has a token of its own.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # when it is seen that a training is over
    if "RAY_ADDRESS" not in os.environ:  # it looks for nodes that are to be taken away: there is this one
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if not {"RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & os.environ.keys():
        token = Path(tempfile.mkdtemp(prefix="moot-ray-")) / "token"
        atexit.register(shutil.rmtree, token.parent, ignore_errors=True)
        token.write_text(os.urandom(32).hex())
        token.chmod(0o600)
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # Workers must find moot where the driver does, wherever it was started.
    here = str(Path(__file__).resolve().parents[2])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != here]
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *paths])
