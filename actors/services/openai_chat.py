"""Models behind the OpenAI chat completions API: OpenAI, Azure's deployments, vLLM, llama.cpp, Gemini and many more.

Owns the translation between asks and requests. What it sends is what an ask says and what the settings add; see
``api_backend`` for what happens to it, ``api_errors`` for what a refusal means.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from actors.limits.gate import RateHint
from actors.models.backend import AdapterRef
from actors.models.images import ReadImage
from actors.services.api_backend import ApiBackend, not_a_reply
from actors.services.api_errors import decoded, openai_error
from actors.services.api_key import ApiKey
from actors.services.http_client import Answer
from actors.services.openai_settings import AzureSettings, OpenAISettings
from actors.services.rate_headers import openai_rates
from protocols.errors import RETRYABLE, AgentError, ReplyError
from protocols.message import Ask, FinishReason, ImagePart, Message, Reply, Usage

__all__ = ["AzureSettings", "ChatBackend", "OpenAISettings"]

FINISH: dict[str | None, FinishReason] = {"stop": "stop", "eos": "stop", "length": "length"}


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    image_tokens: int | None = None
    multimodal_tokens: int | None = None  # vLLM's word for it


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _TextPart(msgspec.Struct):
    type: str = ""
    text: str | None = None


class _Message(msgspec.Struct):
    """Reasoning stands in fields of its own, which are not read."""

    content: str | list[_TextPart] | None = None
    refusal: str | None = None


class _Logprob(msgspec.Struct):
    logprob: float


class _Logprobs(msgspec.Struct):
    content: list[_Logprob] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


_COMPLETION = msgspec.json.Decoder(_Completion)


class ChatBackend(ApiBackend):
    """The ``Backend`` of one model of one service."""

    def __init__(self, settings: OpenAISettings | AzureSettings, read_image: ReadImage | None = None) -> None:
        super().__init__(settings, read_image)
        self._settings = settings
        self._left_out = settings.left_out
        self._limit_field = settings.max_tokens_field or ("max_completion_tokens" if settings.hosted else "max_tokens")
        self._fixed: dict[str, Any] = {}
        if settings.response_format:
            self._fixed["response_format"] = settings.response_format
        if settings.keep_logprobs:
            self._fixed |= {"logprobs": True, "return_token_ids": True}
        self._fixed |= settings.extra_body

    @property
    def _url(self) -> str:
        return self._settings.url

    @property
    def _model(self) -> str:
        settings = self._settings
        return settings.deployment if isinstance(settings, AzureSettings) else settings.model

    def _auth(self, key: ApiKey) -> dict[str, str]:
        if isinstance(self._settings, AzureSettings):
            return {"api-key": key.header()}
        return {"Authorization": key.header("Bearer ")}

    def _rates(self, headers: Mapping[str, str]) -> RateHint | None:
        return openai_rates(headers)

    def refusal(self, answer: Answer) -> ReplyError:
        return openai_error(answer, self._place)

    def _request(self, ask: Ask, adapter: AdapterRef | None) -> dict[str, Any]:
        drawn, left_out, hosted = ask.sampling, self._left_out, self._settings.hosted
        body: dict[str, Any] = {
            "model": (adapter.model or adapter.name) if adapter else self._model,
            "messages": [self._message(message) for message in ask.messages],
        }
        if "temperature" not in left_out and not (hosted and drawn.temperature == 1.0):
            body["temperature"] = drawn.temperature
        if "top_p" not in left_out and not (hosted and drawn.top_p == 1.0):
            body["top_p"] = drawn.top_p
        if "max_tokens" not in left_out:
            body[self._limit_field] = drawn.max_tokens
        if drawn.stop and "stop" not in left_out:
            body["stop"] = drawn.stop
        if drawn.seed is not None and "seed" not in left_out:
            body["seed"] = drawn.seed
        if ask.schema:
            schema = {"name": "reply", "strict": True, "schema": msgspec.Raw(ask.schema.encode())}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body | self._fixed

    def _message(self, message: Message) -> dict[str, Any]:
        if not message.images:
            return {"role": message.role, "content": message.text}
        parts = [
            self._image(part) if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
            for part in message.parts
        ]
        return {"role": message.role, "content": parts}

    def _image(self, part: ImagePart) -> dict[str, Any]:
        url = f"data:{part.media_type};base64,{self._base64(part)}"
        return {"type": "image_url", "image_url": {"url": url, "detail": self._settings.image_detail}}

    def _read(self, answer: Answer, ask: Ask, adapter: AdapterRef | None, latency_s: float) -> Reply:
        try:
            completion = _COMPLETION.decode(answer.body)
            choice = completion.choices[0]
        except (ValueError, IndexError, RecursionError) as err:  # ValueError: of msgspec's, and text that is no UTF-8
            raise self._unread(answer, err) from err
        if choice.finish_reason == "content_filter" or (choice.message.refusal and not choice.message.content):
            said = choice.message.refusal or "its content filter stopped the reply"
            told = f"{self._url}, model {self._model!r}: refused: {said[:300]}"
            raise ReplyError(self._key.redact(told), "refused")
        token_ids, logprobs = _tokens(choice)
        return Reply(
            ask_id=ask.id,
            text=_text(choice.message.content),
            model=adapter.model if adapter and adapter.model else self._model,
            adapter=adapter.name if adapter else "",
            finish_reason=FINISH.get(choice.finish_reason, "other"),
            usage=_usage(completion.usage),
            token_ids=token_ids,
            logprobs=logprobs,
            latency_s=latency_s,
        )

    def _unread(self, answer: Answer, err: Exception) -> ReplyError:
        """Some services answer 200 and put the error, with its own status, into the body."""
        data = decoded(answer.body)
        error = data.get("error") if isinstance(data, Mapping) else None
        if isinstance(error, Mapping):
            code = error.get("code")
            status = code if isinstance(code, int) and 400 <= code < 600 else 502
            return openai_error(answer._replace(status=status), self._place)
        return not_a_reply(self._place, answer, err)

    async def _probe(self) -> None:
        """A wrong key or an address where nobody answers is found before the first debate; the list costs nothing."""
        settings = self._settings
        if isinstance(settings, AzureSettings):
            return  # has no such page for a deployment
        base_url = settings.base_url.rstrip("/")
        try:
            answer = await self.client.call("GET", f"{base_url}/models")
        except ReplyError as err:
            raise AgentError(f"model {self._model!r} cannot be reached: {err}") from err
        if answer.status == 401 and b"scope" not in answer.body:  # a key may be for completions alone
            raise AgentError(str(openai_error(answer, self._place)))
        if answer.status == 200:
            self._learn(answer)

    def _learn(self, answer: Answer) -> None:
        """vLLM names all that it serves and how long a text it takes; other services list more, or less."""
        data = decoded(answer.body)
        rows = data.get("data") if isinstance(data, Mapping) else None
        rows = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
        names = [str(row.get("id"))[:80] for row in rows]
        mine = next((row for row in rows if row.get("id") == self._model), None)
        if mine is None and rows and all(row.get("owned_by") == "vllm" for row in rows):
            told = f"{self._url} has no model {self._model!r}; it serves: {', '.join(names[:10])}"
            raise AgentError(self._key.redact(told))
        length = mine.get("max_model_len") if mine else None
        if not self._context_tokens and isinstance(length, int) and length > 0:
            self._context_tokens = length

    @property
    def _takes_adapters(self) -> bool:
        """Models that the service has trained are always taken: they need no loading."""
        return isinstance(self._settings, OpenAISettings) and (self._settings.lora or bool(self._settings.finetune))

    async def load_adapter(self, adapter: AdapterRef) -> None:
        """Raises: AgentError: the server does not take it; ``lora`` is not set; the service has no such model."""
        if not isinstance(settings := self._settings, OpenAISettings) or not (settings.lora or adapter.model):
            raise AgentError(
                f"adapter {adapter.name!r} cannot be served by {self._model!r} at {self._url}; set lora: true if that "
                "is a vLLM server started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
            )
        if adapter.model:
            await self._check_served(adapter)
            return
        answer = await self._manage("load_lora_adapter", lora_name=adapter.name, lora_path=adapter.path)
        if answer.status != 200 and b"already been loaded" not in answer.body:  # a name never has two sets of weights
            raise AgentError(f"adapter {adapter.name!r} is not taken: {openai_error(answer, self._place)}")

    async def _check_served(self, adapter: AdapterRef) -> None:
        try:
            found = await self.serves(adapter.model)
        except ReplyError as err:
            if err.kind in RETRYABLE:
                return  # nobody says no; asks are tried again where need be
            raise
        if not found:
            raise AgentError(
                f"adapter {adapter.name!r}: {self._url} has no model {adapter.model!r} for this key; it may have been "
                "deleted, or belong to another account: train the agent again, or set that account's key"
            )

    async def serves(self, model: str) -> bool:
        """Whether the service has a model of this id, for this key. Raises: ReplyError: it does not say."""
        assert isinstance(self._settings, OpenAISettings)
        url = f"{self._settings.base_url.rstrip('/')}/models/{quote(model, safe=':')}"
        answer = await self.client.call("GET", url)
        if answer.status in (401, 403) and b"scope" in answer.body:
            return True  # a key may be for completions alone: nobody says no
        if answer.status not in (200, 404):
            raise openai_error(answer, self._place)
        return answer.status == 200

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        if adapter.model:
            return  # it stays at its service
        answer = await self._manage("unload_lora_adapter", lora_name=adapter.name)
        if answer.status not in (200, 404):
            raise AgentError(f"adapter {adapter.name!r} stays loaded: {openai_error(answer, self._place)}")

    async def _manage(self, action: str, **body: str) -> Answer:
        assert isinstance(self._settings, OpenAISettings)
        url = f"{self._settings.base_url.rstrip('/')}/{action}"
        return await self.client.call("POST", url, msgspec.json.encode(body))


def _text(content: str | list[_TextPart] | None) -> str:
    if isinstance(content, list):
        return "".join(part.text or "" for part in content if part.type == "text")
    return content or ""


def _tokens(choice: _Choice) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Ids and log-probabilities of the reply's tokens; the latter only where both are told, one for one."""
    token_ids = tuple(choice.token_ids or ())
    told = choice.logprobs.content if choice.logprobs else None
    logprobs = tuple(entry.logprob for entry in told or ())
    return token_ids, logprobs if len(logprobs) == len(token_ids) else ()


def _usage(told: _Usage | None) -> Usage:
    if told is None:
        return Usage()
    prompt, completion = told.prompt_tokens_details, told.completion_tokens_details
    return Usage(
        prompt_tokens=told.prompt_tokens or 0,
        completion_tokens=told.completion_tokens or 0,
        cached_tokens=(prompt.cached_tokens or 0) if prompt else 0,
        image_tokens=(prompt.image_tokens or prompt.multimodal_tokens or 0) if prompt else 0,
        reasoning_tokens=(completion.reasoning_tokens or 0) if completion else 0,
    )
