"""What a local model's own ``config.json`` says of it, without loading the model or asking a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol


class LocalModel(Protocol):
    """The settings of a model that this machine runs."""

    @property
    def model(self) -> str: ...

    @property
    def images(self) -> bool | None: ...


def sees(settings: LocalModel) -> bool:
    """Whether a model is shown images: as ``images`` says, else where the config in its folder has a vision part.

    A name on the hub says nothing until it is fetched, so for those ``images`` alone decides.
    """
    return "vision_config" in _config(settings.model) if settings.images is None else settings.images


def _config(model: str) -> dict[str, Any]:
    """Empty where there is no folder, or nothing to read in it: whoever loads the model will say so."""
    try:
        config = json.loads((Path(model).expanduser() / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
