"""The backends that recipes can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from actors.backend import Backend
from actors.scripted import ScriptedBackend, ScriptedSettings
from actors.vllm_engine import VLLMBackend, VLLMSettings, required_env


class BackendSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One backend as a recipe sees it.

    ``build`` makes it inside its actor; ``env`` names the variables that the actor's process must start with.
    """

    settings: type[msgspec.Struct]
    build: Callable[..., Backend]
    env: Callable[..., Mapping[str, str]] = lambda settings: {}
    heavy: bool = False  # holds a model in memory: takes a CPU or a GPU of the cluster


BACKENDS: dict[str, BackendSpec] = {
    "scripted": BackendSpec(settings=ScriptedSettings, build=ScriptedBackend),
    "vllm": BackendSpec(settings=VLLMSettings, build=VLLMBackend, env=required_env, heavy=True),
}
"""Name in a recipe -> backend. A new one adds its line here."""
