"""What the backends of API models have in common: a key, a pooled client, one request a try, figures.

A subclass says how an ask becomes a request and how an answer becomes a reply. No retry, queue or limit is here. The
host sets ``on_rate`` and ``read_image``.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from actors.limits.gate import OnRate, RateHint
from actors.models.backend import AdapterRef, BackendInfo
from actors.models.images import Base64Images, ReadImage
from actors.services.api_errors import Place
from actors.services.api_key import NO_KEY, ApiKey, check_place, read_key
from actors.services.batch_book import BatchSettings
from actors.services.http_client import Answer, JsonClient
from protocols.bounds import MAX_CONCURRENCY, UP, check_bounds
from protocols.errors import AgentError, ConfigError, ReplyError
from protocols.message import Ask, ImagePart, Reply, Usage

_ENCODER = msgspec.json.Encoder()
OURS = frozenset({"messages", "model", "n", "stream", "system"})  # what extra_body may not change


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every API model has. The key is named by its place, never written here."""

    api_key_env: str | None = None  # default: the service's usual one
    api_key_file: str = ""
    images: bool = False  # whether the model sees
    max_concurrency: int = 64  # asks in flight at once
    context_tokens: int = 0  # for display; 0: not known
    headers: dict[str, str] = {}
    extra_body: dict[str, Any] = {}  # further fields of every request, such as thinking
    batch: BatchSettings | None = None  # asks go through the service's batches, at half the price and within a day

    def __post_init__(self) -> None:
        check_place(self.api_key_env, self.api_key_file)
        check_bounds(self, max_concurrency=(1, MAX_CONCURRENCY), context_tokens=(0, UP))
        if not all(text.isascii() and text.isprintable() for pair in self.headers.items() for text in pair):
            raise ValueError("headers must be plain text, each on one line")
        if taken := sorted(OURS & self.extra_body.keys()):
            raise ValueError(f"extra_body must not hold {', '.join(taken)}: the ask says that")

    @property
    def key_env(self) -> str:
        """The variable that holds the key; "" where none is needed."""
        return self.api_key_env or ""

    @property
    def own_form(self) -> bool:
        """Whether the settings say what form replies take, so that no ask can."""
        return False


def leaves_form_open(settings: ApiSettings) -> bool:
    """Whether a reply can be held to its ask's schema."""
    return not settings.own_form


def check_key(settings: ApiSettings) -> None:
    """Raises: ConfigError: the key is not where the settings say."""
    read_key(settings.key_env, settings.api_key_file)


def default_limits(settings: ApiSettings) -> Mapping[str, float]:
    return settings.batch.limits if settings.batch else {}


def checked_url(name: str, url: str) -> str:
    """An address without its last slash. Raises: ValueError: it is none, or it holds a password."""
    if "@" in re.split("[/?#]", url.partition("//")[2])[0]:  # first: no other error may show it
        raise ValueError(f"{name} must not hold a name or a password; set api_key_env")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or parts.scheme not in ("http", "https") or not parts.hostname:
        shown = "" if "@" in url else f"={url!r}"  # it may be a password's
        raise ValueError(f"{name}{shown} must be an address such as https://host/v1, its port, if any, from 1 to 65535")
    return url.rstrip("/")


