"""Models behind the Anthropic Messages API.

Owns the translation between asks and requests. The API wants turns that alternate, so neighbouring messages of one role
become one message with several parts; system messages, wherever they stand, are joined into the request's ``system``;
parts without text are left out, and space at the end of a last assistant message is cut. Seeds have no counterpart
there. ``temperature`` and ``top_p`` are sent where they are not 1.0, the API's default: some models refuse to be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from actors.limits.gate import RateHint
from actors.models.backend import AdapterRef
from actors.models.images import ReadImage
from actors.services.api_backend import ApiBackend, ApiSettings, checked_url, not_a_reply
from actors.services.api_errors import anthropic_error
from actors.services.api_key import ApiKey
from actors.services.http_client import Answer
from actors.services.rate_headers import anthropic_rates
from protocols.errors import AgentError, ReplyError
from protocols.message import Ask, FinishReason, ImagePart, Message, Part, Reply, Usage

MAX_REQUESTS = 100_000  # that the API takes in one batch
FINISH: dict[str | None, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}


class AnthropicSettings(ApiSettings, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model of the Messages API."""

    model: str
    base_url: str = "https://api.anthropic.com"
    api_version: str = "2023-06-01"  # the header anthropic-version
    omit: tuple[Literal["temperature", "top_p", "stop"], ...] = ()  # fields that the model refuses

    def __post_init__(self) -> None:
        super().__post_init__()
        if checked_url("base_url", self.base_url).endswith("/v1"):
            raise ValueError(f"base_url={self.base_url!r} must be without /v1, which is added")
        if not self.model:
            raise ValueError("model must not be empty")
        if self.batch and self.batch.max_requests > MAX_REQUESTS:
            raise ValueError(f"batch.max_requests={self.batch.max_requests} must be at most {MAX_REQUESTS}")

    @property
    def url(self) -> str:
        return f"{self.base_url.rstrip('/')}/v1/messages"

    @property
    def key_env(self) -> str:
        if self.api_key_env is not None or self.api_key_file:
            return self.api_key_env or ""
        return "ANTHROPIC_API_KEY" if self.hosted and self.base_url.startswith("https://") else ""

    @property
    def own_form(self) -> bool:
        return "format" in self.extra_body.get("output_config", {})

    @property
    def hosted(self) -> bool:
        return urlsplit(self.base_url).hostname == "api.anthropic.com"


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None


class _Block(msgspec.Struct):
    type: str
    text: str | None = None


class _Reply(msgspec.Struct):
    content: list[_Block]
    stop_reason: str | None = None
    usage: _Usage | None = None


_REPLY = msgspec.json.Decoder(_Reply)


class AnthropicBackend(ApiBackend):
    """The ``Backend`` of one model of the API."""

    def __init__(self, settings: AnthropicSettings, read_image: ReadImage | None = None) -> None:
        super().__init__(settings, read_image)
        self._settings = settings
        self._headers = {"anthropic-version": settings.api_version} | self._headers

    @property
    def _url(self) -> str:
        return self._settings.url

    @property
    def _model(self) -> str:
        return self._settings.model

    def _auth(self, key: ApiKey) -> dict[str, str]:
        if self._settings.hosted:
            return {"x-api-key": key.header()}
        return {
            "x-api-key": key.header(),
            "Authorization": key.header("Bearer "),
        }  # what other servers read, vLLM's too

    def _rates(self, headers: Mapping[str, str]) -> RateHint | None:
        return anthropic_rates(headers)

    def refusal(self, answer: Answer) -> ReplyError:
        return anthropic_error(answer, self._place)

    async def _probe(self) -> None:
        """A wrong key or an address where nobody answers is found before the first debate; the list costs nothing."""
        url = f"{self._settings.base_url.rstrip('/')}/v1/models"
        try:
            answer = await self.client.call("GET", url)
        except ReplyError as err:
            raise AgentError(f"model {self._model!r} cannot be reached: {err}") from err
        if answer.status == 401:
            raise AgentError(str(anthropic_error(answer, self._place)))

    def _request(self, ask: Ask, adapter: AdapterRef | None) -> dict[str, Any]:
        drawn, omit = ask.sampling, self._settings.omit
        body: dict[str, Any] = {
            "model": self._model,
            "max_tokens": drawn.max_tokens,
            "messages": self._turns(ask.messages),
        }
        if head := "\n\n".join(message.text for message in ask.messages if message.role == "system" and message.text):
            body["system"] = head
        if drawn.temperature != 1.0 and "temperature" not in omit:
            body["temperature"] = drawn.temperature
        if drawn.top_p != 1.0 and "top_p" not in omit:
            body["top_p"] = drawn.top_p
        if drawn.stop and "stop" not in omit:
            body["stop_sequences"] = drawn.stop
        body |= self._settings.extra_body
        if ask.schema:
            form = {"type": "json_schema", "schema": msgspec.Raw(ask.schema.encode())}
            body["output_config"] = {"format": form} | body.get("output_config", {})
        return body

    def _turns(self, messages: tuple[Message, ...]) -> list[dict[str, Any]]:
        """Turns that alternate; see the module."""
        turns: list[dict[str, Any]] = []
        for message in messages:
            blocks = [self._block(part) for part in message.parts if isinstance(part, ImagePart) or part.text]
            if message.role == "system" or not blocks:
                continue
            if turns and turns[-1]["role"] == message.role:
                turns[-1]["content"] += blocks
            else:
                turns.append({"role": message.role, "content": blocks})
        if turns and turns[-1]["role"] == "assistant" and (last := turns[-1]["content"][-1])["type"] == "text":
            last["text"] = last["text"].rstrip()
        return turns

    def _block(self, part: Part) -> dict[str, Any]:
        if not isinstance(part, ImagePart):
            return {"type": "text", "text": part.text}
        source = {"type": "base64", "media_type": part.media_type, "data": self._base64(part)}
        return {"type": "image", "source": source}

    def _read(self, answer: Answer, ask: Ask, adapter: AdapterRef | None, latency_s: float) -> Reply:
        try:
            told = _REPLY.decode(answer.body)
        except (ValueError, RecursionError) as err:
            raise not_a_reply(self._place, answer, err) from err
        if told.stop_reason == "refusal":
            raise ReplyError(f"{self._url}, model {self._model!r}: refused to answer", "refused")
        return Reply(
            ask_id=ask.id,
            text="".join(block.text or "" for block in told.content if block.type == "text"),
            model=self._model,
            finish_reason=FINISH.get(told.stop_reason, "other"),
            usage=_usage(told.usage),
            latency_s=latency_s,
        )


def _usage(told: _Usage | None) -> Usage:
    """The API counts what was read from its cache, or written to it, beside ``input_tokens`` and not in it."""
    if told is None:
        return Usage()
    read = told.cache_read_input_tokens or 0
    return Usage(
        prompt_tokens=(told.input_tokens or 0) + read + (told.cache_creation_input_tokens or 0),
        completion_tokens=told.output_tokens or 0,
        cached_tokens=read,
        reasoning_tokens=(told.output_tokens_details.thinking_tokens or 0) if told.output_tokens_details else 0,
    )
