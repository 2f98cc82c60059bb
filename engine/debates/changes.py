"""What differs between two recipes, and what of a recipe may be set while its run goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import msgspec

from actors.limits.budget import Budget
from actors.limits.tries import Limits
from engine.config.recipe import FREE, FREE_OF_LOOP, FREE_OF_MODELS, Recipe, iterations_of
from engine.config.recipe_file import apply_override, build_recipe, read_yaml
from engine.config.refusals import suggest
from engine.record.folder import Change, Manifest, RunFolder
from engine.record.stage_names import last_iteration
from protocols.errors import ConfigError

WHERE = "moot ctl set"
SETTABLE = ("run.max_open", "run.budget.usd", "run.budget.tokens", "run.drain_s")
LIMITS = Limits.__struct_fields__
SHORT = {"concurrency": "max_concurrency"}
SHOWN = 5  # differences in one sentence
_NOTHING = object()


class Difference(msgspec.Struct, frozen=True):
    """A key of a recipe with two values; None: it is not there."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_shown(self.old)} -> {_shown(self.new)}"

    @property
    def free(self) -> bool:
        """Whether it changes no result that there is, so that a run may go on with it."""
        top, *rest = self.key.split(".")
        if top == "models":
            return len(rest) > 1 and rest[1] in FREE_OF_MODELS
        return top in FREE or (top == "loop" and bool(rest) and rest[0] in FREE_OF_LOOP)


