"""The Ray side of the engine: joining or starting a cluster, arenas as actors, the hosts of a recipe's agents."""

from __future__ import annotations

import asyncio
import atexit
import os
import shutil
import tempfile
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.placement import HostSpec, limits_rates, reason, start_hosts, stop_hosts
from actors.prices import NOTHING, Amount
from actors.shared_gate import place_keeper
from engine.arena import Arena, ArenaStats, Assignment, Finished
from engine.canonical import Canoniser
from engine.named_protocol import find_protocol
from engine.recipe import Recipe
from protocols.conversation import Player, ProtocolSettings
from protocols.errors import AgentError, ConfigError, MootError
from protocols.prompt import PromptSet

MAX_CALLS = 10_000  # concurrent calls one arena admits
LOCK_WAIT_S = 30.0  # an arena outlives a killed driver for a moment, and holds its journal until then
RAY_TRIES = 3  # Ray gives its processes 30 s to come up, which a busy or cold machine can miss


class ArenaPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What an arena must know of the recipe; travels to its process."""

    fingerprint: str
    protocol: str
    settings: ProtocolSettings
    cast: dict[str, tuple[Player, ...]]
    sync: str
    max_journal_mb: int

    @classmethod
    def of(cls, recipe: Recipe) -> ArenaPlan:
        return cls(
            fingerprint=recipe.fingerprint,
            protocol=recipe.protocol,
            settings=recipe.settings,
            cast=recipe.players,
            sync=recipe.run.sync,
            max_journal_mb=recipe.run.max_journal_mb,
        )


class ArenaActor:
    """``Arena`` as a Ray actor. ``hosts``: agent name -> (host name, its handle)."""

    def __init__(
        self, name: str, journal: str, plan: ArenaPlan, prompts: PromptSet, hosts: Mapping[str, tuple[str, Any]]
    ) -> None:
        tells = {}
        for host, handle in dict(hosts.values()).items():

            async def tell(packed: bytes, handle: Any = handle) -> None:
                await handle.tell.remote(name, packed)

            tells[host] = tell
        self._canoniser = Canoniser()  # starts nothing before the first answer that needs it
        machine = find_protocol(plan.protocol)
        self._arena = Arena(
            name,
            Path(journal),
            fingerprint=plan.fingerprint,
            build=lambda: machine(plan.settings, plan.cast, prompts),
            protocol=plan.protocol,
            cast={role: tuple(player.name for player in players) for role, players in plan.cast.items()},
            deadline_s=plan.settings.deadline_s,
            hosts={agent: tells[host] for agent, (host, _) in hosts.items()},
            sync=plan.sync,  # type: ignore[arg-type]  # checked when the recipe was read
            max_journal_mb=plan.max_journal_mb,
            lock_wait_s=LOCK_WAIT_S,
            canonise=self._canoniser.canonise,
        )

    async def recover(self) -> tuple[list[Finished], list[str]]:
        return await self._arena.recover()

    async def open(self, assignments: Sequence[Assignment]) -> None:
        self._arena.open(assignments)

    async def deliver(self, packed: bytes) -> None:
        self._arena.deliver(packed)

    async def settle(self) -> None:
        await self._arena.settle()

    async def collect(self, wait_s: float) -> tuple[list[Finished], ArenaStats]:
        return await self._arena.collect(wait_s)

    async def close(self) -> None:
        await self._arena.close()
        await asyncio.to_thread(self._canoniser.close)


class Cluster:
    """A joined cluster with the recipe's models up. Use ``Cluster.start``, and ``stop`` in the end."""

    def __init__(self, recipe: Recipe, hosts: dict[str, Any], *, ours: bool, keeper: Any = None) -> None:
        self.recipe = recipe
        self.hosts = hosts  # model name -> actor handle
        self.keeper = keeper  # of the limits that hosts share; it lives as long as this does
        self._ours = ours  # the Ray that was started here is stopped here

    @classmethod
    async def start(
        cls, recipe: Recipe, *, folder: Path | None = None, media: Sequence[Path] = (), spent: Amount = NOTHING
    ) -> Cluster:
        """Join Ray and start every model that the cast needs.

        Args:
            folder: the run's, for models that keep files there.
            media: folders of images that asks may show.
            spent: of the run's budget, before now.

        Raises: ConfigError: the cluster has not what the models need. AgentError: a model cannot start.
        """
        ours = join_ray()
        check_resources(recipe)
        keeper = place_keeper(recipe.run.budget, spent) if needs_keeper(recipe) else None
        specs = [
            HostSpec(
                name=name,
                backend=model.backend,
                settings=model.settings,
                limits=model.limits,
                num_cpus=model.num_cpus,
                num_gpus=model.num_gpus,
                folder=str(folder.absolute()) if folder else "",
                media=tuple(str(folder.absolute()) for folder in media),
                price=recipe.price_of(name),
                keeper=keeper,
                budgeted=bool(recipe.run.budget),
            )
            for name, model in recipe.models.items()
            if name in models_in_use(recipe)
        ]
        return cls(recipe, await start_hosts(specs), ours=ours, keeper=keeper)

    async def halt(self, reason: str) -> None:
        """Send no ask any more; returns once those in the models are over and the arenas have their outcomes."""
        await asyncio.gather(*(of_actor(host.halt.remote(reason)) for host in self.hosts.values()))

    async def start_arena(self, name: str, journal: Path) -> Any:
        """An arena actor on a journal, connected both ways; ``recover`` is for the caller."""
        import ray

        hosts = {agent: (spec.model, self.hosts[spec.model]) for agent, spec in self._agents().items()}
        actor = ray.remote(ArenaActor).options(num_cpus=0, max_concurrency=MAX_CALLS, max_restarts=0)
        plan = ArenaPlan.of(self.recipe)
        handle = actor.remote(name, str(journal.absolute()), plan, self.recipe.prompts, hosts)
        for host in self.hosts.values():
            await host.connect.remote(name, handle)
        return handle

    async def stop_arena(self, name: str, handle: Any) -> None:
        import ray

        for host in self.hosts.values():
            await host.disconnect.remote(name)
        await handle.close.remote()
        ray.kill(handle)

    async def stop(self) -> None:
        import ray

        await stop_hosts(self.hosts)
        if self.keeper is not None:
            ray.kill(self.keeper)
        if self._ours:
            ray.shutdown()

    def _agents(self) -> dict[str, Any]:
        cast = {name for names in self.recipe.cast.values() for name in names}
        return {name: agent for name, agent in self.recipe.agents.items() if name in cast}


