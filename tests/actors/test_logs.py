"""What is logged becomes JSON lines with the ids they are about, and never holds a key."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from actors.logs import ABOUT, log_to_file, log_to_stderr
from actors.services.api_key import read_key
from protocols.message import Ask, Sampling

log = logging.getLogger("moot.test")


def lines(folder: Path, process: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{process}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_line_says_when_where_and_whom_it_is_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_file(tmp_path / "logs", "host gpt/0", run="r1", host="gpt/0")
    log.info("set aside: %s", "no\nreply", extra={"debate": "debate/t1", "stage": "debate"})
    log.debug("too much")
    (told,) = lines(tmp_path / "logs", "host%20gpt%2F0")
    assert told.pop("time").endswith("+00:00")
    assert told == {
        "level": "info",
        "logger": "moot.test",
        "run": "r1",
        "host": "gpt/0",
        "stage": "debate",
        "debate": "debate/t1",
        "message": "set aside: no\nreply",
    }
    assert capsys.readouterr().err == "", "a terminal is told of warnings alone"


def test_tasks_side_by_side_each_log_what_they_are_about(tmp_path: Path) -> None:
    log_to_file(tmp_path, "p")

    async def serve(number: int) -> None:
        ABOUT.set(Ask(id="", debate_id=f"d{number}", agent="ada", role="generator", messages=(), sampling=Sampling()))
        await asyncio.sleep(0)
        log.warning("slow")

    async def both() -> None:
        await asyncio.gather(serve(1), serve(2))

    asyncio.run(both())
    log.warning("nobody's")
    assert [(line.get("debate"), line.get("agent")) for line in lines(tmp_path, "p")] == [
        ("d1", "ada"),
        ("d2", "ada"),
        (None, None),
    ]


def test_warnings_stay_plain_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_file(tmp_path, "p")
    log_to_file(tmp_path, "q")  # another run in the same process
    log.warning("the keeper is gone")
    assert capsys.readouterr().err == "the keeper is gone\n"
    assert not (tmp_path / "p.jsonl").exists() and len(lines(tmp_path, "q")) == 1


def test_a_disk_that_takes_no_log_is_told_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("in the way")
    log_to_file(tmp_path / "logs", "p")
    log.info("one")
    log.info("two")
    told = capsys.readouterr().err
    assert told.count("cannot be written") == 1 and told.count("\n") == 1 and "Traceback" not in told


def test_stderr_is_json_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr()
    log_to_file(tmp_path, "p", run="r1")
    log.info("started")
    log.info("%s closed", 3, extra={"figures": {"progress": {"closed": 3}}})
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["message"] == "started" and second["progress"] == {"closed": 3}
    assert [line["message"] for line in lines(tmp_path, "p")] == ["started", "3 closed"]


def test_no_line_holds_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "Zq7xW3vK9pLm" + "2RtY8bNc4HdF"
    monkeypatch.setenv("A_KEY", secret)
    read_key("A_KEY", "")
    log_to_file(tmp_path, "p")
    log.warning("the service said: wrong key %s", secret)
    try:
        raise ValueError(f"Bearer {secret} and sk-" + "abcdefgh12345678")
    except ValueError:
        log.exception("it failed")
    text = (tmp_path / "p.jsonl").read_text(encoding="utf-8")
    assert secret[:12] not in text and "sk-abcd" not in text
    assert "wrong key [key]" in text and "ValueError" in lines(tmp_path, "p")[1]["error"]
