"""The versions that a run has trained: found by name, with their weights or the reason why there are none."""

from __future__ import annotations

from pathlib import Path

from actors.models.backend import EMBEDDED
from engine.record.folder import RunFolder
from protocols.errors import ConfigError
from trainers.record.registry import FILE_NAME, AdapterRecord, Registry


def registry_of(run: Path) -> Registry:
    """Raises: ConfigError: not a run, or nothing was trained in it."""
    RunFolder.open(run)
    if not (run / "adapters" / FILE_NAME).is_file():
        raise ConfigError(
            f"{run} has no adapters; train some with `moot train {run}`, or start a loop with `moot loop`"
        )
    return Registry(run / "adapters")


def find(run: Path, name: str) -> tuple[Registry, AdapterRecord]:
    """One version, by its name or by an agent's for its newest.

    Raises: ConfigError: see ``registry_of``. TrainerError: no such version.
    """
    registry = registry_of(run)
    return registry, registry.latest(name) or registry.get(name)


def find_weights(run: Path, name: str) -> tuple[Registry, AdapterRecord]:
    """The same, of what has weights. Raises: ConfigError: the service that trained it keeps them."""
    registry, record = find(run, name)
    if record.model:
        raise kept_by_service(record, "there is nothing to merge, export or push")
    return registry, record


def kept_by_service(record: AdapterRecord, so: str) -> ConfigError:
    """Why something cannot be done that needs weights."""
    return ConfigError(
        f"adapter {record.name!r} is the model {record.model!r} of the service that trained it, which gives out no "
        f"weights: {so}; a recipe speaks with it as `{{backend: openai, model: {record.model!r}}}`"
    )


def whole_model(registry: Registry, record: AdapterRecord, so: str) -> ConfigError:
    """Why something cannot be done that needs an adapter."""
    return ConfigError(
        f"{record.name!r} is a whole model, not an adapter: {so}; a recipe speaks with it as "
        f"models.NAME.model: {registry.folder_of(record)}"
    )


def base_folder(record: AdapterRecord) -> Path:
    """Where the base of an adapter lies. Raises: ConfigError: not on this machine."""
    if record.base_model == EMBEDDED:
        from actors.local.embedded import embedded_model_path

        return embedded_model_path()
    if not Path(record.base_model).is_dir():
        raise ConfigError(
            f"adapter {record.name!r}: its base {record.base_model!r} is no folder here; name one with --base"
        )
    return Path(record.base_model)
