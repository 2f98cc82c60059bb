"""The rest of a run's folder beside its journals, copied while the run goes; and a whole folder made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import msgspec

from engine.config.recipe import RunSettings
from engine.record.folder import LOCK_WAIT_S, Manifest, RunFolder
from engine.record.mirror import place_of, restore_journal
from engine.record.store import Copier, Store
from protocols.errors import ConfigError, JournalError

LEFT_OUT = ("journal", "train")  # journals go in segments; feeds and checkpoints are made again from them
FILES = "files"


@contextmanager
def mirrored(folder: RunFolder, settings: RunSettings, note: Callable[[str], None]) -> Iterator[None]:
    """Copy the run's small files for as long as the block lasts, and what is left at its end.

    Raises: ConfigError: the store cannot be reached, or holds another run of this name.
    """
    if not settings.mirror:
        yield
        return
    store = Store(f"{settings.mirror.rstrip('/')}/{folder.path.absolute().name}")
    try:
        found = _manifest(store) if f"{FILES}/run.json" in store.names() else None
    except Exception as err:  # whatever the store's client raises: now is the time to say so
        raise ConfigError(f"run.mirror={settings.mirror!r}: cannot be read: {type(err).__name__}: {err}") from err
    ours = (folder.manifest.id, folder.manifest.started_at)
    if found is not None and (found.id, found.started_at) != ours:
        raise ConfigError(f"{store.url} holds another run of this name; choose another --run-dir or run.mirror")
    seen: dict[Path, tuple[int, int]] = {}
    copier = Copier(f"{folder.path}", lambda: _copy(store, folder.path, seen), every_s=settings.mirror_every_s)
    try:
        yield
    finally:
        if not copier.close():
            note(f"not all of {folder.path} is in {store.url}: {copier.error or 'the store takes too long'}")


def _copy(store: Store, folder: Path, seen: dict[Path, tuple[int, int]]) -> None:
    """What has changed since it was last copied."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if name.parts[0] in LEFT_OUT or path.name.startswith(".") or path.suffix == ".lock" or not path.is_file():
            continue
        state = path.stat()
        if seen.get(path) != (now := (state.st_mtime_ns, state.st_size)):
            store.upload(f"{FILES}/{name.as_posix()}", str(path))
            seen[path] = now


def restore_folder(url: str, target: Path | None) -> tuple[Path, int]:
    """A run's folder as it was copied: whole or not at all. Returns: where it is, and how many events it holds.

    Raises: ConfigError: there is no run, or the folder is there. JournalError: a segment is missing or damaged.
    """
    store = Store(url)
    names = store.names()
    if f"{FILES}/run.json" not in names:
        raise ConfigError(f"{url} holds no run; give `run.mirror`/NAME, where NAME is that of the run's folder")
    target = target or Path("runs") / store.url.rpartition("/")[2]
    if target.exists():
        raise ConfigError(f"--run-dir {target}: is there already; choose another, or `moot resume` that one")
    draft = target.with_name(f".{target.name}.restoring")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        for name in names:
            if name.startswith(f"{FILES}/"):
                file = draft / _inside(name.removeprefix(f"{FILES}/"))
                file.parent.mkdir(parents=True, exist_ok=True)
                store.download(name, str(file))
        events = sum(
            restore_journal(f"{store.url}/{name}", draft / _inside(f"{name}.sqlite")) for name in _journals(names)
        )
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target, events


def fetch_missing(folder: RunFolder, mirror: str) -> list[Path]:
    """Put into the run's journals what the mirror has and they have not. Returns: those. Raises: JournalError.

    An arena whose driver has just died holds its journal for a moment yet, and is waited for.
    """
    store = Store(f"{mirror.rstrip('/')}/{folder.path.absolute().name}")
    try:
        names = store.names("journal")
    except Exception as err:
        raise JournalError(f"run.mirror={mirror!r}: cannot be read: {type(err).__name__}: {err}") from err
    paths = [folder.path / _inside(f"{name}.sqlite") for name in _journals(names)]
    return [path for path in paths if restore_journal(place_of(mirror, path), path, lock_wait_s=LOCK_WAIT_S)]


def _journals(names: list[str]) -> list[str]:
    """``journal/STAGE/ARENA`` of every segment."""
    return sorted(
        {name.rpartition("/")[0] for name in names if name.startswith("journal/") and name.endswith(".segment")}
    )


def _inside(name: str) -> PurePosixPath:
    """Raises: ConfigError: a name that leads out of the folder; a store may hold anything."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"the mirror holds {name!r}, which is no file of a run")
    return path


def _manifest(store: Store) -> Manifest:
    return msgspec.json.decode(store.get(f"{FILES}/run.json"), type=Manifest)
