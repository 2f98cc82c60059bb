"""A recipe as it is written: read from YAML, overridden key by key, and checked as a whole."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.limits.prices import Price
from engine.config.models import read_model
from engine.config.named_protocol import find_protocol
from engine.config.recipe import Agent, LoopSettings, Recipe, RunSettings, TrainSettings
from engine.config.recipe_parts import check_recipe_parts
from engine.config.sections import known_keys, mapping, named, read_section, table, typed
from engine.data.tasks import SOURCES, TaskSource
from protocols.catalogue import PROTOCOLS, prompts_of
from protocols.conversation import ProtocolSettings
from protocols.errors import ConfigError
from protocols.message import Sampling
from protocols.prompt import PromptSet
from trainers.tuning.magdi_settings import MAGDiSettings
from trainers.tuning.sft_settings import SFTSettings
from trainers.tuning.tree_dpo_settings import TreeDPOSettings

_TOP = {
    "name": "a word for the run's folder",
    "seed": "a whole number",
    "description": "free text",
    "tasks": "where the questions come from",
    "models": "the models, by name",
    "agents": "who plays, by name",
    "protocol": "how they debate",
    "cast": "role -> agents",
    "train": "what is learned from debates",
    "sft": "how adapters are trained",
    "tree_dpo": "how they are trained on preferences",
    "magdi": "how `moot train --magdi` trains a student",
    "loop": "how often",
    "run": "how the work is spread",
    "prices": "what tokens cost, by model id",
}
_AGENT_KEYS = {"model", "persona"}
_TASK_PATHS = ("path", "test_path", "reference_path", "image_folder")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and check a recipe. Nothing is started.

    Args:
        overrides: ``key=value`` with a dotted key; the value is read as YAML, so ``loop.iterations=2`` is a number.
    Raises: ConfigError: one sentence that names the file, the key, the value and the fix.
    """
    data = read_yaml(path)
    for override in overrides:
        apply_override(data, override)
    with telling_of(overrides, str(path)):
        return build_recipe(data, where=str(path), folder=path.parent)


@contextmanager
def telling_of(overrides: Sequence[str], where: str, *, place: str = "override") -> Iterator[None]:
    """An error about a key that an override has set is told of its own ``place``, and not of the file ``where``."""
    try:
        yield
    except ConfigError as err:
        said = str(err).removeprefix(f"{where}: ")
        set_here = (re.escape(override.partition("=")[0]) for override in overrides)
        if said == str(err) or not any(re.match(rf"{key}(?![\w-])", said) for key in set_here):
            raise
        raise type(err)(f"{place}: {said}") from err


def read_yaml(path: Path) -> dict[str, Any]:
    """Raises: ConfigError: missing, not YAML, or not a mapping."""
    from engine.config.recipe_yaml import NotYAMLError, parse_yaml

    try:
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"recipe {path}: {err.strerror}; `moot list` names the recipes that moot ships") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"recipe {path}: is not valid YAML: it is no UTF-8 text; save it as UTF-8") from err
    except NotYAMLError as err:
        place = f", line {err.line}" if err.line else ""
        raise ConfigError(f"recipe {path}{place}: is not valid YAML: {err}") from err
    if not isinstance(data, dict):
        raise ConfigError(f"recipe {path}: must be a mapping of {', '.join(_TOP)}")
    return data


def apply_override(data: dict[str, Any], override: str, *, named: str = "") -> None:
    """Set one dotted key. Args: named: what it is called in errors.

    Raises: ConfigError: not of the form key=value, or it runs through a plain value.
    """
    from engine.config.recipe_yaml import NotYAMLError, parse_yaml

    named = named or f"override {override if len(override) <= 80 else f'{override[:80]}...'!r}"
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{named} must look like key=value, for instance loop.iterations=2")
    try:
        value = parse_yaml(text)
    except NotYAMLError as err:
        raise ConfigError(f"{named}: the value is not valid YAML: {err}") from err
    *path, last = key.split(".")
    here = data
    for step in path:
        here = here.setdefault(step, {})
        if not isinstance(here, dict):
            raise ConfigError(f"{named}: {step!r} holds a plain value, nothing can be set inside it")
    here[last] = value


def check_numbers(data: Any, where: str) -> None:
    """Raises: ConfigError: a whole number that no message and no journal can hold."""
    for key, value in _leaves(data):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            shown = value if value.bit_length() <= 256 else f"({value.bit_length()} bits)"
            raise ConfigError(f"{where}: {key}={shown} must be a number of at most 64 bits")


