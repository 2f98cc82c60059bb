"""A run's debates as files of other systems, and as rows for trainers: ``moot export``.

Debates are read from the journal and written one by one, beside the target first: a file is there whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.config.sections import read_section
from engine.live.progress import Progress
from engine.record.attempts import Attempts
from engine.record.folder import RunFolder
from engine.record.journal import read_graphs
from protocols.errors import ConfigError
from protocols.formats.chats import uses_gold
from protocols.formats.common import json_lines, json_list
from protocols.formats.llava import conversations
from protocols.formats.m2d import write_m2d
from protocols.formats.mad import write_mad
from protocols.formats.maft import write_maft
from protocols.formats.mag import write_mag
from protocols.formats.mag_batch import batch_lines
from protocols.formats.magdi import Edges, write_magdi, write_magdi_graph
from protocols.formats.network import graphml, node_link
from protocols.formats.rows import Label, messages_rows, preference_row, preference_rows, right_turns, sft_row
from protocols.graph import Debate, decode_debate
from protocols.message import Sampling
from trainers.selection.select import RULES, WITHOUT_LABEL, Selection, select

if TYPE_CHECKING:
    from engine.learning.preferences import RecordedTrees

TREES = "trl-tree"
ALL_RIGHT = "right"  # beside the trainers' rules: every answer that the label calls right
_MAX_NAME = 80  # letters of a file's name

Outcome = dict[str, Any]
Debates = Iterator[Debate]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What some formats can be told."""

    rule: str = "generator"  # trl-sft: which turns become rows
    label: Label = "consensus"  # of rows for trainers: what makes an answer right
    edges: Edges = "causal"  # magdi-graph

    def __post_init__(self) -> None:
        if self.rule not in (*RULES, ALL_RIGHT):
            raise ConfigError(f"--rule {self.rule!r} is not known; use one of: {', '.join((*RULES, ALL_RIGHT))}")


def export_run(
    form: str,
    run_dir: Path,
    output: Path,
    options: Options,
    *,
    stage: str | None = None,
    force: bool = False,
    progress: Progress,
) -> Outcome:
    """Write the closed debates of one stage of a run.

    Args:
        output: a file; a folder for ``parquet``, and for ``mad``, ``mag-batch``, ``graphml`` and ``json``, unless a
            debate is a file there, there is one debate, and the name ends like a file's.
        stage: default: the only one that has debates, or ``debate``.
        force: replace a file; in a folder, replace files of the same names and leave the rest.
    Raises: ConfigError: no such run, stage or format, nothing to write, or a target that is there already.
        GraphError: a debate that the format cannot express; nothing is written.
    """
    if form not in (known := (*FILES, TREES, *FOLDERS, TABLE)):
        raise ConfigError(f"cannot export {form!r}; use one of: {', '.join(known)}")
    folder = RunFolder.open(run_dir)
    stage = _stage(folder, stage)
    if form in ROWS and stage.startswith("eval"):
        raise ConfigError(f"stage {stage!r} holds held-out tasks, which nobody may learn from; choose one of debates")
    tally = _Tally()
    debates = _closed(folder, stage)
    if form in LEARNED_FROM:
        debates = (debate for debate in debates if not debate.task.held_out)
    debates = tally.count(debates)
    first = list(islice(debates, 2))
    if not first:
        kind = "debate of a task that is learned from" if form in LEARNED_FROM else "debate"
        raise ConfigError(f"{run_dir}: its stage {stage!r} holds no {kind} that has ended; nothing to export")
    single = len(first) == 1 and form in FOLDERS and form not in SHARED and output.suffix == FOLDERS[form][0]
    _check_target(output, force=force, many=form == TABLE or (form in FOLDERS and not single))
    debates = chain(first, debates)
    trees = _recorded_trees(folder, options) if form == TREES else None
    try:
        if form == TABLE:
            rows = _write_table(output, debates)
        elif trees is not None:
            rows = _write_file(output, _trees(debates, trees), f"{run_dir}, stage {stage!r}")
        elif form in FILES:
            rows = _write_file(output, FILES[form](debates, options), f"{run_dir}, stage {stage!r}")
        elif single:
            rows = _write_file(output, (text for _, text in FOLDERS[form][1](debates, folder)), str(run_dir))
        else:
            suffix, write = FOLDERS[form]
            rows = _write_folder(output, write(debates, folder), suffix, shared=form in SHARED)
    except OSError as err:
        raise ConfigError(f"-o {output}: cannot be written: {err.strerror}") from err
    progress.note(f"wrote {output}")
    outcome: Outcome = {"run": str(run_dir), "stage": stage, "format": form, "output": str(output)}
    outcome["debates"] = tally.debates
    if form in (*ROWS, TABLE):
        outcome["rows"] = rows
    if trees is not None:
        counted = msgspec.structs.asdict(trees.counted)
        outcome["amplification"] = counted | {"factor": round(trees.counted.factor, 2)}
    return outcome