def _shown(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Key by key, in the order of the old, what is only in the new last."""
    old, new = ({**source, "loop": source.get("loop") or {}} for source in (old, new))  # iterations are told as such
    return [Difference(key, *pair) for key, pair in _differences(old, new, "")]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], at: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in dict.fromkeys((*old, *new)):
        before, after = old.get(key, _NOTHING), new.get(key, _NOTHING)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{at}{key}.")
        else:
            yield f"{at}{key}", (None if before is _NOTHING else before, None if after is _NOTHING else after)


def changed(recipe: Recipe, settings: Sequence[str], folder: Path) -> tuple[Recipe, list[Difference]]:
    """The recipe with settings that may change while its run goes on, checked as a whole.

    Args:
        settings: ``KEY=VALUE``. KEY is a recipe's, such as ``models.gpt.limits.max_concurrency``; of a model's limits
            ``gpt.concurrency`` will do, or an agent's name instead of its model's.
    Raises: ConfigError: a key that cannot be set now, or a value that the recipe does not take.
    """
    source = deepcopy(recipe.source)
    for setting in settings:
        key, equals, value = setting.partition("=")
        apply_override(source, f"{_long(recipe, key)}={value}" if equals else setting)
    made = msgspec.structs.replace(build_recipe(source, where=WHERE, folder=folder), known_as=recipe.known_as)
    return made, differences(recipe.source, source)


def keep_changes(folder: RunFolder, recipe: Recipe, found: Sequence[Difference]) -> None:
    """The run's recipe from now on, and what was changed when."""
    folder.write_recipe(recipe.source)
    folder.manifest.recipe = recipe.source
    folder.manifest.changes += [Change(at=time.time(), key=item.key, old=item.old, new=item.new) for item in found]
    folder.save()


def own_recipe(folder: RunFolder) -> dict[str, Any]:
    """``recipe.yaml`` as it is now: somebody may have edited it. Raises: ConfigError: it cannot be read."""
    file = folder.path / "recipe.yaml"
    return _plain(read_yaml(file) if file.exists() else folder.manifest.recipe)


def taken_up(folder: RunFolder, budget: Sequence[str], iterations: int | None = None) -> dict[str, Any]:
    """The recipe to go on with: the run's own with what was edited in it, a new budget, more iterations.

    Raises: ConfigError: an edit would change results, or there is no loop to go on with.
    """
    source = own_recipe(folder)
    if refused := [item for item in differences(folder.manifest.recipe, source) if not item.free]:
        raise ConfigError(
            f"{folder.path / 'recipe.yaml'} is another than the run was started with ({_told(refused)}); put it back, "
            f"or begin another run by `moot fork {folder.path} --run-dir NEW`, which takes over what stays valid"
        )
    for given in budget:
        if given.partition("=")[0] not in Budget.__struct_fields__ or "=" not in given:
            raise ConfigError(f"--budget {given!r} must be usd=Y or tokens=N, for instance usd=10")
        apply_override(source, f"run.budget.{given}", named=f"--budget {given!r}")
    if iterations is not None:
        apply_override(source, f"loop.iterations={iterations}", named=f"--iterations {iterations}")
    return source


def goes_further(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether a loop is to have more iterations than it was."""
    return folder.manifest.kind == "loop" and recipe.loop.iterations > iterations_of(folder.manifest.recipe)


def check_unchanged(folder: RunFolder, recipe: Recipe) -> None:
    """Whether a recipe is the run's. Raises: ConfigError: it differs in what may change a result."""
    if refused := [item for item in differences(folder.manifest.recipe, recipe.source) if not item.free]:
        raise ConfigError(
            f"{folder.path} holds another run: its recipe differs ({_told(refused)}); choose another --run-dir, or "
            f"begin another by `moot fork {folder.path} --run-dir NEW`, which takes over what stays valid"
        )
    check_same(folder, recipe)


def check_same(folder: RunFolder, recipe: Recipe) -> None:
    """Raises: ConfigError: prompts or files of tasks that the recipe names have changed, or a loop is to be shorter."""
    if other := changed_files(folder.manifest, recipe):
        raise ConfigError(
            f"{folder.path}: {' and '.join(other)} changed since the run was started; put that back, or begin another "
            f"run by `moot fork {folder.path} --run-dir NEW`, which takes over what stays valid"
        )
    journals = (path.name for path in (folder.path / "journal").glob("debate-*"))
    number, begun = recipe.loop.iterations, last_iteration([*folder.manifest.done, *journals])
    if number < begun:
        raise ConfigError(
            f"{folder.path}: loop.iterations={number} is fewer than the {begun} that the run has begun; "
            "give as many or more"
        )


def changed_files(manifest: Manifest, recipe: Recipe) -> list[str]:
    """What the recipe only names and is another than when the run was started, in words."""
    if not manifest.files and recipe.fingerprint != manifest.fingerprint:  # of a moot that did not keep them
        return ["a file that it names, or a prompt set of moot's,"]
    words = {"prompt_text": "the text of its prompts", "task_files": "its files of tasks"}
    return [words[key] for key, value in recipe.files.items() if manifest.files.get(key, value) != value]


def _told(found: Sequence[Difference]) -> str:
    more = f"; {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(map(str, found[:SHOWN])) + more


def _plain(source: Mapping[str, Any]) -> dict[str, Any]:
    """As the manifest holds it: a copy of what JSON knows."""
    found: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(source))
    return found


def _long(recipe: Recipe, key: str) -> str:
    """The key in full. Raises: ConfigError: it cannot be set now."""
    if key in SETTABLE:
        return key
    name, _, limit = key.removeprefix("models.").replace(".limits.", ".").rpartition(".")
    if name in recipe.agents and name not in recipe.models:
        name = recipe.agents[name].model
    limit = SHORT.get(limit, limit)
    if name in recipe.models and limit in LIMITS:
        return f"models.{name}.limits.{limit}"
    if name in recipe.models:
        raise ConfigError(
            f"{WHERE} {key}: a model's {limit!r} cannot be set while it runs; {suggest(limit, [*SHORT, *LIMITS])}"
        )
    limits = (f"{model}.{word}" for model in recipe.models for word in (*SHORT, *LIMITS))
    raise ConfigError(f"{WHERE} {key}: cannot be set while a run goes on; {suggest(key, [*SETTABLE, *limits])}")
