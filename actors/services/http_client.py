"""JSON over HTTP with as little work per call as possible: one pooled session of aiohttp to one service.

It has no retry, limit or total timeout of its own: the agent host owns those, and cancelling a call frees its
connection. Certificates are always checked, redirects never followed (the key would go along), and proxies come from
the environment.
"""

from __future__ import annotations

import email.utils
import io
import math
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from actors.services.api_key import ApiKey
from protocols.errors import ReplyError

if TYPE_CHECKING:
    import aiohttp
    from yarl import URL

KEEP_ALIVE_S = 30.0
CONNECT_S = 20.0  # of one connection; the reply's own limit is the host's
DNS_CACHE_S = 300
MAX_REPLY_BYTES = 64 * 2**20
LARGE_BODY_BYTES = 2**20  # from here on aiohttp sends a body piece by piece
MAX_RETRY_AFTER_S = 86_400.0

_LOGIN = re.compile(r"\S{1,300}@")
_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?")


class Answer(NamedTuple):
    """What a service sent back. ``headers`` takes names in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class JsonClient:
    """See the module. Everything a call needs is made once, when the first one is made."""

    def __init__(self, url: str, *, headers: Mapping[str, str], key: ApiKey) -> None:
        self._url, self._key = url, key
        self._headers = {"Content-Type": "application/json", "User-Agent": "moot", **headers}
        self._session: aiohttp.ClientSession | None = None
        self._target: URL | None = None
        self._proxy: str | None = None

    async def post(self, body: bytes) -> Answer:
        """Send one request. Raises: ReplyError: no whole answer came; ``transient`` unless the address is wrong."""
        return await self._call("POST", None, body)

    async def call(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        *,
        content_type: str = "",
        max_bytes: int = MAX_REPLY_BYTES,
    ) -> Answer:
        """The same to another address of the service, and with a body that is no JSON where ``content_type`` says so.

        Args:
            max_bytes: of the answer.
        """
        return await self._call(method, url, body, content_type, max_bytes)

    async def _call(
        self, method: str, url: str | None, body: bytes | None, content_type: str = "", max_bytes: int = MAX_REPLY_BYTES
    ) -> Answer:
        import aiohttp

        session, target = self._opened()
        data = io.BytesIO(body) if body and len(body) > LARGE_BODY_BYTES else body
        headers = {"Content-Type": content_type} if content_type else None
        try:
            async with session.request(
                method, url or target, data=data, headers=headers, allow_redirects=False, proxy=self._proxy
            ) as response:
                return Answer(response.status, response.headers, await _read(response, max_bytes))
        except (aiohttp.ClientConnectorCertificateError, aiohttp.InvalidURL) as err:
            raise ReplyError(self._failed(err), "authentication") from err
        except aiohttp.ClientPayloadError as err:  # its own words are about lengths and headers
            raise ReplyError(f"{urlsplit(self._url).netloc}: no answer: it broke off before its end") from err
        except (aiohttp.ClientError, OSError) as err:
            raise ReplyError(self._failed(err)) from err

    def _opened(self) -> tuple[aiohttp.ClientSession, URL]:
        if self._session is None or self._target is None:
            import aiohttp
            from yarl import URL

            self._target = URL(self._url)
            self._proxy = proxy_for(self._url)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=DNS_CACHE_S, keepalive_timeout=KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
            )
        return self._session, self._target

    def _failed(self, err: Exception) -> str:
        said = _LOGIN.sub("", str(err))[:200]  # a proxy's name and password, however they are written
        return self._key.redact(f"{urlsplit(self._url).netloc}: no answer: {type(err).__name__}: {said}")

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    length = response.content_length
    if length is not None and length <= max_bytes and "Content-Encoding" not in response.headers:
        return await response.read()
    pieces, size_bytes = [], 0
    async for piece in response.content.iter_any():  # not to be filled up by a reply without end
        pieces.append(piece)
        size_bytes += len(piece)
        if size_bytes > max_bytes:
            raise ReplyError(f"{response.url.host}: an answer of more than {max_bytes} bytes was cut off")
    return b"".join(pieces)


def proxy_for(url: str) -> str | None:
    """The proxy that the environment names for an address; looked up once, as each look reads every variable."""
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return None if not proxy or proxy_bypass(parts.hostname or "") else proxy


def retry_after_s(headers: Mapping[str, str], *, now_s: float | None = None) -> float | None:
    """The wait a service asks for, in seconds, at most a day; None where it asks for none that can be read.

    Args:
        now_s: seconds since the epoch, for a wait given as a date; default: the clock.
    """
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        if (text := headers.get(name)) is not None:
            try:
                wait_s = float(text) * unit_s
            except ValueError:
                wait_s = _until(text, now_s)
            if not math.isnan(wait_s):
                return min(max(wait_s, 0.0), MAX_RETRY_AFTER_S)
    return None


def _until(text: str, now_s: float | None) -> float:
    try:
        moment = email.utils.parsedate_to_datetime(text[:64])
        return moment.timestamp() - (time.time() if now_s is None else now_s)
    except (ValueError, OverflowError, OSError, IndexError):
        return math.nan


def duration_s(text: str) -> float | None:
    """Seconds of a stretch such as ``6m0s``, ``1.5s`` or ``20ms``; None where it is written otherwise."""
    found = _DURATION.fullmatch(text.strip()[:40])
    if not found or not any(found.groups()):
        return None
    hours, minutes, seconds, millis = (float(group or 0) for group in found.groups())
    return hours * 3600 + minutes * 60 + seconds + millis / 1000
