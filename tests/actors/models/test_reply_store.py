"""Replies on disk: read back as they were written, by many processes at once, whatever becomes of the disk."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.models.reply_store import ReplyStore
from protocols.message import Attempt, Reply, Usage

ROOT = Path(__file__).parents[3]
REPLY = Reply(ask_id="", text="43", model="m", token_ids=(1, 2), logprobs=(-0.5, -1.5), usage=Usage(3, 2))

_texts = st.text(st.characters(exclude_categories=["Cs"]))
_counts = st.integers(0, 2**40)
_tokens = st.lists(st.tuples(st.integers(0, 2**31), st.floats(max_value=0, allow_nan=False)))
replies = st.builds(
    lambda text, model, finish, usage, tokens, attempts: Reply(
        ask_id="", text=text, model=model, finish_reason=finish, usage=usage, attempts=tuple(attempts),
        token_ids=tuple(token for token, _ in tokens), logprobs=tuple(logprob for _, logprob in tokens),
    ),
    _texts, _texts, st.sampled_from(["stop", "length", "other"]), st.builds(Usage, _counts, _counts, _counts), _tokens,
    st.lists(st.builds(Attempt, st.just("timeout"), _texts), max_size=2),
)  # fmt: skip


def key(number: int = 0) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


@given(replies, replies)
def test_a_reply_read_back_is_the_one_that_was_written_last(first: Reply, second: Reply) -> None:
    with TemporaryDirectory() as folder:
        store = ReplyStore(Path(folder))
        assert store.get(key()) is None
        for reply in (first, second):
            store.put(key(), reply)
            assert ReplyStore(Path(folder)).get(key()) == reply
        assert store.get(key(1)) is None


@given(st.data())
def test_damage_anywhere_in_an_entry_is_a_miss_with_a_warning(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        told: list[str] = []
        patch.setattr("actors.models.reply_store.log.warning", lambda text, *values: told.append(text % values))
        store = ReplyStore(Path(folder))
        store.put(key(), REPLY)
        (path,) = Path(folder).glob("*/*")
        whole = path.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1))
        flipped = bytes([whole[at] ^ data.draw(st.integers(1, 255))])
        path.write_bytes(data.draw(st.sampled_from([whole[:at], whole[:at] + flipped + whole[at + 1 :]])))
        assert store.get(key()) is None
        assert len(told) == 1 and str(path) in told[0]
        store.put(key(), REPLY)
        assert store.get(key()) == REPLY


def test_an_entry_under_anothers_name_is_damage(tmp_path: Path) -> None:
    store = ReplyStore(tmp_path)
    store.put(key(0), REPLY)
    (tmp_path / key(1)[:2]).mkdir(exist_ok=True)
    (tmp_path / key(0)[:2] / key(0)).rename(tmp_path / key(1)[:2] / key(1))
    assert store.get(key(1)) is None


WRITER = """
import sys
from pathlib import Path
from actors.models.reply_store import ReplyStore
from tests.actors.models.test_reply_store import REPLY, key
store, seen = ReplyStore(Path(sys.argv[1])), 0
for _ in range(20):
    for number in range(50):
        found = store.get(key(number))
        assert found in (None, REPLY), found
        seen += found is not None
        store.put(key(number), REPLY)
print(seen)
"""


@pytest.mark.slow
def test_processes_that_write_the_same_entries_at_once_see_them_whole_or_not_at_all(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "cache")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for writer in writers:
        out, err = writer.communicate(timeout=100)
        assert (writer.returncode, err) == (0, "")  # no warning of a damaged entry either
        assert int(out) >= 19 * 50
    files = {path.name for path in (tmp_path / "cache").glob("*/*")}
    assert files == {key(number) for number in range(50)}  # nothing half-written is left


def test_what_was_not_used_for_longest_goes(tmp_path: Path) -> None:
    big = Reply(ask_id="", text="x" * (100 << 10), model="m")
    store = ReplyStore(tmp_path, max_mb=1)
    for number in range(8):
        store.put(key(number), big)
        os.utime(tmp_path / key(number)[:2] / key(number), (number, number))
    assert store.get(key(0)) == big  # used: it counts as new from now on
    for number in range(8, 12):
        store.put(key(number), big)
    size_bytes = sum(path.stat().st_size for path in tmp_path.glob("*/*"))
    assert size_bytes <= 1.1 * (1 << 20)
    left = [number for number in range(12) if store.get(key(number))]
    assert left == [0, *range(12 - len(left) + 1, 12)] and len(left) >= 8
    assert len(list(tmp_path.glob("*/*"))) == len(left)


def test_without_a_limit_nothing_goes(tmp_path: Path) -> None:
    store = ReplyStore(tmp_path)
    for number in range(30):
        store.put(key(number), REPLY)
    assert all(store.get(key(number)) for number in range(30))


@pytest.mark.parametrize("max_mb", [0, 1])
def test_a_folder_that_cannot_be_used_is_told_once_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, max_mb: int
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    store = ReplyStore(tmp_path / "cache", max_mb=max_mb)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            store.put(key(number), REPLY)
            assert store.get(key(number)) is None
    assert len(caplog.messages) == 1 and "cannot write" in caplog.messages[0] and str(tmp_path) in caplog.messages[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_leaves_no_half_entry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The kernel's own refusal: the entry's place beside is a link to a device without room."""
    store = ReplyStore(tmp_path)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("actors.models.reply_store.uuid4", lambda: type("Fixed", (), {"hex": "fixed"}))
        (tmp_path / key()[:2]).mkdir()
        (tmp_path / key()[:2] / "fixed.part").symlink_to("/dev/full")
        store.put(key(), REPLY)
    assert "No space left" in caplog.text
    assert list(tmp_path.glob("*/*")) == []
    store.put(key(), REPLY)
    assert store.get(key()) == REPLY


def test_infinite_log_probabilities_come_back(tmp_path: Path) -> None:
    store = ReplyStore(tmp_path)
    store.put(key(), Reply(ask_id="", text="", model="m", token_ids=(1,), logprobs=(-math.inf,)))
    found = store.get(key())
    assert found is not None and found.logprobs == (-math.inf,)
