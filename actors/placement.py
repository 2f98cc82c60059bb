"""Where agents live: agent hosts as Ray actors, and what they need of the machine."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import msgspec

from actors.agent import DRAIN_S, AgentHost, HostStats, Limits
from actors.catalogue import BACKENDS
from actors.limits.admission import Account, Rates
from actors.limits.engine_room import EngineRoom
from actors.limits.gate import Gate, LoadHint, TellsLoad, TellsRates
from actors.limits.prices import Meter, Price
from actors.limits.queue_gate import local_gate
from actors.limits.shared_gate import PURSE, Line
from actors.logs import log_to_file
from actors.models.backend import AdapterRef, BackendInfo, KeepsAsks, KeepsFiles, Sleeps
from actors.models.images import ImageFolder, ReadsImages
from actors.models.response_cache import CacheSettings, ResponseCache
from actors.post.collector import calm_collector
from actors.post.remote import of_actor, reason
from actors.post.wire import Address, Listener, Wires
from actors.traces import Traces, provider_name
from protocols.errors import AgentError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CALLS = 10_000  # concurrent calls one host admits: above what any number of arenas keeps open
MAX_ACCOUNT_CONCURRENCY = 1_000  # asks in flight an account, all hosts together, however well it answers


class HostSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One agent host to start: its model, what it takes of the cluster, and what it costs.

    ``name``: unique in the run; of several replicas of ``model`` each has its own. ``incarnation``: how often the host
    was started again. ``held``: it sends nothing for now. ``may_sleep``: its model gives up its device when it is told
    to sleep. ``folder``: the run's own. ``media``: folders of images. ``keeper``: the handle of
    ``actors.limits.shared_gate.Keeper``, for limits that hosts share. ``budgeted``: nothing is sent that the keeper's
    purse does not allow.
    """

    name: str
    model: str = ""  # default: as the host
    incarnation: int = 0
    backend: str
    settings: msgspec.Struct
    limits: Limits = Limits()
    num_cpus: float = 0.0
    num_gpus: float = 0.0
    resources: dict[str, float] = {}  # others that the host takes, such as those of nodes set apart for it
    folder: str = ""
    traced: str = ""  # the run's name, where spans are wanted
    media: tuple[str, ...] = ()
    price: Price | None = None
    cache: CacheSettings | None = None
    keeper: Any = None
    budgeted: bool = False
    held: bool = False
    may_sleep: bool = False

    @property
    def line(self) -> str:
        """What the keeper knows the host's process by: another one's asks are not its own."""
        return f"{self.name}~{self.incarnation}"


class AgentActor:
    """``AgentHost`` as a Ray actor: the same methods, with handles where it takes functions."""

    def __init__(self, spec: HostSpec) -> None:
        self._spec = spec
        backend = BACKENDS[spec.backend].build(spec.settings)
        if isinstance(backend, ReadsImages):
            backend.read_image = ImageFolder([Path(folder) for folder in spec.media]).read
        if isinstance(backend, KeepsFiles) and spec.folder:
            backend.folder = files_of(spec)
        if isinstance(backend, Sleeps):
            backend.may_sleep = spec.may_sleep
        self._heavy = BACKENDS[spec.backend].heavy
        meter, gates = Meter(spec.price), dict[str, Gate]()
        self._line = Line(spec.line, spec.keeper, self._stop) if spec.keeper is not None else None
        self._account: tuple[str, Rates] | None = None
        self._own_account: Account | None = None
        if self._line is not None and spec.budgeted:
            bought = backend.bought if isinstance(backend, KeepsAsks) else None
            gates["budget"] = self._line.gate(PURSE, meter, bought)
        rates = rates_of(spec.limits)
        if isinstance(backend, TellsRates) or limits_rates(spec.limits):
            account = str(getattr(backend, "account", "") or account_of(spec))
            if self._line is None:  # nobody shares it: an ask costs no word with the keeper
                self._own_account = Account(rates, time.monotonic())
                gates["admission"] = local_gate(account, self._own_account, meter)
            else:
                self._account = (account, rates)
                gates["admission"] = self._line.gate(account, meter)
        self._room = EngineRoom(_room_for(spec, spec.limits))
        if isinstance(backend, TellsLoad):
            gates["engine"] = local_gate(f"{spec.name} engine", self._room, meter, LoadHint)
        cache = ResponseCache(spec.cache, spec.backend, spec.settings) if spec.cache else None
        self._host = AgentHost(spec.name, backend, spec.limits, gates, meter, cache, traces_of(spec))
        self._host.hold(spec.held)
        self._listener = Listener(self._host.tell)
        self._wires = Wires(spec.name, lambda arena, packed: of_actor(arena.deliver.remote(packed)))

    def _stop(self, reason: str) -> None:
        self._host.stop(reason)

    async def start(self) -> BackendInfo:
        if folder := self._spec.folder:
            log_to_file(Path(folder) / "logs", f"host {self._spec.name}", run=Path(folder).name, host=self._spec.name)
        if self._line is not None and self._account is not None:
            await self._line.open(*self._account)
        info = await self._host.start()
        if not self._heavy:  # an engine makes garbage of its own
            calm_collector()
        return info

    async def connect(self, arena: str, handle: Any) -> list[str]:
        wire = self._wires.to(arena, handle)
        wire.prepare()
        return self._host.connect(arena, wire.tell)  # what the one before had under way is taken back

    async def address(self) -> Address | None:
        return await self._listener.address()

    async def disconnect(self, arena: str) -> None:
        await self._host.disconnect(arena)
        self._wires.drop(arena)

    async def tell(self, arena: str, packed: bytes) -> None:
        self._host.tell(arena, packed)

    async def hold(self, held: bool) -> None:
        self._host.hold(held)

    async def sleep(self) -> None:
        await self._host.sleep()

    async def wake(self) -> None:
        await self._host.wake()

    async def retune(self, limits: Limits) -> None:
        """Raises: ConfigError: rates for an account that nobody counts."""
        if self._line is not None and self._account is not None:
            await self._line.retune(self._account[0], rates_of(limits))
        elif self._own_account is not None:
            self._own_account.retune(rates_of(limits), time.monotonic())
        elif limits_rates(limits):
            raise ConfigError(
                f"model {self._spec.model or self._spec.name!r} was started without rates, so nobody counts its "
                "requests; stop the run, set them in its recipe.yaml, then go on with `moot resume RUN`"
            )
        self._room.resize(_room_for(self._spec, limits))
        self._host.retune(limits)

    async def watch(self) -> None:
        await self._host.watch()

    async def prepare(self, adapter: AdapterRef) -> None:
        await self._host.prepare(adapter)

    async def discard(self, adapter: AdapterRef) -> None:
        await self._host.discard(adapter)

    async def publish(self, adapter: AdapterRef) -> str:
        return await self._host.publish(adapter)

    async def stats(self) -> HostStats:
        if self._line is not None:
            await self._line.refresh()
        return self._host.stats()

    async def halt(self, reason: str, within_s: float = DRAIN_S) -> None:
        await self._host.halt(reason, within_s)

    async def close(self) -> None:
        self._listener.close()
        await self._host.close()
        self._wires.close()
        if self._line is not None:
            await self._line.close()


