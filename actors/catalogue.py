"""The backends that recipes can name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from actors.anthropic_messages import AnthropicSettings
from actors.api_backend import check_key, default_limits
from actors.backend import Backend
from actors.batched import anthropic_backend, chat_backend
from actors.human import LIMITS, HumanBackend, HumanSettings
from actors.openai_chat import AzureSettings, OpenAISettings
from actors.recorded import RecordedBackend, RecordedSettings, check_run
from actors.scripted import ScriptedBackend, ScriptedSettings
from actors.transformers_model import TransformersBackend, TransformersSettings
from actors.transformers_settings import required_env as transformers_env
from actors.vllm_engine import VLLMBackend, VLLMSettings, required_env


class BackendSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One backend as a recipe sees it.

    ``build`` makes it inside its actor; ``env`` names the variables that the actor's process must start with. ``check``
    raises ConfigError where what the settings name is not on this machine.
    """

    settings: type[msgspec.Struct]
    build: Callable[..., Backend]
    env: Callable[..., Mapping[str, str]] = lambda settings: {}
    check: Callable[..., None] = lambda settings: None
    takes_images: Callable[..., bool] = lambda settings: bool(getattr(settings, "images", False))
    limits: Callable[..., Mapping[str, float]] = lambda settings: {}  # what they are unless a recipe says otherwise
    heavy: bool = False  # holds a model in memory: takes a CPU or a GPU of the cluster


BACKENDS: dict[str, BackendSpec] = {
    "scripted": BackendSpec(settings=ScriptedSettings, build=ScriptedBackend, takes_images=lambda settings: True),
    "vllm": BackendSpec(settings=VLLMSettings, build=VLLMBackend, env=required_env, heavy=True),
    "transformers": BackendSpec(
        settings=TransformersSettings, build=TransformersBackend, env=transformers_env, heavy=True
    ),
    "recorded": BackendSpec(
        settings=RecordedSettings, build=RecordedBackend, check=check_run, takes_images=lambda settings: True
    ),
    "human": BackendSpec(
        settings=HumanSettings, build=HumanBackend, takes_images=lambda settings: True, limits=lambda settings: LIMITS
    ),
    "openai": BackendSpec(settings=OpenAISettings, build=chat_backend, check=check_key, limits=default_limits),
    "azure": BackendSpec(settings=AzureSettings, build=chat_backend, check=check_key, limits=default_limits),
    "anthropic": BackendSpec(
        settings=AnthropicSettings, build=anthropic_backend, check=check_key, limits=default_limits
    ),
}
"""Name in a recipe -> backend. A new one adds its line here."""
