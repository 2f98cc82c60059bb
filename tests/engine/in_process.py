"""A cluster without Ray: the real arenas, hosts and limits, as actors of this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actors.limits.prices import NOTHING
from actors.limits.shared_gate import Keeper
from actors.placement import AgentActor, HostSpec
from engine.config.recipe import Recipe
from engine.debates.cluster import ArenaActor, ArenaPlan, Cluster, host_names, needs_keeper
from engine.debates.hosts import Hosts
from tests.actors.remote import Remote


class InProcess(Cluster):
    """Use ``up``. ``actors``: the hosts, by name."""

    actors: dict[str, AgentActor]
    kept: Keeper | None

    @classmethod
    async def up(cls, recipe: Recipe) -> InProcess:
        kept = Keeper(recipe.run.budget, NOTHING) if needs_keeper(recipe) else None
        keeper = Remote(kept) if kept else None
        specs = [
            HostSpec(
                name=host,
                model=name,
                backend=recipe.models[name].backend,
                settings=recipe.models[name].settings,
                limits=recipe.models[name].limits,
                price=recipe.price_of(name),
                keeper=keeper,
                budgeted=bool(recipe.run.budget),
            )
            for name in sorted(recipe.models_in_use)
            for host in host_names(name, recipe.models[name].place.replicas)
        ]
        actors = {spec.name: AgentActor(spec) for spec in specs}
        for actor in actors.values():
            actor._listener.host = "127.0.0.1"  # no Ray is asked
            await actor.start()
        hosts = Hosts(specs, {name: Remote(actor) for name, actor in actors.items()}, {}, print)
        cluster = cls(recipe, hosts, ours=False, keeper=keeper)
        cluster.actors, cluster.kept = actors, kept
        return cluster

    async def start_arena(self, name: str, journal: Path, *, instead_of: Any = None) -> Any:
        models = {name: agent.model for name, agent in self.recipe.agents.items()}
        hosts = {model: self.hosts.of(model) for model in models.values()}
        arena = ArenaActor(name, str(journal), ArenaPlan.of(self.recipe), self.recipe.prompts, models, hosts)
        arena._listener.host = "127.0.0.1"
        await self.hosts.connect(name, handle := Remote(arena))
        return handle

    async def stop_arena(self, name: str, handle: Any) -> None:
        await self.hosts.disconnect(name)
        await handle.close.remote()

    async def stop(self) -> None:
        for actor in self.actors.values():
            await actor.close()