class _Tally:
    """How many debates have passed."""

    def __init__(self) -> None:
        self.debates = 0

    def count(self, debates: Iterable[Debate]) -> Debates:
        for debate in debates:
            self.debates += 1
            yield debate


def _stage(folder: RunFolder, wanted: str | None) -> str:
    """Raises: ConfigError: no such stage, or several to choose from."""
    stages = sorted(path.name for path in (folder.path / "journal").glob("*") if path.is_dir())
    if wanted is None and len(stages) > 1 and "debate" not in stages:
        raise ConfigError(f"{folder.path} has several stages; choose one with --stage: {', '.join(stages)}")
    stage = wanted or ("debate" if "debate" in stages else next(iter(stages), "debate"))
    if stage not in stages:
        raise ConfigError(f"{folder.path} has no stage {stage!r}; it has: {', '.join(stages) or 'none'}")
    return stage


def _closed(folder: RunFolder, stage: str) -> Debates:
    attempts = Attempts(folder.path)
    for path in folder.journals(stage):
        if path.exists():
            yield from (debate for debate in map(decode_debate, read_graphs(path)) if attempts.counts(debate.id))


def _check_target(output: Path, *, force: bool, many: bool) -> None:
    if many and output.exists() and not output.is_dir():
        raise ConfigError(f"-o {output}: is a file, and there are several debates to write; give a folder")
    if not many and output.is_dir():
        raise ConfigError(f"-o {output}: is a folder; give the path of a file")
    if not force and (any(output.iterdir()) if output.is_dir() else output.exists()):
        raise ConfigError(f"-o {output}: is there already; choose another, or add --force to replace it")


