"""Rows out of files: JSON, JSON lines, CSV, TSV, Parquet and pairs of text. What is wrong is named by file and line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from protocols.errors import ConfigError, TaskError, unreadable

Row = Mapping[str, Any]
Placed = tuple[str, Row]
"""(place for errors, row)"""

FileFormat = Literal["", "json", "jsonl", "csv", "tsv", "parquet", "pairs"]
WHERE_FROM = "give the path from the recipe's folder, or from where moot is started"
_SUFFIXES: dict[str, FileFormat] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}


def rows(
    path: Path, *, file_format: FileFormat = "", items: str = "", reference: Path | None = None
) -> Iterator[Placed]:
    """The rows of a file, in its order.

    Args:
        file_format: "" tells it by the name's ending. ``pairs`` is text: a source, a tab and its reference on each
            line, as rows with ``question``, ``answer`` and ``line``.
        items: where in a JSON object the list of rows is, as a dotted name; "": the file is the list.
        reference: the file whose lines are the references of the lines of ``path``.
    Raises: TaskError: with file and line.
    """
    if reference is not None:
        return _line_pairs(path, reference)
    chosen = file_format or _SUFFIXES.get(path.suffix.lower(), "")
    if chosen == "parquet":
        return _parquet(path)
    text = _text(path)
    if chosen in ("csv", "tsv"):
        return _table(path, text, chosen)
    if chosen == "json":
        return _objects(_list(_json(text, str(path)), path, items))
    if chosen == "jsonl":
        return _objects((place, _json(line, place)) for place, line in _lines(path, text) if line.strip())
    if chosen == "pairs":
        return _tabbed(path, text)
    raise TaskError(f"tasks: {path} must end in .jsonl, .json, .csv or .tsv (or .parquet), or say its tasks.format")


def find(row: Any, name: str) -> Any:
    """What a row holds under a name, or under a dotted one step by step ("turns.0.text"); None where nothing is."""
    if isinstance(row, Mapping) and name in row:
        return row[name]
    for step in name.split("."):
        if isinstance(row, Mapping):
            row = row.get(step)
        elif isinstance(row, list) and step.isascii() and step.isdigit() and len(step) < 10 and int(step) < len(row):
            row = row[int(step)]
        else:
            return None
    return row


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise TaskError(f"tasks: cannot read {path}: {err.strerror}; {WHERE_FROM}") from err
    except UnicodeDecodeError as err:
        raise TaskError(f"tasks: {path} is not UTF-8 text (byte {err.start}); save it as UTF-8") from err


def _lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Lines end where JSON lines say it: at a line feed, not at the other marks that Python counts."""
    for number, line in enumerate(text.split("\n"), 1):
        yield f"{path}, line {number}", line.removesuffix("\r")


def _table(path: Path, text: str, kind: str) -> Iterator[Placed]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == "tsv" else ",")
    try:
        yield from ((f"{path}, line {reader.line_num}", row) for row in reader)
    except csv.Error as err:
        raise TaskError(f"{path}, line {reader.reader.line_num}: is not valid {kind.upper()}: {err}") from err


def _list(parsed: Any, path: Path, items: str) -> Iterator[tuple[str, Any]]:
    found = find(parsed, items) if items else parsed
    if not isinstance(found, list):
        under = f" under {items!r}" if items else ""
        raise TaskError(f"{path}: must hold a JSON list of tasks{under}, not {type(found).__name__}")
    return ((f"{path}, item {number}", row) for number, row in enumerate(found, 1))


def _objects(found: Iterator[tuple[str, Any]]) -> Iterator[Placed]:
    for place, row in found:
        if not isinstance(row, dict):
            raise TaskError(f"{place}: must be an object with fields, not {type(row).__name__}")
        yield place, row


def _json(text: str, place: str) -> Any:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as err:
        line = f" of line {err.lineno}" if "\n" in text else ""
        raise TaskError(f"{place}: is not valid JSON: {err.msg} at column {err.colno}{line}") from err
    except (ValueError, RecursionError) as err:  # a number of thousands of digits; lists in lists in lists
        raise TaskError(f"{place}: is JSON that cannot be read: {unreadable(err)}") from err
    if "\\u" in text:  # JSON can spell half a surrogate pair, which is no text and can be stored nowhere
        try:
            json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError as err:
            raise TaskError(f"{place}: holds a \\u escape that is half a character; mend it") from err
    return parsed


def _tabbed(path: Path, text: str) -> Iterator[Placed]:
    for number, (place, line) in enumerate(_lines(path, text), 1):
        if not line.strip():
            continue
        source, tab, reference = line.partition("\t")
        if not tab or "\t" in reference:
            raise TaskError(f"{place}: must hold a source, one tab and its reference; it has {line.count(chr(9))} tabs")
        yield place, {"question": source.strip(), "answer": reference.strip(), "line": number}


def _line_pairs(path: Path, reference: Path) -> Iterator[Placed]:
    """Line by line; empty lines at the ends do not count, one inside is somebody's loss of alignment."""
    sources, references = (_text(file).rstrip().split("\n") for file in (path, reference))
    if len(sources) != len(references):
        raise TaskError(
            f"tasks: {path} has {len(sources)} lines and {reference} has {len(references)}; each line of the one must "
            "be the reference of the same line of the other"
        )
    for number, (source, answer) in enumerate(zip(sources, references, strict=True), 1):
        if not source.strip() or not answer.strip():
            empty = reference if source.strip() else path
            raise TaskError(f"{empty}, line {number}: is empty; give its text, or take the line out of both files")
        yield f"{path}, line {number}", {"question": source.strip(), "answer": answer.strip(), "line": number}


def _parquet(path: Path) -> Iterator[Placed]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as err:
        raise ConfigError(f"tasks: {path} needs the package pyarrow; install moot with its extra train") from err
    if not path.is_file():
        raise TaskError(f"tasks: cannot read {path}: No such file; {WHERE_FROM}")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):  # images make rows large
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as err:
        said = str(err).partition("\n")[0]
        raise TaskError(f"{path}: cannot be read as Parquet after row {number}: {said}") from err
