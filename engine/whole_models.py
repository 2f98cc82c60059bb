"""Whole models in place of adapters: whose model may be started again with other weights."""

from __future__ import annotations

from actors.catalogue import BACKENDS
from engine.recipe import Recipe
from protocols.errors import ConfigError


def check_whole_models(recipe: Recipe) -> None:
    """Raises: ConfigError: a loop is to train whole models (``sft.method: full``), and cannot give one to a learner."""
    learners = [agent for agent in recipe.learners if agent not in recipe.hosted]
    if recipe.sft.method != "full" or not learners:
        return
    if recipe.loop.preferences:
        raise ConfigError(
            "sft.method=full: preferences are learned on top of an adapter; set loop.preferences: false, or "
            "sft.method: lora"
        )
    if recipe.run.colocate == "sleep":
        raise ConfigError(
            "sft.method=full: a model that sleeps wakes up with the weights it had; set run.colocate: release"
        )
    for agent in learners:
        check_own_model(recipe, agent)


def check_own_model(recipe: Recipe, agent: str) -> None:
    """Raises: ConfigError: others speak through the agent's model, or it is none that runs here."""
    name = recipe.agents[agent].model
    speakers = {other for names in recipe.cast.values() for other in names if recipe.agents[other].model == name}
    if others := sorted(speakers - {agent}):
        raise ConfigError(
            f"agents that share a model cannot each have all of its weights, and {agent} shares models.{name} with "
            f"{', '.join(others)}; set sft.method: lora, or give {agent} a model of its own"
        )
    if not BACKENDS[recipe.models[name].backend].heavy:
        raise ConfigError(
            f"models.{name} ({recipe.models[name].backend}) cannot be started with the weights that {agent} learned; "
            "give it a model of backend vllm or transformers"
        )
