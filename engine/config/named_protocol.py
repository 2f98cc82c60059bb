"""Protocols by the name that a recipe gives them: moot's own, or anybody's."""

from __future__ import annotations

import importlib

from protocols.catalogue import PROTOCOLS, checked
from protocols.conversation import Conversation
from protocols.errors import ConfigError


def find_protocol(name: str) -> type[Conversation]:
    """A protocol of moot's by its name, or anybody's as ``package.module:Class``, imported and checked.

    Raises: ConfigError: there is none, or its contract does not hold.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"no protocol {name!r}; use one of: {', '.join(PROTOCOLS)}, or package.module:Class")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as err:
        raise ConfigError(f"protocol {name!r}: cannot import {module!r}: {err}; is it on PYTHONPATH?") from err
    except Exception as err:  # it is the user's code that runs here
        raise ConfigError(f"protocol {name!r}: importing {module!r} failed: {type(err).__name__}: {err}") from err
    if not (isinstance(found, type) and issubclass(found, Conversation)):
        raise ConfigError(f"protocol {name!r}: {module!r} has no Conversation called {attribute!r}")
    return checked(found)
