"""Debates as a table: what is in it is what was said, whole and in order, in memory that does not grow with the run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.live.progress import Progress
from engine.record.folder import Manifest, RunFolder
from engine.record.journal import CloseEntry, EventEntry, Journal
from engine.record.parquet import COLUMNS, ROW_GROUP, schema, write_parquet
from engine.results.transfer_out import Options, export_run
from protocols.graph import Debate, encode_debate
from protocols.machine import Opened
from tests.engine.helpers import answer, build, make_tasks
from tests.fakes import play

ROOT = Path(__file__).resolve().parents[3]


def held(count: int) -> list[Debate]:
    return [
        play(build(), task, answer, debate_id=f"debate/{task.id}", seed=number).debate
        for number, task in enumerate(make_tasks(count))
    ]


def test_a_row_says_all_of_an_utterance(tmp_path: Path) -> None:
    debates = held(8)
    assert write_parquet(tmp_path, debates) == sum(len(debate.utterances) for debate in debates)
    table = pq.read_table(tmp_path)
    assert table.schema.equals(schema()) and table.column_names == list(COLUMNS)
    assert table.schema.metadata[b"moot.schema_version"] == b"1"
    rows = iter(table.to_pylist())
    for debate in debates:
        for position, node in enumerate(debate.utterances):
            row = next(rows)
            assert (row["debate_id"], row["id"], row["position"]) == (debate.id, node.id, position)
            assert row["prompt"] == [{"role": m.role, "text": m.text} for m in debate.conversation(node.id)]
            assert (row["text"], row["answer"], row["correct"]) == (node.reply.text, node.answer.value, node.correct)
            assert row["saw"] == [{"source": e.source, "kind": e.kind} for e in debate.edges if e.target == node.id]
            assert debate.verdict is not None and row["verdict"] == debate.verdict.answer
            assert (row["gold"], row["prompt_tokens"]) == (list(debate.task.gold), 5)


def test_files_and_row_groups_are_bounded_and_debates_are_taken_one_by_one(tmp_path: Path) -> None:
    (debate,) = held(1)
    num_ahead = 0

    def many() -> Iterator[Debate]:
        nonlocal num_ahead
        for number in range(1000):
            num_ahead = max(num_ahead, number * len(debate.utterances) - ROW_GROUP * len(list(tmp_path.iterdir())))
            yield debate

    total = 1000 * len(debate.utterances)
    assert write_parquet(tmp_path, many(), rows_a_file=ROW_GROUP) == total
    files = sorted(tmp_path.iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [
        min(ROW_GROUP, total - start) for start in range(0, total, ROW_GROUP)
    ]
    assert num_ahead <= ROW_GROUP  # nothing was read before there was a file to write it to


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = RunFolder.create(
        tmp_path / "run",
        Manifest(id="r", kind="run", name="r", fingerprint="f", num_arenas=1, recipe={}, recipe_path=""),
    )
    (path,) = folder.journals("debate")
    path.parent.mkdir(parents=True)
    journal = Journal(path, fingerprint="f", sync="normal")
    for debate in held(5):
        opened = Opened(debate_id=debate.id, task=debate.task, seed=0)
        journal.commit([EventEntry(debate.id, 0, 0.0, opened), CloseEntry(debate.id, 0.0, encode_debate(debate))])
    journal.close()
    folder.release()
    return folder.path


def test_a_run_is_exported_and_an_older_table_is_replaced_whole(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    told = export_run("parquet", run, out, Options(), progress=Progress())
    assert told["debates"] == 5 and told["rows"] == pq.read_table(out).num_rows
    (out / "part-00007.parquet").write_bytes((out / "part-00000.parquet").read_bytes())
    export_run("parquet", run, out, Options(), force=True, progress=Progress())
    assert [path.name for path in out.iterdir()] == ["part-00000.parquet"]
    assert pa.compute.count_distinct(pq.read_table(out)["debate_id"]).as_py() == 5


def test_the_docs_explain_every_column() -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    assert not [name for name in COLUMNS if f"`{name}`" not in page]
