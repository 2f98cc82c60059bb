"""Settings of models behind the OpenAI chat completions API: where they are, and how their dialects differ."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import msgspec

from actors.services.api_backend import ApiSettings, checked_url
from protocols.bounds import check_above_0

OPENAI, GEMINI = "api.openai.com", "generativelanguage.googleapis.com"
USUAL_KEYS = {OPENAI: "OPENAI_API_KEY", GEMINI: "GEMINI_API_KEY"}

MAX_REQUESTS = 50_000  # that OpenAI takes in one batch

MAX_SUFFIX = 64  # letters that OpenAI takes
_SUFFIX = re.compile(rf"[A-Za-z0-9_-]{{0,{MAX_SUFFIX}}}")
AZURE = ".azure.com"
AZURE_TRAINS_APART = (
    "finetune is not for Azure: a model that it has trained answers only once somebody has deployed it; deploy it "
    "yourself and name the deployment as a model"
)

Omittable = Literal["temperature", "top_p", "seed", "stop", "max_tokens"]


class FinetuneSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the service trains the agents of a model. What is None, the service chooses."""

    base: str = ""  # id of the model to start from; default: the model's own
    suffix: str = ""  # in the id of what comes back; default: agent and version
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    seed: int | None = None
    poll_s: float = 15.0  # before a job is first looked at; doubles each time ...
    max_poll_s: float = 120.0  # ... up to this
    max_wait_s: float = 172_800.0  # then the run stops; the job goes on, and `moot resume` takes up the wait

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate_multiplier"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value:g} must be above 0; leave it out and the service chooses")
        if not _SUFFIX.fullmatch(self.suffix):
            raise ValueError(f"suffix={self.suffix!r} must be up to {MAX_SUFFIX} letters, digits, '-' and '_'")
        if not 0 < self.poll_s <= self.max_poll_s < float("inf"):
            raise ValueError(
                f"poll_s={self.poll_s:g} and max_poll_s={self.max_poll_s:g} must be numbers above 0, poll_s not above "
                "max_poll_s"
            )
        check_above_0(self, "max_wait_s")


class ChatSettings(ApiSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the dialects share."""

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] | None = None  # default: as the service has it
    omit: tuple[Omittable, ...] = ()  # fields that the service or model refuses
    image_detail: Literal["auto", "low", "high"] = "auto"
    response_format: dict[str, Any] | None = None  # passed through
    keep_logprobs: bool = False  # and token ids; of vLLM servers

    @property
    def own_form(self) -> bool:
        return self.response_format is not None or "response_format" in self.extra_body

    @property
    def hosted(self) -> bool:
        """Whether OpenAI's own models answer. Their default is 1.0, and some refuse to be told it."""
        return False

    @property
    def url(self) -> str:
        raise NotImplementedError


class OpenAISettings(ChatSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A service that speaks OpenAI's API at ``base_url``."""

    model: str
    base_url: str = "https://api.openai.com/v1"
    lora: bool = False  # a vLLM server that sees our folders and may load adapters while it runs
    finetune: FinetuneSettings | None = None  # the service trains those who learn

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_url("base_url", self.base_url)
        if not self.model:
            raise ValueError("model must not be empty")
        if self.batch and self.lora:
            raise ValueError("lora is for vLLM servers, which have no batches; leave out lora or batch")
        if self.batch and self.batch.max_requests > MAX_REQUESTS:
            raise ValueError(f"batch.max_requests={self.batch.max_requests} must be at most {MAX_REQUESTS}")
        if self.finetune:
            self._check_finetune()

    def _check_finetune(self) -> None:
        if self.lora:
            raise ValueError(
                "lora is for adapters that are trained here, finetune for models of the service: leave one"
            )
        if self.batch:
            raise ValueError(
                "a batch is for one model, and with finetune every agent gets a model of its own; leave out finetune "
                "or batch"
            )
        if self._host.endswith(AZURE):
            raise ValueError(AZURE_TRAINS_APART)

    @property
    def hosted(self) -> bool:
        return self._host == OPENAI

    @property
    def url(self) -> str:
        return f"{self.base_url.rstrip('/')}/chat/completions"

    @property
    def key_env(self) -> str:
        if self.api_key_env is not None or self.api_key_file or not self.base_url.startswith("https://"):
            return self.api_key_env or ""
        return USUAL_KEYS.get(self._host, "")

    @property
    def left_out(self) -> frozenset[str]:
        return frozenset(self.omit) | ({"seed"} if self._host == GEMINI else frozenset())  # Gemini refuses a seed

    @property
    def _host(self) -> str:
        host = urlsplit(self.base_url).hostname or ""
        return OPENAI if host.endswith(f".{OPENAI}") else host  # one of its regions


class AzureSettings(ChatSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A deployment of an Azure OpenAI resource."""

    endpoint: str  # https://RESOURCE.openai.azure.com
    deployment: str
    api_version: str = "2024-10-21"

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_url("endpoint", self.endpoint)
        if not self.deployment:
            raise ValueError("deployment must not be empty")
        if self.batch:
            raise ValueError(
                "batch is not for backend azure; use backend openai with base_url ENDPOINT/openai/v1, the batch "
                "deployment as its model and api_key_env AZURE_OPENAI_API_KEY"
            )

    @property
    def hosted(self) -> bool:
        return True

    @property
    def url(self) -> str:
        path = f"openai/deployments/{quote(self.deployment, safe='')}/chat/completions"
        return f"{self.endpoint.rstrip('/')}/{path}?api-version={quote(self.api_version, safe='')}"

    @property
    def key_env(self) -> str:
        return self.api_key_env or ("" if self.api_key_file else "AZURE_OPENAI_API_KEY")

    @property
    def left_out(self) -> frozenset[str]:
        return frozenset(self.omit)
