"""Replies out of a run that is over: nothing is asked of a model, nothing is paid, and the same comes back every time.

For running what was paid for once under another protocol's tail, another judge or another analysis. An ask is answered
where the run holds one of the same agent in the same role with the same messages, word for word; how the reply was
drawn is not on record and does not count. Of several such asks the one with the same id is taken; else the one of the
same task and turn under another stage; else one that the ask's id picks, always the same. A debate keeps what was asked
once it is closed, so those still open are not read.

The journals are read where they lie, by SQLite and the graph's own decoder: the record stays the one truth, and no file
has to be exported first and kept in step.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec

from actors.models.backend import AdapterRef, BackendInfo
from protocols.errors import AgentError, ConfigError, GraphError, ReplyError
from protocols.graph import Debate, decode_debate
from protocols.machine import derive_seed
from protocols.message import Ask, Message, Reply

PAGES = {  # schema version of the journals this reads -> (number, graph) of some closed debates after a number
    "1": "SELECT num, graph FROM debates WHERE num > ? AND graph IS NOT NULL ORDER BY num LIMIT ?",
    "2": "SELECT num, body FROM graphs WHERE num > ? ORDER BY num LIMIT ?",
}
PAGE = 64  # graphs in memory at once

_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


class RecordedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the replies are."""

    run: str  # a run's folder
    stage: str = ""  # one stage's alone, such as debate-1; "": all

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("run='' must be the folder of a run")
        if self.stage != Path(self.stage).name:
            raise ValueError(f"stage={self.stage!r} must be the name of a stage, such as debate or debate-1")


class RecordedBackend:
    """See the module. ``hits`` and ``misses`` are among its figures."""

    def __init__(self, settings: RecordedSettings) -> None:
        self._settings = settings
        self._replies: dict[bytes, list[tuple[str, Reply]]] = {}  # what was asked -> ask id and reply, in order of ids
        self._hits = self._misses = 0

    async def start(self) -> BackendInfo:
        self._replies = await asyncio.to_thread(read_replies, self._settings)
        return BackendInfo(
            model=f"recorded:{Path(self._settings.run).name}",
            context_tokens=2**31,
            max_concurrency=1_000_000,
            takes_images=True,
        )

    async def generate(self, ask: Ask, adapter: AdapterRef | None) -> Reply:
        found = self._replies.get(_digest(ask.agent, ask.role, ask.messages))
        if not found:
            self._misses += 1
            raise ReplyError(
                f"{self._settings.run} holds no reply of {ask.agent!r} as {ask.role} to what ask {ask.id} says; give "
                "the agents that are asked something new a model of another backend",
                "malformed",
            )
        self._hits += 1
        reply = _choose(found, ask.id)
        return msgspec.structs.replace(
            reply, ask_id=ask.id, latency_s=0.0, tries=1, attempts=(), cost_usd=0.0, cached=False
        )

    async def load_adapter(self, adapter: AdapterRef) -> None:
        raise AgentError(
            f"adapter {adapter.name!r} cannot speak through replies on record; learn from them with `moot train`, and "
            "evaluate with a model"
        )

    async def unload_adapter(self, adapter: AdapterRef) -> None:
        return None

    def metrics(self) -> dict[str, float]:
        """``replies`` on record, ``hits``, ``misses``."""
        on_record = sum(map(len, self._replies.values()))
        return {"replies": float(on_record), "hits": float(self._hits), "misses": float(self._misses)}

    async def close(self) -> None:
        return None


def _choose(found: list[tuple[str, Reply]], ask_id: str) -> Reply:
    """Of replies to the same words, the one that fits the id best."""
    told = dict(found)
    if ask_id in told:
        return told[ask_id]
    same_turn = [reply for recorded, reply in found if _turn(recorded) == _turn(ask_id)]
    return same_turn[0] if same_turn else found[derive_seed(0, ask_id) % len(found)][1]


def _turn(ask_id: str) -> str:
    """An ask's id without its stage."""
    return ask_id.partition("/")[2]


def _digest(agent: str, role: str, messages: tuple[Message, ...]) -> bytes:
    return hashlib.blake2b(_ENCODER.encode((agent, role, messages)), digest_size=16).digest()


def check_run(settings: RecordedSettings) -> None:
    """Raises: ConfigError: there is no such run, or it has no such stage."""
    journals(settings)


def journals(settings: RecordedSettings) -> list[Path]:
    """The journals that hold the replies. Raises: ConfigError: there are none."""
    folder = Path(settings.run).expanduser()
    if not (folder / "run.json").is_file():
        raise ConfigError(f"run={settings.run!r} is not a run's folder; `moot list` names the runs")
    stages = sorted(path.name for path in (folder / "journal").glob("*") if path.is_dir())
    if settings.stage and settings.stage not in stages:
        raise ConfigError(f"stage={settings.stage!r} is not one of {settings.run}; there is: {', '.join(stages)}")
    found = sorted((folder / "journal").glob(f"{settings.stage or '*'}/*.sqlite"))
    if not found:
        raise ConfigError(f"run={settings.run!r} has no journal: it held no debates")
    return found


def read_replies(settings: RecordedSettings) -> dict[bytes, list[tuple[str, Reply]]]:
    """What was asked, as a digest -> ask ids and replies, sorted by id.

    Raises: AgentError: there is no such run, it is damaged, or no debate of it is closed.
    """
    found: dict[bytes, list[tuple[str, Reply]]] = defaultdict(list)
    try:
        for path in journals(settings):
            for debate in _debates(path):
                for node in debate.utterances:
                    said = _digest(node.agent, node.role, tuple(debate.conversation(node.id)))
                    found[said].append((node.reply.ask_id, node.reply))
    except ConfigError as err:
        raise AgentError(str(err)) from err
    if not found:
        raise AgentError(f"{settings.run} holds no closed debate; finish it with `moot resume {settings.run}`")
    return {said: sorted(replies, key=lambda item: item[0]) for said, replies in found.items()}


def _debates(path: Path) -> Iterator[Debate]:
    """The closed debates of one journal. Raises: AgentError: not a journal that this moot reads."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            found = db.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
            version = found[0] if found else None
            if version not in PAGES:
                raise AgentError(f"journal {path} is of schema {version}; read it with the moot that wrote it")
            last, page = 0, PAGES[version]
            while rows := db.execute(page, (last, PAGE)).fetchall():
                last = rows[-1][0]
                yield from (decode_debate(graph) for _, graph in rows)
    except (sqlite3.Error, GraphError) as err:
        raise AgentError(f"journal {path}: cannot be read: {err}") from err
