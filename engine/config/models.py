"""The models of a recipe: what each is, what it takes of the cluster, what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from actors.agent import Limits
from actors.catalogue import BACKENDS
from actors.limits.prices import Price
from actors.models.response_cache import CacheSettings
from actors.services.api_key import refuse_literal_keys
from actors.services.batch_book import BatchSettings
from actors.services.openai_settings import FinetuneSettings
from engine.config.sections import named, read_section, table
from protocols.bounds import UP, check_bounds
from protocols.errors import ConfigError

MAX_REPLICAS = 1_000  # each is a process of its own
MAX_RESTARTS = 1_000
Way = Literal["release", "sleep"]
"""How a host gives up its device: its process ends and is started again later, or its model sleeps in it."""


class Place(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model takes of the cluster, each of its hosts for itself."""

    num_cpus: float = 0.0
    num_gpus: float = 0.0  # a whole number, or a share of one
    replicas: int = 1  # hosts with a copy each, between which debates are spread
    max_restarts: int = 3  # of a host that dies, before the run goes on without it, or stops

    def __post_init__(self) -> None:
        check_bounds(
            self, num_cpus=(0, UP), num_gpus=(0, UP), replicas=(1, MAX_REPLICAS), max_restarts=(0, MAX_RESTARTS)
        )
        if self.num_gpus > 1 and not self.num_gpus.is_integer():
            raise ValueError(f"num_gpus={self.num_gpus:g} must be a share of one GPU, or a whole number")


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """One model: its backend, the backend's settings, the host's limits, and where it lives."""

    backend: str
    settings: msgspec.Struct
    limits: Limits = Limits()
    place: Place = Place()
    price: Price | None = None  # the user's own; see ``Recipe.price_of``
    cache: CacheSettings | None = None  # of its replies; None: every ask goes to the model

    @property
    def served(self) -> str:
        """The model's id with its provider; "" where it has none."""
        return str(getattr(self.settings, "model", ""))

    @property
    def provider(self) -> str:
        """Whose it is: the address of a service, else the backend."""
        return urlsplit(str(getattr(self.settings, "url", ""))).netloc or self.backend

    @property
    def batch(self) -> BatchSettings | None:
        """How its asks become batches; None where each is sent by itself."""
        found = getattr(self.settings, "batch", None)
        return found if isinstance(found, BatchSettings) else None

    @property
    def finetune(self) -> FinetuneSettings | None:
        """How its service trains those who speak through it; None where it does not."""
        return getattr(self.settings, "finetune", None)

    @property
    def paid(self) -> bool:
        """Whether somebody is paid for its tokens: it is reached with a key, or has a price."""
        return self.price is not None or "api_key_env" in self.settings.__struct_fields__


_PLACE_KEYS = set(Place.__struct_fields__)
_MODEL_KEYS = {"backend", "limits", "price", "cache", *_PLACE_KEYS}


_SERVERS = "; a server that speaks OpenAI's API (Ollama, llama.cpp, vLLM) is backend: openai, with its base_url"


def read_model(value: Any, where: str, at: str) -> Model:
    refuse_literal_keys(value, f"{where}: {at}")  # before any error can show it
    section = dict(table(value, where, at))
    backend = named(section, "backend", BACKENDS, where, at, also=_SERVERS)
    ours = {key: section.pop(key) for key in _MODEL_KEYS & section.keys()}
    settings = read_section(section, BACKENDS[backend].settings, where, at, also=_MODEL_KEYS)
    heavy = BACKENDS[backend].heavy
    taken = {key: ours[key] for key in _PLACE_KEYS & ours.keys()}
    place = read_section({"num_cpus": 1.0 if heavy else 0.0} | taken, Place, where, at)
    try:
        settings = BACKENDS[backend].on_gpus(settings, place.num_gpus)
    except ValueError as err:
        raise ConfigError(f"{where}: {at}.{err}") from err  # it begins with the setting
    if "cache" in ours and not BACKENDS[backend].cacheable:
        raise ConfigError(f"{where}: {at}.cache: backend {backend!r} has no model whose replies are kept; leave it out")
    return Model(
        backend=backend,
        settings=settings,
        place=place,
        limits=_read_limits(ours.get("limits", {}), BACKENDS[backend].limits(settings), where, f"{at}.limits"),
        price=read_section(ours["price"], Price, where, f"{at}.price") if "price" in ours else None,
        cache=read_section(ours["cache"], CacheSettings, where, f"{at}.cache") if "cache" in ours else None,
    )


def _read_limits(value: Any, defaults: Mapping[str, float], where: str, at: str) -> Limits:
    return read_section({**defaults, **table(value, where, at)}, Limits, where, at)


def names_folder(model: str) -> bool:
    """Whether what a recipe calls a model can only be a folder here, and no name on a hub."""
    return model.startswith((".", "/", "~"))
