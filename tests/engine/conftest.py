"""What every test of the engine is run under."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _keep_signals() -> Iterator[None]:
    """A command makes SIGTERM an interruption, as it is a process of its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
