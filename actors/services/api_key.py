"""Keys of API models: where a recipe says they are, how they are read, and how they stay out of every text.

A recipe is copied into the folder of its run and shown in reports, so it names the place of a key and never the key.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from protocols.errors import ConfigError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_ISSUED = re.compile(r"(?:sk|gsk|pplx|nvapi|xai|pk)[-_][A-Za-z0-9_*-]{8,}|AIza[A-Za-z0-9_-]{20,}|Bearer +\S{8,}")
_SECRET_NAME = re.compile(r"key|token$|secret|password|authorization|bearer", re.IGNORECASE)
_PLACE_NAME = re.compile(r"(?:_env|_file)$")
BEGUN = 8  # characters by which the beginning of a key is known
SECRET = 16  # characters from which on a key is one: servers of one's own want "none", or anything


class ApiKey:
    """A key and where it came from. Its text is only in the header that is made of it."""

    __slots__ = ("_begun", "_value", "place")

    def __init__(self, value: str, place: str) -> None:
        self._value, self.place = value, place
        self._begun = re.compile(re.escape(value[:BEGUN]) + r"[A-Za-z0-9_.+/=~*-]*") if value else None

    def __repr__(self) -> str:
        return f"ApiKey(from {self.place})"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __reduce__(self) -> Any:
        raise TypeError("a key does not leave its process")

    def header(self, prefix: str = "") -> str:
        return prefix + self._value

    def redact(self, text: str) -> str:
        """``text`` without the key, and without what looks like one: services echo a part of the key they refuse, and
        a sentence may be cut in the middle of it."""
        if len(self._value) >= BEGUN and self._begun is not None:
            text = self._begun.sub("[key]", text.replace(self._value, "[key]"))
        return _ISSUED.sub("[key]", text)

    def taken_out(self, text: str) -> str:
        """``text`` without the key, and with all else that it says: for a model's words, which are data."""
        return text.replace(self._value, "[key]") if len(self._value) >= SECRET and self._value in text else text


NO_KEY = ApiKey("", "nowhere")
_READ: list[ApiKey] = []  # by this process


def redact_known(text: str) -> str:
    """``text`` without any key that this process has read, and without what looks like one."""
    for key in _READ or [NO_KEY]:
        text = key.redact(text)
    return text


def read_key(env: str, file: str) -> ApiKey:
    """The key of the variable ``env`` or else of the file; none where neither is named.

    Raises: ConfigError: the variable is not set, the file cannot be read, or what is there is no key.
    """
    if file:
        place = f"the file {file}"
        try:
            value = Path(file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as err:
            said = getattr(err, "strerror", None) or "it is not text"
            raise ConfigError(f"api_key_file={file!r} cannot be read: {said}; put the key there, alone") from err
    elif env:
        place = f"the environment variable {env}"
        value = os.environ.get(env, "").strip()
        if not value:
            raise ConfigError(f"the environment variable {env} is not set: put the key there, or name another place")
    else:
        return NO_KEY
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ConfigError(f"{place} must hold one key, without spaces or line breaks")
    key = ApiKey(value, place)
    _READ.append(key)
    return key


def check_place(env: str | None, file: str) -> None:
    """Raises: ValueError: a key where its place should be named; the text does not repeat it."""
    if env and (not _VARIABLE.fullmatch(env) or _looks_random(env)):
        raise ValueError("api_key_env must name an environment variable, such as OPENAI_API_KEY, and not be the key")
    if file and (_ISSUED.search(file) or _looks_random(file)):
        raise ValueError("api_key_file must name a file that holds the key, and not be the key")


def refuse_literal_keys(section: Any, where: str) -> None:
    """Raises: ConfigError: something in a recipe's model section is a key; the text does not repeat it."""
    if isinstance(section, dict):
        for name, value in section.items():
            at = f"{where}.{name}"
            if _holds_secret(str(name), value):
                raise ConfigError(
                    f"{at}: a recipe never holds a key; set api_key_env to the name of the environment variable that "
                    "does, or api_key_file to a file"
                )
            refuse_literal_keys(value, at)
    elif isinstance(section, list | tuple):
        for value in section:
            refuse_literal_keys(value, where)
    elif isinstance(section, str) and _ISSUED.search(section):
        raise ConfigError(
            f"{where}: a recipe never holds a key; set api_key_env to the name of an environment variable"
        )


def _holds_secret(name: str, value: Any) -> bool:
    if not isinstance(value, str) or not value:
        return False
    if _ISSUED.search(value):
        return True
    if _PLACE_NAME.search(name):
        return _looks_random(value)
    return bool(_SECRET_NAME.search(name))


def _looks_random(text: str) -> bool:
    """Twenty letters and digits in a row, in both kinds and with lower case: no variable is named so."""
    return any(
        sum(map(str.isdigit, run)) >= 3 and any(map(str.islower, run)) for run in re.findall(r"[A-Za-z0-9]{20,}", text)
    )