def check_finite(data: Any, where: str) -> None:
    """What no journal can hold either. Once all sections are read: they know the range of what is theirs.

    Raises: ConfigError: a number is infinite, or none.
    """
    for key, value in _leaves(data):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{where}: {key}={value} must be a finite number")


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All that is no mapping and no list, with the dotted key that it, or the list that it is in, stands at."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item, key)
    else:
        yield key, value


def build_recipe(data: Mapping[str, Any], *, where: str, folder: Path = Path()) -> Recipe:
    """Check plain data as a whole. Raises: ConfigError: see ``load_recipe``."""
    known_keys(data, _TOP, where, "")
    check_numbers(data, where)
    for key in ("name", "tasks", "models", "agents", "protocol", "cast"):
        if key not in data:
            raise ConfigError(f"{where}: {key} is missing: {_TOP[key]}")
    protocol, settings, prompts = _read_protocol(data["protocol"], where, folder)
    models = {
        name: read_model(value, where, f"models.{name}")
        for name, value in mapping(data, "models", where, _TOP["models"]).items()
    }
    agents = {
        name: _read_agent(value, where, f"agents.{name}")
        for name, value in mapping(data, "agents", where, _TOP["agents"]).items()
    }
    recipe = Recipe(
        name=typed(data["name"], str, where, "name"),
        seed=typed(data.get("seed", 0), int, where, "seed"),
        description=typed(data.get("description", ""), str, where, "description"),
        tasks=_read_tasks(data["tasks"], where, folder),
        models=models,
        agents=agents,
        protocol=protocol,
        settings=settings,
        prompts=prompts,
        cast={
            role: typed(names, tuple[str, ...], where, f"cast.{role}")
            for role, names in mapping(data, "cast", where, _TOP["cast"]).items()
        },
        train=read_section(data.get("train", {}), TrainSettings, where, "train"),
        sft=read_section(data.get("sft", {}), SFTSettings, where, "sft"),
        tree_dpo=read_section(data.get("tree_dpo", {}), TreeDPOSettings, where, "tree_dpo"),
        magdi=read_section(data.get("magdi", {}), MAGDiSettings, where, "magdi"),
        loop=read_section(data.get("loop", {}), LoopSettings, where, "loop"),
        run=read_section(data.get("run", {}), RunSettings, where, "run"),
        prices={
            model: read_section(value, Price, where, f"prices.{model}")
            for model, value in table(data.get("prices", {}), where, "prices").items()
        },
        source=dict(data),
    )
    check_finite(data, where)
    check_recipe_parts(recipe, where)
    return recipe


def _read_protocol(value: Any, where: str, folder: Path) -> tuple[str, ProtocolSettings, PromptSet]:
    section = dict(table(value, where, "protocol"))
    name = section.get("name")
    if not isinstance(name, str) or ":" not in name:  # one of ours
        name = named(section, "name", PROTOCOLS, where, "protocol")
    del section["name"]
    try:
        machine = find_protocol(name)
    except ConfigError as err:
        raise ConfigError(f"{where}: protocol.name: {err}") from err
    settings = read_section(section, machine.SETTINGS, where, "protocol")
    text = None
    if settings.prompts.endswith(".toml"):
        file = folder / settings.prompts
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as err:
            raise ConfigError(
                f"{where}: protocol.prompts: cannot read {file}: {err.strerror}; give the path from the recipe's folder"
            ) from err
        except UnicodeDecodeError as err:
            raise ConfigError(f"{where}: protocol.prompts: {file} is not UTF-8 text; save it as UTF-8") from err
    try:
        return name, settings, prompts_of(machine, settings, text=text)
    except ConfigError as err:
        raise ConfigError(f"{where}: protocol.prompts: {err}") from err


def _read_tasks(value: Any, where: str, folder: Path) -> TaskSource:
    section = dict(table(value, where, "tasks"))
    source = named(section, "source", SOURCES, where, "tasks")
    del section["source"]
    for key in _TASK_PATHS:  # as seen from the recipe, then from where moot is started
        if isinstance(path := section.get(key), str) and path and not Path(path).exists() and (folder / path).exists():
            section[key] = str(folder / path)
    return read_section(section, SOURCES[source], where, "tasks")


def _read_agent(value: Any, where: str, at: str) -> Agent:
    section = dict(table(value, where, at))
    ours = {key: section.pop(key) for key in _AGENT_KEYS & section.keys()}
    if "model" not in ours:
        raise ConfigError(f"{where}: {at}.model is missing: name one of the models")
    return Agent(
        model=typed(ours["model"], str, where, f"{at}.model"),
        persona=typed(ours.get("persona", ""), str, where, f"{at}.persona"),
        sampling=read_section(section, Sampling, where, at, also=_AGENT_KEYS),
    )
