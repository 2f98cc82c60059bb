"""Which model a recipe trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from actors.catalogue import BACKENDS
from actors.models.backend import EMBEDDED
from engine.config.recipe import Recipe
from protocols.errors import ConfigError


def base_model_of(recipe: Recipe, tell: Callable[[str], None] | None = None) -> str:
    """The folder of the model that the learners speak through, which is the one to train; "" where services train all.

    Raises: ConfigError: they speak through several, or through one that cannot be trained here.
    """
    base = _named(recipe)
    if base != EMBEDDED:
        return base
    from actors.local.embedded import embedded_model_path

    return str(embedded_model_path(tell))


def check_base(recipe: Recipe) -> None:
    """Raises: ConfigError: as ``base_model_of``; or there is no such folder: a loop knows its base by its files."""
    base = _named(recipe)
    if base in ("", EMBEDDED) or Path(base).is_dir():
        return
    served = {recipe.models[recipe.agents[name].model].backend for name in recipe.learners} == {"openai"}
    if served and not recipe.train.base_model:
        raise ConfigError(
            f"the model that learns is {base!r} of a server; set train.base_model to the folder of what that serves"
        )
    raise ConfigError(
        f"the model to train is {base!r}, and there is no such folder; one on the Hugging Face hub is downloaded with "
        f"`hf download {base} --local-dir FOLDER`, and named by ./FOLDER as its agents' model"
    )


def _named(recipe: Recipe) -> str:
    """As the recipe has it."""
    if recipe.train.base_model:
        return recipe.train.base_model
    if not recipe.learners:
        raise ConfigError(f"protocol {recipe.protocol!r} names nobody to train; set train.agents to those who learn")
    models = {recipe.agents[agent].model for agent in recipe.learners if agent not in recipe.hosted}
    if not models:
        return ""
    bases = {str(getattr(recipe.models[name].settings, "model", "")) for name in models}
    if len(bases) != 1 or "" in bases:
        backends = ", ".join(sorted({recipe.models[name].backend for name in models}))
        trainable = ", ".join(name for name, spec in BACKENDS.items() if "model" in spec.settings.__struct_fields__)
        raise ConfigError(
            f"train.agents speak through {', '.join(sorted(models))} ({backends}); learners must share one model of a "
            f"backend that can be trained ({trainable}), or train.base_model must name a model folder; of backend "
            "openai, finetune has the service train them"
        )
    return bases.pop()
