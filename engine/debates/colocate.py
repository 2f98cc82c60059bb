"""Room for trainings on the devices of local models: what both take of the cluster, and who is away when."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from engine.config.colocation import local_models, way_of
from engine.config.models import Model, Way
from engine.config.recipe import Recipe
from engine.debates.hosts import Hosts
from engine.debates.resources import Machine, Need, held_to
from engine.live.progress import Progress

SLEEPER_SHARE = 0.51  # Ray counts a GPU shared by both as this for a model that sleeps: no two of them are on one
LANE_SHARE = 0.49  # and as this for a lane


def gpus_of(model: Model, way: Way | None) -> float:
    """What the cluster is asked for, for each of the model's hosts."""
    return SLEEPER_SHARE if way == "sleep" and model.place.num_gpus else model.place.num_gpus


def gpu_share_of(way: Way | None) -> float:
    """What the cluster is asked for, for each GPU of a lane."""
    return LANE_SHARE if way == "sleep" else 1.0


def lane_of(recipe: Recipe, machines: Sequence[Machine]) -> Need | None:
    """What one training takes; None: services train all who learn."""
    train = recipe.train
    if set(recipe.learners) <= set(recipe.hosted):
        return None
    gpus = gpu_share_of(way_of(recipe)) * train.gpus_per_lane
    return Need("a training", train.cpus_per_lane, gpus, held_to("trainers", machines))


@asynccontextmanager
async def room_for_trainings(recipe: Recipe, hosts: Hosts, progress: Progress) -> AsyncIterator[None]:
    """Local models are away inside. They are not called back where what is inside raises: the run ends then.

    Raises: AgentError: one cannot make room, or does not come back.
    """
    way = way_of(recipe)
    if way is None:
        yield
        return
    leaving = [host for host, model in hosts.models.items() if model in local_models(recipe)]
    told = ", ".join(leaving)
    progress.note(f"{told}: {'released' if way == 'release' else 'asleep'} while trainings run")
    await hosts.send_away(leaving, way)
    yield
    progress.note(f"{told}: {'started again' if way == 'release' else 'waking up'}")
    await hosts.call_back(way)
