"""Whether what learners come to can be put into the models that they speak through: said before anything starts."""

from __future__ import annotations

from collections import defaultdict

from actors.catalogue import BACKENDS
from engine.config.recipe import Recipe
from protocols.errors import ConfigError


def check_servable(recipe: Recipe) -> None:
    """Raises: ConfigError: a model takes no adapters, too few of them, or of a lower rank than is trained.

    Where whole models are trained (``sft.method: full``): a learner cannot be given one.
    """
    learners = [agent for agent in recipe.learners if agent not in recipe.hosted]
    if recipe.sft.method == "full":
        _check_whole_models(recipe, learners)
        return
    speaking = defaultdict(list)
    for agent in learners:
        speaking[recipe.agents[agent].model].append(agent)
    for name, agents in speaking.items():
        _check_adapters(recipe, name, agents)


def _check_adapters(recipe: Recipe, name: str, agents: list[str]) -> None:
    backend, settings = recipe.models[name].backend, recipe.models[name].settings
    if (room := BACKENDS[backend].adapters(settings)) < len(agents):
        learn = f"{', '.join(agents)} learn{'s' if len(agents) == 1 else ''} through it"
        serves = f"at most {room} adapters" if room else "no adapters"
        raise ConfigError(
            f"models.{name} ({backend}) serves {serves}, and {learn}; {_way_out(recipe, name, len(agents))}"
        )
    rank = getattr(settings, "max_rank", recipe.sft.rank)
    if rank < recipe.sft.rank:
        raise ConfigError(
            f"sft.rank={recipe.sft.rank} is above models.{name}.max_rank={rank}, so what is learned could not be "
            f"served; set models.{name}.max_rank={recipe.sft.rank}"
        )


def _way_out(recipe: Recipe, name: str, number: int) -> str:
    settings = recipe.models[name].settings
    fields, address = settings.__struct_fields__, getattr(settings, "base_url", "")
    if "max_adapters" in fields:
        return f"set models.{name}.max_adapters={number}"
    if "lora" in fields and "openai.com" not in address:  # a server of one's own
        return (
            "set lora: true for a vLLM server, with train.base_model: ./FOLDER, or train what is on record afterwards: "
            "moot train RUN train.base_model=./FOLDER"
        )
    if "finetune" in fields:
        return f"have the service train them with models.{name}.finetune, or set lora: true for a vLLM server"
    return "give them a model of backend vllm or transformers"


def _check_whole_models(recipe: Recipe, learners: list[str]) -> None:
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
    sharing = {other for other in recipe.speakers if recipe.agents[other].model == name}
    if others := sorted(sharing - {agent}):
        raise ConfigError(
            f"agents that share a model cannot each have all of its weights, and {agent} shares models.{name} with "
            f"{', '.join(others)}; set sft.method: lora, or give {agent} a model of its own"
        )
    if not BACKENDS[recipe.models[name].backend].heavy:
        raise ConfigError(
            f"models.{name} ({recipe.models[name].backend}) cannot be started with the weights that {agent} learned; "
            "give it a model of backend vllm or transformers"
        )
