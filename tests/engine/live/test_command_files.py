"""Commands in a run's folder: carried out once, in order, whatever else somebody has put there."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from engine.live import command_files
from engine.live.command_files import Answer, Command, Inbox, fetch_answer, post, withdraw
from protocols.errors import ConfigError


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    inbox = Inbox(tmp_path)
    inbox.open()
    return inbox


def left(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "control").iterdir())


def test_a_command_is_taken_once_and_answered(tmp_path: Path, inbox: Inbox) -> None:
    posted = post(tmp_path, Command(verb="set", args=("a.concurrency=1",)))
    assert fetch_answer(posted) is None
    (taken,) = inbox.take()
    assert taken.command == Command(verb="set", args=("a.concurrency=1",)) and inbox.take() == []
    inbox.answer(taken, Answer(done={"changed": ["a"]}))
    assert fetch_answer(posted) == Answer(done={"changed": ["a"]})
    assert fetch_answer(posted) is None and left(tmp_path) == []


def test_commanders_at_once_are_served_in_the_order_they_came(tmp_path: Path, inbox: Inbox) -> None:
    posted: list[Path] = []
    threads = [threading.Thread(target=lambda: posted.append(post(tmp_path, Command(verb="retry")))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = inbox.take()
    assert [item.name for item in taken] == sorted(path.name for path in posted) and len(taken) == 20
    for number, item in enumerate(taken):
        inbox.answer(item, Answer(done={"number": number}))
    answers = [fetch_answer(path) for path in sorted(posted)]
    assert [answer.done["number"] for answer in answers if answer] == list(range(20))


def test_what_was_left_for_an_earlier_driver_is_not_carried_out(tmp_path: Path) -> None:
    posted = [post(tmp_path, Command(verb="drain")) for _ in range(command_files.MAX_TAKEN + 1)]
    inbox = Inbox(tmp_path)
    inbox.open()
    assert inbox.take() == []
    answers = [fetch_answer(path) for path in posted]
    assert all(answer and "before this driver began" in answer.error for answer in answers)


def test_a_command_that_is_withdrawn_is_not_carried_out(tmp_path: Path, inbox: Inbox) -> None:
    posted = post(tmp_path, Command(verb="pause"))
    assert withdraw(posted) and inbox.take() == [] and not withdraw(posted)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is no command"),
        (b'{"verb": "pau', "it is no command"),  # half written
        (b'{"verb": "rm"}', "Invalid enum value 'rm'"),
        (b'{"verb": "pause", "sudo": true}', "unknown field"),
        (b'{"verb": "retry", "args": [1]}', "Expected `str`"),
        (b'"pause"', "it is no command"),
        (b"\xff\xfe", "it is no command"),
        (b'{"verb": "retry", "args": ' + b"[" * 5000, "it is no command"),
        (b" " * (command_files.MAX_BYTES + 1), "larger than 65536 bytes"),
    ],
)
def test_what_is_no_command_is_answered_with_what_is_wrong(
    tmp_path: Path, inbox: Inbox, content: bytes, said: str
) -> None:
    path = tmp_path / "control" / "1.command.json"
    path.write_bytes(content)
    (taken,) = inbox.take()
    assert isinstance(taken.command, str) and said in taken.command
    inbox.answer(taken, Answer(error=taken.command))
    assert fetch_answer(path) == Answer(error=taken.command)
    assert left(tmp_path) == []


def test_what_is_no_plain_file_hangs_nobody(tmp_path: Path, inbox: Inbox) -> None:
    folder, outside = tmp_path / "control", tmp_path / "outside"
    outside.write_text('{"verb": "drain"}')
    os.mkfifo(folder / "1.command.json")
    (folder / "2.command.json").symlink_to(outside)
    (folder / "3.command.json").mkdir()
    (folder / "note.txt").write_text("not ours")
    (folder / ".4.command.json.ab.new").write_text("half writ")
    fifo, link = inbox.take()
    assert fifo.command == "it is no plain file"
    assert isinstance(link.command, str) and "cannot be read" in link.command
    assert inbox.take() == []  # the folder stays where it is, and is passed over
    assert left(tmp_path) == [".4.command.json.ab.new", "3.command.json", "note.txt"] and outside.exists()


def test_an_answer_does_not_follow_a_link(tmp_path: Path, inbox: Inbox) -> None:
    posted = post(tmp_path, Command(verb="pause"))
    target = tmp_path / "precious"
    target.write_text("kept")
    answer = posted.with_name(posted.name.replace(".command.", ".answer."))
    answer.symlink_to(target)
    (taken,) = inbox.take()
    inbox.answer(taken, Answer(error="no"))
    assert target.read_text() == "kept" and fetch_answer(posted) == Answer(error="no")


def test_what_nobody_fetched_is_swept_up(tmp_path: Path, inbox: Inbox) -> None:
    for name in ("1.answer.json", ".1.answer.json.ab.new"):
        old = tmp_path / "control" / name
        old.write_text("{}")
        os.utime(old, (0, 0))
    (tmp_path / "control" / "2.answer.json").write_text("{}")
    assert inbox.take() == [] and left(tmp_path) == ["2.answer.json"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("a file")
    with pytest.raises(ConfigError, match="no command can be left there"):
        post(tmp_path, Command(verb="pause"))
