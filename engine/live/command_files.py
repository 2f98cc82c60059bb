"""Commands to a run as small files in its folder: the folder is the address, from any machine that sees it.

A commander puts ``control/<when>-<word>.command.json`` there, whole or not at all; the driver takes it away, carries it
out, and puts ``.answer.json`` in its place, which the commander takes. A command is carried out at most once: it is
gone before the driver begins. Files are data that anybody who can write to the folder may have left: they are small,
plain and strictly read, or are answered with what is wrong.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from protocols.errors import ConfigError

log = logging.getLogger("moot.control")

FOLDER = "control"
COMMAND, ANSWER = ".command.json", ".answer.json"
MAX_BYTES = 1 << 16
MAX_TAKEN = 64  # commands a look: whoever floods the folder delays commanders, not debates
MAX_AGE_S = 600.0  # of an answer that nobody has fetched

Verb = Literal["pause", "resume", "drain", "set", "retry"]


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``args``: ``set``'s ``KEY=VALUE``; ``retry``'s tasks, none for all that were set aside."""

    verb: Verb
    args: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, or in one sentence why not."""

    done: dict[str, Any] = {}
    error: str = ""


class Taken(msgspec.Struct, frozen=True):
    """A command that is the driver's now; or, in words, what is wrong with its file."""

    name: str
    command: Command | str


def put(path: Path, data: bytes) -> None:
    """Write a small file that may be lost with the machine, but is never seen half; a link at its place is replaced."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.new")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def post(run: Path, command: Command) -> Path:
    """Returns: the command's file. Raises: ConfigError: the folder cannot be written."""
    path = run / FOLDER / f"{time.time_ns():020d}-{os.urandom(4).hex()}{COMMAND}"
    try:
        path.parent.mkdir(exist_ok=True)
        put(path, msgspec.json.encode(command))
    except OSError as err:
        raise ConfigError(f"{path.parent}: no command can be left there: {err.strerror}") from err
    return path


def fetch_answer(command: Path) -> Answer | None:
    """Take the answer, if there is one. Raises: ConfigError: it cannot be read."""
    path = command.with_name(command.name.removesuffix(COMMAND) + ANSWER)
    try:
        answer = msgspec.json.decode(path.read_bytes(), type=Answer)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as err:
        raise ConfigError(f"{path}: cannot be read: {err}") from err
    with suppress(OSError):  # the driver sweeps up what is left
        path.unlink()
    return answer


def withdraw(command: Path) -> bool:
    """Whether the command was still there: then it is never carried out."""
    try:
        command.unlink()
    except OSError:
        return False
    return True


class Inbox:
    """The driver's end of the folder."""

    def __init__(self, run: Path) -> None:
        self._folder = run / FOLDER
        self._stuck: set[str] = set()  # what cannot be taken away is told of once

    def open(self) -> None:
        """Begin. What was left for an earlier driver is not carried out. Raises: OSError: it cannot be written."""
        self._folder.mkdir(exist_ok=True)
        self.refuse("it was given before this driver began, and is not carried out now")

    def refuse(self, why: str) -> None:
        """Answer all that lies there with the same."""
        while taken := self.take():
            for item in taken:
                self.answer(item, Answer(error=why))

    def take(self) -> list[Taken]:
        """The oldest commands, by their names; they are not in the folder any more."""
        names = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(COMMAND) and entry.name not in self._stuck:
                    names.append(entry.name)
                elif entry.name.endswith((ANSWER, ".new")):
                    _sweep(Path(entry.path))
        return [taken for name in sorted(names)[:MAX_TAKEN] if (taken := self._take(name)) is not None]

    def _take(self, name: str) -> Taken | None:
        path = self._folder / name
        found = _read(path)
        try:
            path.unlink()
        except FileNotFoundError:
            return None  # withdrawn
        except OSError as err:
            self._stuck.add(name)
            log.warning("%s cannot be taken away, and so is not carried out: %s", path, err.strerror)
            return None
        return Taken(name, found)

    def answer(self, taken: Taken, answer: Answer) -> None:
        try:
            put(self._folder / (taken.name.removesuffix(COMMAND) + ANSWER), msgspec.json.encode(answer))
        except OSError as err:
            log.warning("%s: the answer cannot be written: %s", taken.name, err.strerror)


def _read(path: Path) -> Command | str:
    """What it asks for, or what is wrong with it. Nothing that is not a plain file is opened for long."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as err:
        return f"its file cannot be read: {err.strerror}"
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return "it is no plain file"
        data = os.read(fd, MAX_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_BYTES:
        return f"it is larger than {MAX_BYTES} bytes"
    try:
        return msgspec.json.decode(data, type=Command)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as err:
        return f"it is no command: {err}"


def _sweep(path: Path) -> None:
    """Remove what a commander or a driver that died has left."""
    with suppress(OSError):  # somebody else was faster
        if time.time() - path.lstat().st_mtime > MAX_AGE_S:
            path.unlink()