def _write_file(output: Path, pieces: Iterable[str], where: str) -> int:
    """Write the pieces, whole or not at all. Returns: how many. Raises: ConfigError: there is none."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{output.name}.{os.getpid()}.new")
    count = 0
    try:
        with draft.open("w", encoding="utf-8", newline="\n") as file:
            for piece in pieces:
                file.write(piece)
                count += 1
            if not count:
                raise ConfigError(
                    f"{where}: no row follows from its debates under this rule and label; nothing written"
                )
            file.flush()
            os.fsync(file.fileno())
        draft.replace(output)
    finally:
        with suppress(FileNotFoundError):  # it was renamed: all went well
            draft.unlink()
    return count


def _write_folder(output: Path, texts: Iterable[tuple[str, str]], suffix: str, *, shared: bool) -> int:
    """Files written aside first, so that a debate that cannot be written leaves nothing.

    Args:
        shared: texts of one name are one file; else each text is a file of its own.
    """
    taken: set[str] = set()
    files: dict[str, str] = {}
    with _draft_folder(output) as draft:
        for name, text in texts:
            if not shared or name not in files:
                files[name] = _file_name(name, suffix, taken)
            with (draft / files[name]).open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)
    return len(taken)


def _write_table(output: Path, debates: Debates) -> int:
    """Returns: how many rows. Parts of an earlier table are not left among those of this one."""
    from engine.record.parquet import PART, write_parquet

    with _draft_folder(output) as draft:
        rows = write_parquet(draft, debates)
        for path in output.glob(PART):
            path.unlink()
    return rows


@contextmanager
def _draft_folder(output: Path) -> Iterator[Path]:
    """A folder whose files move into ``output`` when all went well, and are gone when not."""
    output.parent.mkdir(parents=True, exist_ok=True)
    draft = output.with_name(f".{output.name}.{os.getpid()}.new")
    draft.mkdir()
    try:
        yield draft
        output.mkdir(exist_ok=True)
        for path in draft.iterdir():
            path.replace(output / path.name)
    finally:
        for path in draft.iterdir():
            path.unlink()
        draft.rmdir()


def _file_name(name: str, suffix: str, taken: set[str]) -> str:
    """A name that no system takes for a path, and that none of these files has: ids may come from anywhere."""
    word = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_.") else "-" for letter in name)
    word = word.strip(".-")[:_MAX_NAME] or "debate"
    number = 1
    while (file := f"{word}-{number}{suffix}" if number > 1 else f"{word}{suffix}").casefold() in taken:
        number += 1
    taken.add(file.casefold())
    return file


# Rows for trainers


def _sft(debates: Debates, options: Options) -> Iterator[str]:
    if options.label == "gold" and options.rule in WITHOUT_LABEL:
        raise ConfigError(f"--label gold has no part in the rule {options.rule!r}; leave it out, or use another rule")
    for debate in debates:
        if options.rule == ALL_RIGHT:
            nodes = right_turns(debate, label=options.label)
            yield from json_lines(sft_row(debate.conversation(node.id), node.reply.text) for node in nodes)
        else:
            chosen = select(Selection(rule=options.rule, label=options.label), debate)
            unique = {row.id: row for rows in chosen.values() for row in rows}  # a pooling rule gives one to several
            yield from json_lines(sft_row(row.prompt, row.completion) for row in unique.values())


def _preference(debates: Debates, options: Options) -> Iterator[str]:
    return json_lines(row for debate in debates for row in preference_rows(debate, label=options.label))


def _recorded_trees(folder: RunFolder, options: Options) -> RecordedTrees:
    from engine.learning.preferences import (  # the other formats need none of what they import
        RecordedTrees,
        train_settings,
    )

    return RecordedTrees(folder, train_settings(folder, options.label))


def _trees(debates: Debates, trees: RecordedTrees) -> Iterator[str]:
    for debate in debates:
        unique = {row.id: row for rows in trees.of(debate).values() for row in rows}  # students share a tree's rows
        yield from json_lines(preference_row(row.prompt, row.chosen, row.rejected) for row in unique.values())


def _messages(debates: Debates, options: Options) -> Iterator[str]:
    return json_lines(row for debate in debates for row in messages_rows(debate, label=options.label))


def _llava(debates: Debates, options: Options) -> Iterator[str]:
    """Conversations are trained on, so what gold had a part in stays out of them as it does out of rows."""
    kept = (debate for debate in debates if options.label == "gold" or not uses_gold(debate))
    items = (item for debate in kept for item in conversations(debate))
    first = list(islice(items, 1))
    return json_list(chain(first, items)) if first else iter(())


def _mad(debates: Debates) -> Iterator[tuple[str, str]]:
    for debate in debates:
        ((name, text),) = write_mad([debate])
        yield debate.task.details.get("file", name), text


def _mag_batch(debates: Debates, folder: RunFolder) -> Iterator[tuple[str, str]]:
    if folder.manifest.kind == "import":
        raise ConfigError(f"{folder.path}: is an import, whose file held no requests; mag-batch writes those of a run")
    sampling = {}
    for name, agent in folder.manifest.recipe.get("agents", {}).items():
        drawn = {key: agent[key] for key in Sampling.__struct_fields__ if key in agent}
        sampling[name] = read_section(drawn, Sampling, str(folder.path), f"agents.{name}")
    return batch_lines(debates, sampling)


TABLE = "parquet"
ROWS = ("trl-sft", "trl-preference", TREES, "messages")
LEARNED_FROM = (*ROWS, "llava")  # held-out tasks stay out of these
FILES: dict[str, Callable[[Debates, Options], Iterator[str]]] = {
    "maft": lambda debates, _: write_maft(debates),
    "mag": lambda debates, _: write_mag(debates),
    "magdi": lambda debates, _: write_magdi(debates),
    "magdi-graph": lambda debates, options: write_magdi_graph(debates, edges=options.edges),
    "m2d": lambda debates, _: write_m2d(debates),
    "llava": _llava,
    "trl-sft": _sft,
    "trl-preference": _preference,
    "messages": _messages,
}
"""Format -> the pieces of its one file; of rows, a piece is a row."""
FOLDERS: dict[str, tuple[str, Callable[[Debates, RunFolder], Iterator[tuple[str, str]]]]] = {
    "mad": (".json", lambda debates, _: _mad(debates)),
    "mag-batch": (".jsonl", _mag_batch),
    "graphml": (".graphml", lambda debates, _: ((debate.task.id, graphml(debate)) for debate in debates)),
    "json": (".json", lambda debates, _: ((debate.task.id, node_link(debate)) for debate in debates)),
}
"""Format -> ending of its files, and (name, text) of each."""
SHARED = ("mag-batch",)
"""Those whose texts of one name are one file, to which many debates add."""