class ApiBackend:
    """See the module. ``on_rate`` is told what response headers say of the account's limits."""

    def __init__(self, settings: ApiSettings, read_image: ReadImage | None = None) -> None:
        self.on_rate: OnRate | None = None
        self.read_image = read_image
        self._images = Base64Images()
        self._takes_images = settings.images
        self._max_concurrency = settings.max_concurrency
        self._context_tokens = settings.context_tokens
        self._key_env, self._key_file = settings.key_env, settings.api_key_file
        self._headers = dict(settings.headers)
        self._key = NO_KEY
        self._client: JsonClient | None = None
        self._counts = Counter[str]()

    # what a subclass says
    @property
    def _url(self) -> str:
        raise NotImplementedError

    @property
    def _model(self) -> str:
        raise NotImplementedError

    def _auth(self, key: ApiKey) -> dict[str, str]:
        raise NotImplementedError

    def _request(self, ask: Ask, adapter: AdapterRef | None) -> dict[str, Any]:
        raise NotImplementedError

    def _read(self, answer: Answer, ask: Ask, adapter: AdapterRef | None, latency_s: float) -> Reply:
        raise NotImplementedError

    def _rates(self, headers: Mapping[str, str]) -> RateHint | None:
        raise NotImplementedError

    def refusal(self, answer: Answer) -> ReplyError:
        """What an answer means that is no reply."""
        raise NotImplementedError

    async def _probe(self) -> None:
        """Ask the service for what costs nothing. Raises: AgentError: it will not answer asks either."""

    async def start(self) -> BackendInfo:
        """Raises: AgentError: the key is not there or not accepted, or nobody answers."""
        if self._client is None:
            self.connect()
            try:
                await self._probe()
            except BaseException:
                await self.close()
                raise
        return BackendInfo(
            model=self._model,
            context_tokens=self._context_tokens,
            max_concurrency=self._max_concurrency,
            takes_images=self._takes_images,
            takes_adapters=self._takes_adapters,
        )

    def connect(self) -> None:
        """Read the key; nobody is asked anything yet. Raises: AgentError: it is not there."""
        try:
            self._key = read_key(self._key_env, self._key_file)
        except ConfigError as err:
            raise AgentError(f"model {self._model!r}: {err}") from err
        headers = self._headers | (self._auth(self._key) if self._key else {})
        self._client = JsonClient(self._url, headers=headers, key=self._key)

    @property
    def _takes_adapters(self) -> bool:
        return False

    @property
    def account(self) -> str:
        """Whose limits asks count against: the service, the place of the key, the model."""
        return f"{urlsplit(self._url).netloc} {self._key_file or self._key_env or '-'} {self._model}"

    @property
    def _place(self) -> Place:
        return Place(self._url, self._model, self._key)

    def redact(self, text: str) -> str:
        """A service's own words, cleared of keys."""
        return self._key.redact(text)

    @property
    def client(self) -> JsonClient:
        """The connection to the service, with its key. Raises: ReplyError: there is none."""
        if self._client is None:
            raise ReplyError(f"the backend of {self._model} is not started, or closed already")
        return self._client

    async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
        client = self.client
        body = self.encode(ask, adapter)
        self._counts["requests"] += 1
        began = time.monotonic()
        answer = await client.post(body)
        if self.on_rate is not None and (hint := self._rates(answer.headers)) is not None:
            self.on_rate(hint)
        return self.decode(answer, ask, adapter, time.monotonic() - began)

    def encode(self, ask: Ask, adapter: AdapterRef | None) -> bytes:
        """The body of an ask's request. Raises: ReplyError: the ask cannot be sent."""
        return _ENCODER.encode(self._request(ask, adapter))

    def decode(self, answer: Answer, ask: Ask, adapter: AdapterRef | None, latency_s: float) -> Reply:
        """The reply in an answer. Raises: ReplyError: it is a refusal, or cannot be read."""
        if answer.status != 200:
            raise self.refusal(answer)
        reply = self._read(answer, ask, adapter, latency_s)
        self._count(reply.usage)
        if (text := self._key.taken_out(reply.text)) != reply.text:  # its tokens would spell the key
            return msgspec.structs.replace(reply, text=text, token_ids=(), logprobs=())
        return reply

    def _count(self, usage: Usage) -> None:
        counts = self._counts
        counts["replies"] += 1
        counts["prompt_tokens"] += usage.prompt_tokens
        counts["completion_tokens"] += usage.completion_tokens
        counts["cached_tokens"] += usage.cached_tokens

    def _base64(self, part: ImagePart) -> str:
        if not self._takes_images:
            raise ReplyError(
                f"an ask carries an image, but {self._model} is set to read only text; set images: true if it sees",
                "malformed",
            )
        return self._images.get(part, self.read_image)

    async def load_adapter(self, adapter: AdapterRef) -> None:
        raise AgentError(f"adapter {adapter.name!r} cannot be served by {self._model} at {self._url}")

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        return None

    def metrics(self) -> dict[str, float]:
        """``requests`` sent, ``replies`` read, their ``prompt_tokens``, ``completion_tokens`` and ``cached_tokens``."""
        names = ("requests", "replies", "prompt_tokens", "completion_tokens", "cached_tokens")
        return {name: float(self._counts[name]) for name in names}

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def not_a_reply(place: Place, answer: Answer, err: Exception) -> ReplyError:
    """A status 200 whose body is no reply: a proxy's page, or a text that was cut."""
    kind = answer.headers.get("Content-Type", "no content type")[:60]
    said = f"{place.url}: status 200, but no reply could be read ({kind}): {str(err)[:200]}"
    return ReplyError(place.key.redact(said))
