"""The ledger of a batched model: what is on it is found again, whatever happened to its writer."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from actors.services.batch_book import Known
from actors.services.batch_ledger import Ledger, Made, Meant, Void
from protocols.errors import AgentError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "models" / "gpt" / "batches.jsonl"


def write(path: Path) -> None:
    ledger = Ledger(path)
    ledger.add(Meant("t0", 5.0, ("a", "b")))
    ledger.add(Made("t0", "b0"))
    ledger.add(Meant("t1", 6.0, ("c",)))
    ledger.add(Void("t1"))
    ledger.add(Meant("t2", 7.0, ("c", "a")))
    ledger.close()


def known(path: Path) -> tuple[Known, ...]:
    ledger = Ledger(path)
    ledger.close()
    return ledger.known


KNOWN = (Known(tag="t0", keys=("a", "b"), at_s=5.0, id="b0"), Known(tag="t2", keys=("c", "a"), at_s=7.0))


def test_batches_are_found_again_in_their_order(path: Path) -> None:
    assert known(path) == ()  # and makes the folders
    write(path)
    assert known(path) == KNOWN


def test_a_line_that_was_cut_short_is_taken_off(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        ledger = Ledger(path)
        assert ledger.known == KNOWN[:1]
        ledger.add(Meant("t3", 8.0, ("d",)))
        ledger.close()
        assert known(path) == (KNOWN[0], Known(tag="t3", keys=("d",), at_s=8.0))


@pytest.mark.parametrize("line", [b"junk\n", b'{"type":"made","tag":"nobody","id":"b"}\n', b'{"type":"odd"}\n'])
def test_a_damaged_ledger_is_refused_and_left_as_it_is(path: Path, line: bytes) -> None:
    write(path)
    damaged = line + path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(AgentError, match="line 1: is damaged"):
        Ledger(path)
    assert path.read_bytes() == damaged


def test_one_process_writes_at_a_time(path: Path) -> None:
    first = Ledger(path)
    with pytest.raises(AgentError, match="another process still submits batches of this run"):
        Ledger(path)
    threading.Timer(0.2, first.close).start()
    second = Ledger(path, lock_wait_s=20.0)
    second.close()
    second.close()
    with pytest.raises(OSError):  # noqa: PT011  # of a file that is closed
        second.add(Void("t"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(AgentError, match=f"{tmp_path}/models/gpt/batches.jsonl: cannot be written"):
        Ledger(tmp_path / "models" / "gpt" / "batches.jsonl")
