"""Settings of models behind the OpenAI chat completions API: where they are, and how their dialects differ."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import quote, urlsplit

from actors.api_backend import ApiSettings, checked_url

OPENAI, GEMINI = "api.openai.com", "generativelanguage.googleapis.com"
USUAL_KEYS = {OPENAI: "OPENAI_API_KEY", GEMINI: "GEMINI_API_KEY"}

MAX_REQUESTS = 50_000  # that OpenAI takes in one batch

Omittable = Literal["temperature", "top_p", "seed", "stop", "max_tokens"]


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

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_url("base_url", self.base_url)
        if not self.model:
            raise ValueError("model must not be empty")
        if self.batch and self.lora:
            raise ValueError("lora is for vLLM servers, which have no batches; leave out lora or batch")
        if self.batch and self.batch.max_requests > MAX_REQUESTS:
            raise ValueError(f"batch.max_requests={self.batch.max_requests} must be at most {MAX_REQUESTS}")

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
