"""What processes log, as JSON lines: one file a process in the run's ``logs/``, each line with the ids it is about.

A line has ``time`` (UTC), ``level``, ``logger``, ``message``, the ids of the process (``run``, ``arena``, ``host``) and
those of what it was doing (``stage``, ``debate``, ``agent``), and ``error`` with a traceback where there is one. Keys
of services are in none.
"""

from __future__ import annotations

import datetime
import json
import logging
import sys
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import quote

from actors.services.api_key import redact_known
from protocols.message import Ask

IDS = ("stage", "debate", "agent")
ABOUT: ContextVar[Ask | None] = ContextVar("about", default=None)
"""What a task is doing; set where it begins. Elsewhere ``extra={"debate": ...}`` of a call says what it is about."""


class JsonFormatter(logging.Formatter):
    """See the module. ``ids``: those of the process."""

    def __init__(self, ids: dict[str, str]) -> None:
        super().__init__()
        self._ids = ids

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        told: dict[str, object] = {"time": at, "level": record.levelname.lower(), "logger": record.name}
        told |= self._ids
        if (ask := ABOUT.get()) is not None:
            told |= {"debate": ask.debate_id, "agent": ask.agent}
        told |= {name: getattr(record, name) for name in IDS if hasattr(record, name)}
        told["message"] = redact_known(record.getMessage())
        if record.exc_info:
            told["error"] = redact_known(self.formatException(record.exc_info))
        told |= getattr(record, "figures", {})
        return json.dumps(told, ensure_ascii=False, default=str)


def log_to_file(folder: Path, process: str, **ids: str) -> None:
    """From now on this process keeps what moot logs in ``<folder>/<process>.jsonl``. Warnings are shown on stderr as
    before. Calling it for another run lets go of the one before. A disk that takes no log does not stop a run."""
    name = quote(process, safe="").replace(".", "%2E")
    handler = _File(folder / f"{name}.jsonl", encoding="utf-8", delay=True)
    handler.setFormatter(JsonFormatter(ids))
    ours = logging.getLogger("moot")
    for before in [item for item in ours.handlers if isinstance(item, logging.FileHandler)]:
        ours.removeHandler(before)
        before.close()
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    if not any(isinstance(item, _Shown) for item in ours.handlers):
        ours.addHandler(_Shown())


def log_to_stderr(**ids: str) -> None:
    """From now on this process tells all that moot logs on stderr, as JSON lines."""
    ours = logging.getLogger("moot")
    shown = _Shown(logging.INFO)
    shown.setFormatter(JsonFormatter(ids))
    for before in [item for item in ours.handlers if isinstance(item, _Shown)]:
        ours.removeHandler(before)
    ours.addHandler(shown)
    ours.setLevel(logging.INFO)


class _File(logging.FileHandler):
    """Says once that it cannot be written."""

    _said = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self.stream is None:
                Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
            super().emit(record)
        except OSError:  # it cannot be opened; what cannot be written comes here by itself
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is Python's
        if not self._said:
            self._said = True
            sys.stderr.write(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}; the run goes on\n")


class _Shown(logging.StreamHandler):  # type: ignore[type-arg]
    """Python shows warnings by itself only for as long as nobody else takes them."""

    def __init__(self, level: int = logging.WARNING) -> None:
        super().__init__(sys.stderr)
        self.setLevel(level)