def _room_for(spec: HostSpec, limits: Limits) -> int:
    return limits.max_concurrency or int(getattr(spec.settings, "max_concurrency", MAX_CALLS))


def limits_rates(limits: Limits) -> bool:
    """Whether a model's limits name rates of its account."""
    return bool(limits.requests_per_minute or limits.tokens_per_minute)


def rates_of(limits: Limits) -> Rates:
    return Rates(
        max_concurrency=max(MAX_ACCOUNT_CONCURRENCY, limits.max_concurrency),
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
    )


def files_of(spec: HostSpec) -> Path:
    """Where a model keeps its files in the run's folder; whatever its name is, the path stays inside."""
    return Path(spec.folder) / "models" / quote(spec.name, safe="").replace(".", "%2E")


def traces_of(spec: HostSpec) -> Traces | None:
    if not spec.traced:
        return None
    address = urlsplit(str(getattr(spec.settings, "url", ""))).netloc
    model = str(getattr(spec.settings, "model", ""))
    return Traces(spec.traced, provider=provider_name(spec.backend, address), model=model)


def account_of(spec: HostSpec) -> str:
    """Whose limits a host's asks count against: providers count by account and model, and a backend may know better."""
    return f"{spec.backend}:{getattr(spec.settings, 'model', '') or spec.model or spec.name}"


def env_of(spec: HostSpec) -> dict[str, str]:
    """Environment variables that the host's process must start with."""
    backend = BACKENDS[spec.backend]
    env = dict(backend.env(spec.settings))
    if backend.heavy and not spec.num_gpus:
        env["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"  # or Ray shows it all GPUs, and counts none of them
    return env


def place(spec: HostSpec) -> Any:
    """Create the actor. It starts its model when ``start`` is called.

    Ray restarts nothing: a new process knows of no arena, adapter or ask, so whoever watches the host places another
    one and tells it.
    """
    import ray

    env = env_of(spec)
    options: dict[str, Any] = {
        "num_cpus": spec.num_cpus,
        "num_gpus": spec.num_gpus,
        "resources": spec.resources,
        "max_concurrency": MAX_CALLS,
        "max_restarts": 0,
        "max_task_retries": 0,
        "name": None,
    }
    if env:
        options["runtime_env"] = {"env_vars": env}
    return ray.remote(AgentActor).options(**options).remote(spec)


async def start_hosts(specs: Sequence[HostSpec]) -> dict[str, Any]:
    """Place and start every host, side by side.

    Returns: host name -> actor handle. Raises: AgentError: one cannot start; those already up are stopped.
    """
    import asyncio

    handles = {spec.name: place(spec) for spec in specs}
    results = await asyncio.gather(*(_started(handle) for handle in handles.values()), return_exceptions=True)
    for spec, result in zip(specs, results, strict=True):
        if isinstance(result, BaseException):
            await stop_hosts(handles)
            raise AgentError(f"model {spec.model or spec.name!r} cannot start: {reason(result)}") from result
    return handles


async def _started(handle: Any) -> BackendInfo:
    info: BackendInfo = await handle.start.remote()
    return info


async def stop_hosts(handles: dict[str, Any]) -> None:
    """Close every model, then end its process."""
    import asyncio

    import ray

    async def stop(handle: Any) -> None:
        closing: Awaitable[None] = handle.close.remote()
        try:
            await asyncio.wait_for(closing, timeout=20.0)
        except (TimeoutError, ray.exceptions.RayError) as err:
            import logging

            logging.getLogger("moot.placement").info("an agent host did not close by itself: %r", err)
        ray.kill(handle)

    await asyncio.gather(*(stop(handle) for handle in handles.values()))
