"""The backends that recipes can name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from actors.local.model_config import sees
from actors.local.transformers_model import TransformersBackend, TransformersSettings
from actors.local.transformers_settings import required_env as transformers_env
from actors.local.vllm_engine import VLLMBackend, VLLMSettings, required_env
from actors.local.vllm_settings import on_gpus
from actors.models.backend import Backend
from actors.models.human import LIMITS, HumanBackend, HumanSettings
from actors.models.recorded import RecordedBackend, RecordedSettings, check_run
from actors.models.scripted import ScriptedBackend, ScriptedSettings
from actors.services.anthropic_messages import AnthropicSettings
from actors.services.api_backend import check_key, default_limits, leaves_form_open
from actors.services.batched import anthropic_backend, chat_backend
from actors.services.openai_chat import AzureSettings, OpenAISettings


def always(settings: msgspec.Struct) -> bool:
    return True


class BackendSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One backend as a recipe sees it.

    ``build`` makes it inside its actor; ``env`` names the variables that the actor's process must start with. ``check``
    raises ConfigError where what the settings name is not on this machine. ``on_gpus`` gives the settings for so many
    GPUs, and raises ValueError where they do not go together.
    """

    settings: type[msgspec.Struct]
    build: Callable[..., Backend]
    env: Callable[..., Mapping[str, str]] = lambda settings: {}
    check: Callable[..., None] = lambda settings: None
    on_gpus: Callable[..., msgspec.Struct] = lambda settings, num_gpus: settings
    takes_images: Callable[..., bool] = lambda settings: bool(getattr(settings, "images", False))
    holds_schema: Callable[..., bool] = lambda settings: False  # a reply to an ask's schema, or has no need to
    cacheable: bool = True  # a model replies, or something that plays one
    limits: Callable[..., Mapping[str, float]] = lambda settings: {}  # what they are unless a recipe says otherwise
    adapters: Callable[..., int] = lambda settings: 0  # how many agents of a model may have one each
    heavy: bool = False  # holds a model in memory: takes a CPU or a GPU of the cluster
    sleeps: bool = False  # on a GPU: see ``actors.models.backend.Sleeps``


ANY = sys.maxsize


_SERVICE: Any = {"check": check_key, "limits": default_limits, "holds_schema": leaves_form_open}

BACKENDS: dict[str, BackendSpec] = {
    "scripted": BackendSpec(
        settings=ScriptedSettings,
        build=ScriptedBackend,
        takes_images=always,
        holds_schema=always,
        adapters=lambda settings: ANY,
    ),
    "vllm": BackendSpec(
        settings=VLLMSettings,
        build=VLLMBackend,
        env=required_env,
        on_gpus=on_gpus,
        takes_images=sees,
        holds_schema=always,
        adapters=lambda settings: ANY if settings.max_adapters else 0,  # more than those take turns
        heavy=True,
        sleeps=True,
    ),
    "transformers": BackendSpec(
        settings=TransformersSettings,
        build=TransformersBackend,
        env=transformers_env,
        takes_images=sees,
        adapters=lambda settings: settings.max_adapters,
        heavy=True,
    ),
    "recorded": BackendSpec(
        settings=RecordedSettings,
        build=RecordedBackend,
        check=check_run,
        takes_images=always,
        holds_schema=always,
        cacheable=False,
    ),
    "human": BackendSpec(
        settings=HumanSettings,
        build=HumanBackend,
        takes_images=always,
        holds_schema=always,
        cacheable=False,
        limits=lambda settings: LIMITS,
    ),
    "openai": BackendSpec(
        build=chat_backend, settings=OpenAISettings, adapters=lambda settings: ANY if settings.lora else 0, **_SERVICE
    ),
    "azure": BackendSpec(build=chat_backend, settings=AzureSettings, **_SERVICE),
    "anthropic": BackendSpec(build=anthropic_backend, settings=AnthropicSettings, **_SERVICE),
}
"""Name in a recipe -> backend. A new one adds its line here."""
