"""Debates from files of other systems: ``moot import`` makes a run's folder of them, as if they had been held here.

What a format says is decided in ``protocols.formats``; here files are opened and the folder is made, whole or not at
all. Debates pass one by one: only a file that is one JSON value is ever held whole.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from engine.live.progress import Progress
from engine.loop import keep_statistics
from engine.record.folder import Manifest, RunFolder, machine_description, new_run_path, versions, write_atomically
from engine.record.journal import CloseEntry, EventEntry, Journal, read_graphs
from engine.results.evaluate import evaluate
from protocols.errors import ConfigError
from protocols.formats.common import parse_json, parse_lines, renamed
from protocols.formats.llava import mixture, read_conversation, read_llava, read_mixture_file, sample
from protocols.formats.m2d import read_m2d
from protocols.formats.mad import read_mad
from protocols.formats.maft import read_maft
from protocols.formats.mag import read_mag
from protocols.formats.magdi import read_magdi
from protocols.graph import Debate, decode_debate, encode_debate
from protocols.machine import Opened, derive_seed

STAGE = "debate"  # where an import's debates lie, as those of `moot run` do
BATCH = 256  # debates a commit

Outcome = dict[str, Any]
Reader = Callable[[Path, int], Iterable[Debate]]
"""Reads a file. The number seeds what is drawn on the way."""


def import_run(form: str, paths: Sequence[Path], run_dir: Path | None, *, seed: int = 0, progress: Progress) -> Outcome:
    """Make a run's folder that holds the debates of some files.

    A task id that comes again gets a number behind it, by the order of the files: nothing collapses.

    Args:
        paths: files, or folders of ``.json``, ``.jsonl``, ``.yaml`` files.
        run_dir: default: a new folder in ``runs``.
        seed: of what a LLaVA mixture draws.
    Raises: ConfigError: no such format, a file that cannot be read or is wrong, or a folder that is not empty; nothing
        is left behind.
    """
    if form not in READERS:
        raise ConfigError(f"cannot import {form!r}; use one of: {', '.join(READERS)}")
    if run_dir is None:
        _, run_dir = new_run_path(Path("runs"), f"{form}-import")
    if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
        raise ConfigError(f"--run-dir {run_dir}: is there already; an import makes a folder of its own, choose another")
    files = [file for path in paths for file in _files(path)]
    missing = [parent for parent in run_dir.absolute().parents if not parent.exists()]
    draft = run_dir.with_name(f".{run_dir.name}.importing-{os.getpid()}")
    began = time.monotonic()
    debates = (debate for file in files for debate in READERS[form](file, seed))
    try:
        folder = RunFolder.create(draft, _manifest(form, files, run_dir))
        try:
            outcome = _fill(folder, _unique(debates), run_dir, began)
        finally:
            folder.release()
        draft.replace(run_dir)
    except BaseException as err:
        shutil.rmtree(draft, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # somebody else may have put something there meanwhile
                parent.rmdir()
        if isinstance(err, OSError):
            raise ConfigError(f"--run-dir {run_dir}: cannot be written: {err.strerror}") from err
        raise
    progress.note(f"run {run_dir}")
    return outcome


def _manifest(form: str, files: Sequence[Path], run_dir: Path) -> Manifest:
    digest = hashlib.blake2b(form.encode(), digest_size=8)
    for file in files:
        with _opened(file) as data:
            while block := data.read(1 << 20):
                digest.update(block)
    name = "".join(letter for letter in run_dir.absolute().name if letter.isalnum() or letter in "-_.")
    return Manifest(
        id=name or f"{form}-import",
        kind="import",
        name=f"{form}-import",
        fingerprint=digest.hexdigest(),
        num_arenas=1,
        recipe={},
        recipe_path="",
        started_at=time.time(),
        machine=machine_description(),
        versions=versions(),
    )


def _fill(folder: RunFolder, debates: Iterator[Debate], final: Path, began: float) -> Outcome:
    """Write journal, results and manifest, as a run leaves them."""
    (journal_path,) = folder.journals(STAGE)
    journal_path.parent.mkdir(parents=True)
    summary: dict[str, Any] = {"debates": 0, "set_aside": [], "wall_s": 0.0, "replies": 0}
    usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "cached_tokens"), 0)
    journal = Journal(journal_path, fingerprint=folder.manifest.fingerprint)
    try:
        while batch := list(islice(debates, BATCH)):
            journal.commit(entry for debate in batch for entry in _entries(debate))
            summary["debates"] += len(batch)
            summary["replies"] += sum(len(debate.utterances) for debate in batch)
    finally:
        journal.close()
    if not summary["debates"]:
        raise ConfigError("there is no debate in what is to be imported")
    summary |= usage | {"new": {"debates": 0, "replies": 0, "completion_tokens": 0}}  # nothing was generated here
    found = evaluate(map(decode_debate, read_graphs(journal_path)))
    keep_statistics(folder, STAGE, map(decode_debate, read_graphs(journal_path)))
    _write_json(folder.path / "results" / f"{STAGE}.json", found)
    outcome: Outcome = {"run": str(final)} | {key: summary[key] for key in ("debates", "replies")}
    outcome["wall_s"] = round(time.monotonic() - began, 2)
    _write_json(folder.path / "results.json", outcome)
    folder.manifest.finished_at = time.time()
    folder.mark_done(STAGE, summary)
    return outcome


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, msgspec.json.format(msgspec.json.encode(value), indent=2))


def _entries(debate: Debate) -> Iterator[EventEntry | CloseEntry]:
    now = time.time()
    yield EventEntry(debate.id, 0, now, Opened(debate_id=debate.id, task=debate.task, seed=debate.seed))
    yield CloseEntry(debate.id, now, encode_debate(debate))


def _unique(debates: Iterable[Debate]) -> Iterator[Debate]:
    """Debates whose task ids are all different, by a number behind each that was there before."""
    taken: set[str] = set()
    numbers: dict[str, int] = {}
    for debate in debates:
        task_id = base = debate.task.id
        while task_id in taken:
            numbers[base] = numbers.get(base, 1) + 1
            task_id = f"{base}-{numbers[base]}"
        taken.add(task_id)
        yield debate if task_id == base else renamed(debate, task_id)


# Files


def _files(path: Path) -> list[Path]:
    """A file, or those of a folder in the order of their names, numbers by their value."""
    if not path.is_dir():
        return [path]
    found = [file for file in path.iterdir() if file.suffix.lower() in (".json", ".jsonl", ".yaml", ".yml")]
    if not found:
        raise ConfigError(f"{path}: holds no .json, .jsonl or .yaml file to import")
    return sorted(found, key=lambda file: (len(file.stem), file.name) if file.stem.isdigit() else (1 << 30, file.name))


def _opened(path: Path) -> Any:
    """Raises: ConfigError: it cannot be read."""
    try:
        return path.open("rb")
    except OSError as err:
        raise ConfigError(f"cannot read {path}: {err.strerror}; give the path from where moot is started") from err


def _text(path: Path) -> str:
    with _opened(path) as file:
        try:
            return bytes(file.read()).decode("utf-8-sig")
        except UnicodeDecodeError as err:
            raise ConfigError(f"{path}: is not UTF-8 text (byte {err.start}); save it as UTF-8") from err
        except OSError as err:
            raise ConfigError(f"cannot read {path}: {err.strerror}") from err


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file, one by one."""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as err:
                raise ConfigError(f"{path}, line {number}: is not UTF-8 text; save the file as UTF-8") from err


