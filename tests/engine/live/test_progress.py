"""What a running command shows: one line elsewhere, a panel at a terminal, JSON where machines read."""

from __future__ import annotations

import json
import os
import pty
import re
import time
from contextlib import suppress
from threading import Thread
from typing import Any

import msgspec
import pytest

from engine.live import progress as module
from engine.live.progress import Progress, line, panel
from engine.live.snapshot import AgentPace, ModelLoad, Reading, Snapshot
from engine.live.summary import snapshot
from engine.live.units import about, counted, duration, money

NOTHING = Reading(at_s=0.0, stage="debate")
SLOW = AgentPace(name="bo", model="gpt", replies=3, median_s=2.41)
BUSY: Snapshot = msgspec.structs.replace(
    snapshot(NOTHING, NOTHING, NOTHING),
    total=200,
    closed=50,
    open=40,
    set_aside=2,
    failures=3,
    cost_usd=1.234,
    replies_per_s=12.34,
    tokens_per_s=567.8,
    queued=312,
    eta_s=61.0,
    agents=(SLOW,),
    models=(
        ModelLoad(name="idle", up=1, replicas=1),
        ModelLoad(name="smol", up=1, replicas=2, running=4, engine={"kv_usage": 0.97}),
        ModelLoad(name="gpt", up=1, replicas=1, queued=312, running=20, replies_per_s=2.5),
    ),
    holdup="gpt: all its 20 places are taken, 312 asks queued",
)


def test_a_line_says_all_that_matters() -> None:
    assert line(BUSY) == (
        "debate: 50/200 closed, 40 open, 2 set aside, 12.3 replies/s, 568 tokens/s, $1.23, 312 asks queued, "
        "3 failed asks, about 61 s left; gpt: all its 20 places are taken, 312 asks queued"
    )
    assert line(msgspec.structs.replace(snapshot(NOTHING, NOTHING, NOTHING), total=2)) == (
        "debate: 0/2 closed, 0 open, 0.0 replies/s, 0 tokens/s"
    )


def test_the_panel_has_the_busiest_models_in_the_order_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MODELS", 2)
    assert panel(BUSY) == [
        "debate  ███████░░░░░░░░░░░░░░░░░░░░░░░ 25%  about 61 s left",
        "  50/200 closed, 40 open, 2 set aside",
        "  12.3 replies/s, 568 tokens/s, $1.23, 3 failed asks",
        "  smol  4 running, 0 queued, 0.0 replies/s, KV 97%, 1 of 2 up",
        "  gpt   20 running, 312 queued, 2.5 replies/s, bo 2.4 s",
        "  > gpt: all its 20 places are taken, 312 asks queued",
    ]


def test_elsewhere_a_line_comes_every_few_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with Progress(live=False) as shown:
        shown.stage("debate", total=200, closed=10)
        for _ in range(12):
            now_s += 1.0
            shown.show(NOTHING, BUSY)
        shown.hush()
        now_s += 60.0
        shown.show(NOTHING, BUSY)
    assert capsys.readouterr().err.splitlines() == ["debate: 200 debates, 10 on record already", *[line(BUSY)] * 2]


def test_for_machines_every_line_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    with Progress(as_json=True, live=True) as shown:
        shown.note("starting gpt")
        now_s += 5.0
        shown.show(NOTHING, BUSY)
        shown.last("moot: it is over")
    told: list[dict[str, Any]] = [json.loads(item) for item in capsys.readouterr().err.splitlines()]
    assert [(item["level"], item["message"]) for item in told] == [
        ("info", "starting gpt"),
        ("info", line(BUSY)),
        ("error", "moot: it is over"),
    ]
    assert msgspec.convert(told[1]["progress"], Snapshot) == BUSY


def drained(reader: int, into: list[bytes]) -> None:
    """All that is written at a terminal, until it is closed."""
    with suppress(OSError):
        while data := os.read(reader, 65536):
            into.append(data)


def test_at_a_terminal_the_panel_is_drawn_over_itself_and_is_gone_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pty.openpty()
    seen: list[bytes] = []
    reading = Thread(target=drained, args=(reader, seen))
    reading.start()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "60")
        with Progress(live=True) as shown:
            shown.show(NOTHING, BUSY)
            shown.note("a [bold]note[/bold]")
            shown.show(NOTHING, BUSY)
    reading.join()
    os.close(reader)
    drawn = b"".join(seen).decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn)
    assert "a [bold]note[/bold]" in plain, "what is noted stays, and is no markup"
    assert "  > gpt: all its 20 places are taken, 312 asks queued" in plain
    assert "\x1b[2J" not in drawn, "a screen that is cleared flickers"
    assert drawn.count("\x1b[1A") >= 5, "lines are drawn over"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.18, "180 ms"), (2.41, "2.4 s"), (14.2, "14 s"), (119, "119 s"), (180, "3 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_what_is_guessed_is_told_in_whole_seconds() -> None:
    assert [about(seconds) for seconds in (0.1, 3.4, 61.0, 200.0)] == ["1 s", "3 s", "61 s", "3 min"]


def test_one_is_no_plural() -> None:
    assert [counted(number, "ask") for number in (0, 1, 2)] == ["0 asks", "1 ask", "2 asks"]


def test_money() -> None:
    assert [money(usd) for usd in (12.346, 1.0, 0.01234)] == ["$12.35", "$1.00", "$0.0123"]