def models_in_use(recipe: Recipe) -> set[str]:
    """The models that somebody in the cast speaks through."""
    return {recipe.agents[name].model for names in recipe.cast.values() for name in names}


def needs_keeper(recipe: Recipe) -> bool:
    """Whether hosts share any limit: a budget, or an account of a service."""
    models = [recipe.models[name] for name in models_in_use(recipe)]
    return bool(recipe.run.budget) or any(model.paid or limits_rates(model.limits) for model in models)


async def of_actor(call: Awaitable[Any]) -> Any:
    """Await a call, Ray's errors put into one sentence."""
    import ray

    try:
        return await call
    except ray.exceptions.RayActorError as err:
        raise AgentError(f"a process of the run died: {reason(err)}; go on with `moot resume`") from err
    except ray.exceptions.RayTaskError as err:
        cause = err.cause
        if isinstance(cause, MootError):
            raise cause from err
        raise


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
    for left in reversed(range(RAY_TRIES if place else 1)):
        try:
            ray.init(**place, log_to_driver=False, configure_logging=False)
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


def prepare_environment() -> None:
    """Set what Ray reads when it is first imported; nothing that the user has set is changed.

    Ray 2.60 guards a cluster with a token that it would write into the home folder, where every other cluster of this
    user would then ask for it: a cluster of ours has a token of its own.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    if not {"RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & os.environ.keys():
        token = Path(tempfile.mkdtemp(prefix="moot-ray-")) / "token"
        atexit.register(shutil.rmtree, token.parent, ignore_errors=True)
        token.write_text(os.urandom(32).hex())
        token.chmod(0o600)
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # Workers must find moot where the driver does, wherever it was started.
    here = str(Path(__file__).resolve().parent.parent)
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != here]
    os.environ["PYTHONPATH"] = os.pathsep.join([here, *paths])


def check_resources(recipe: Recipe) -> None:
    """Raises: ConfigError: the cluster lacks CPUs or GPUs that the models need together, with what is missing."""
    import ray

    have = ray.cluster_resources()
    models = [recipe.models[name] for name in models_in_use(recipe)]
    for key, need in (("CPU", sum(m.num_cpus for m in models)), ("GPU", sum(m.num_gpus for m in models))):
        if need > have.get(key, 0.0):
            raise ConfigError(
                f"the models need {need:g} {key}s, the cluster has {have.get(key, 0.0):g}; "
                f"lower models.*.num_{key.lower()}s or add machines"
            )