def _mad(path: Path, seed: int) -> Iterator[Debate]:
    """A log's name is its item's: kept, so that an export can use it again."""
    for debate in read_mad(_text(path), str(path)):
        details = debate.task.details | {"file": path.stem}
        debate.task = msgspec.structs.replace(debate.task, details=details)
        yield debate


def _llava(path: Path, seed: int) -> Iterator[Debate]:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        yield from (read_conversation(item, place) for place, item in parse_lines(_lines(path), str(path)))
    elif suffix in (".yaml", ".yml"):
        for file, strategy in _mixture(path):
            items = _items(file)
            drawn = sample(list(enumerate(items, 1)), strategy, derive_seed(seed, file.name))
            yield from (read_conversation(item, f"{file}, item {number}") for number, item in drawn)
    else:
        yield from read_llava(_text(path), str(path))


def _mixture(path: Path) -> list[tuple[Path, str]]:
    """The files of a mixture, found beside it or from where moot is started."""
    import yaml

    from engine.config.recipe_yaml import NotYAMLError, parse_yaml

    try:
        parsed = parse_yaml(_text(path), yaml.SafeLoader)
    except NotYAMLError as err:
        raise ConfigError(f"{path}{f', line {err.line}' if err.line else ''}: is not valid YAML: {err}") from err
    named = [(Path(name), strategy) for name, strategy in mixture(parsed, str(path))]
    return [(path.parent / file if (path.parent / file).exists() else file, strategy) for file, strategy in named]


def _items(path: Path) -> list[Any]:
    if path.suffix.lower() == ".jsonl":
        return [item for _, item in parse_lines(_lines(path), str(path))]
    return list(read_mixture_file(parse_json(_text(path), str(path)), str(path)))


READERS: dict[str, Reader] = {
    "mad": _mad,
    "maft": lambda path, _: read_maft(_text(path), str(path)),
    "mag": lambda path, _: read_mag(_lines(path), str(path)),
    "magdi": lambda path, _: read_magdi(_text(path), str(path)),
    "m2d": lambda path, _: read_m2d(_text(path), str(path)),
    "llava": _llava,
}
"""Format -> how a file of it is read."""
