"""Canonical spellings: equal answers get one, hostile ones get none in time, and no debate waits for another's."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import engine.data.canonical
from engine.data.canonical import MAX_BYTES, Algebra, Canoniser, canonise_gold
from engine.data.tasks import FileSource, load_split
from engine.debates.arena import Arena, Canonise
from engine.record.journal import read_journal
from protocols.errors import ConfigError, TaskError
from protocols.machine import Replied
from protocols.message import Ask
from protocols.task import Task
from tests.engine.helpers import AGENTS, CAST, Host, assignment, build, debates, reply


@pytest.fixture(scope="module")
def algebra() -> Iterator[Algebra]:
    if find_spec("math_verify") is None:
        pytest.skip("needs the extra math")
    found = Algebra(answer_s=1.0)
    yield found
    found.close()


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("x+1", "1+x", True),
        ("x^2-1", "(x-1)(x+1)", True),
        (r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt2}{2}", True),
        ("sqrt(4)", "2", True),  # MAFT's grader holds them apart
        (r"\frac{3}{4}\pi", r"\frac{3\pi}{4}", True),
        (r"\sin^2(x)+\cos^2(x)", "1", True),
        (r"\binom52", "10", True),
        (r"10^{-5}", "0.00001", True),
        ("2.50x", r"\frac{5x}{2}", True),
        ("1,2", r"\{2, 1\}", True),
        (r"3\pm\sqrt2", r"\{3-\sqrt2,3+\sqrt2\}", True),
        ("(1/2, 3)", r"\left(\frac12,3\right)", True),
        ("2x < 4", "2 > x", True),
        ("x^2+y^2=1", "1-x^2=y^2", True),
        (r"(-\infty,3]\cup[5,\infty)", r"[5,\infty)\cup(-\infty,3]", True),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}", True),
        (r"\text{Monday}", "monday", True),
        (r"\emptyset", r"\{\}", True),
        ("[1,2)", "(1,2)", False),
        ("(1,2)", "(2,1)", False),
        ("x<5", "x>5", False),
        ("x<5", r"x\le5", False),
        ("0.333", "1/3", False),
        (r"\pi", "3.14159", False),
        ("2", "2.005", False),
        ("even", "neve", False),
        ("120_3", "120_4", False),
        (r"\sqrt{x^2}", "x", False),
        ("C", "D", False),
        (r"\mathbb{R}", r"\mathbb{Z}", False),
    ],
)
def test_answers_that_are_mathematically_equal_get_one_spelling(
    algebra: Algebra, one: str, other: str, equal: bool
) -> None:
    found = algebra.canonise(one), algebra.canonise(other)
    assert all(found), "no spelling was found"
    assert (found[0] == found[1]) is equal


def test_hostile_answers_get_none_in_time_and_the_next_one_is_found(algebra: Algebra) -> None:
    assert algebra.canonise("x+3") == algebra.canonise("3+x") != ""
    hostile = [
        "9**9**9**9",
        r"9^{9^{9^9}}",
        r"\frac{1}{" * 1000 + "1" + "}" * 1000,
        r"\prod_{n=1}^{10^{9}} n",  # would never end
        "((10^{9999})^{9999})^{9999}",  # 50 gigabytes of digits
        "\ud800",
        "x\x00y",
        "__import__('os').system('true')",
    ]
    for raw in hostile:
        before = time.monotonic()
        assert algebra.canonise(raw) == ""
        assert time.monotonic() - before < 30.0  # its 1 s, and a new process where the last one hung
    assert algebra.canonise("x+4") == algebra.canonise("4+x") != ""


def test_memory_is_bounded_and_a_killed_process_is_replaced(algebra: Algebra) -> None:
    assert algebra.canonise("x+5") != ""
    assert algebra._process is not None
    limits = Path(f"/proc/{algebra._process.pid}/limits").read_text().splitlines()
    (space,) = (line.split()[3] for line in limits if line.startswith("Max address space"))
    assert int(space) == MAX_BYTES
    os.kill(algebra._process.pid, signal.SIGKILL)
    algebra._process.wait()
    assert algebra.canonise("x+6") == algebra.canonise("6+x") != ""


def test_plain_numbers_need_no_process() -> None:
    idle = Algebra()
    for raw, spelled in (("1/2", "0.5"), (r"\frac{1}{2}", "0.5"), (r"50\%", "50"), (" ", ""), ("", "")):
        assert idle.canonise(raw) == spelled
    assert idle._process is None


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.data.canonical, "find_spec", lambda name: None)
    task = Task(id="t", question="?", gold=("x",), answer_format="math")
    with pytest.raises(ConfigError, match="extra math"):
        canonise_gold([task])
    with pytest.raises(ConfigError, match="extra math"):
        Algebra().canonise("x+1")
    plain = Task(id="t", question="?", gold=("1",))
    assert canonise_gold([plain]) == [plain]


def test_tasks_are_loaded_with_their_gold_spelled(algebra: Algebra, tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(f'{{"question": "q{n}", "answer": "x + {n}/2"}}' for n in range(5)))
    split = load_split(FileSource(path=str(path), answer_format="math"))
    for task in (*split.train, *split.test):
        assert task.canonical_gold == (algebra.canonise(task.gold[0]),) != ("",)


def test_gold_that_no_reply_could_equal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(f'{{"question": "q{n}", "answer": "maybe"}}' for n in range(3)))
    with pytest.raises(TaskError, match="neither a letter nor the text"):
        load_split(FileSource(path=str(path), answer_format="choice"))


class Slow:
    """A canoniser in the test's hands: it tells what it was asked and answers when released."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.released = asyncio.Event()

    async def __call__(self, raw: str) -> str:
        self.asked.append(raw)
        await self.released.wait()
        return "".join(sorted(raw))


def arena_of(path: Path, host: Host, canonise: Canonise | None) -> Arena:
    arena = Arena(
        "a",
        path,
        fingerprint="f",
        build=build,
        protocol="society",
        cast=CAST,
        deadline_s=60.0,
        models=dict.fromkeys(AGENTS, "model"),
        hosts={"model": {"model": host.tell}},
        sync="normal",
        canonise=canonise,
    )
    host.arena = arena
    return arena


MATH = Task(id="m", question="?", gold=("1+x",), canonical_gold=("+1x",), answer_format="math")
PLAIN = Task(id="p", question="?", gold=("1",))


def said(ask: Ask) -> str:
    return {"ada": r"\boxed{x+1}", "bo": r"\boxed{1 + x}", "cy": "no idea"}[ask.agent]


@pytest.mark.asyncio
async def test_a_mathematical_answer_is_spelled_before_it_counts_and_delays_no_other(tmp_path: Path) -> None:
    path, slow = tmp_path / "a.sqlite", Slow()
    host = Host(lambda ask: reply(ask.id, said(ask)))
    arena = arena_of(path, host, slow)
    await arena.recover()
    arena.open([assignment(MATH), assignment(PLAIN)])
    (first,), _ = await arena.collect(5.0)  # PLAIN's end came while every answer to MATH waits
    assert first.debate_id == "s/p" and sorted(slow.asked) == ["1 + x", "x+1"]
    slow.released.set()
    (second,), stats = await arena.collect(5.0)
    await arena.close()
    assert stats.error == ""
    debate = debates({"m": second})["m"]
    assert {(node.agent, node.answer.value, node.answer.canonical, node.correct) for node in debate.utterances} == {
        ("ada", "x+1", "+1x", True),
        ("bo", "1 + x", "  +1x", False),  # this canoniser knows no better
        ("cy", None, "", False),
    }
    again = Arena(
        "b",
        path,
        fingerprint="f",
        build=build,
        protocol="society",
        cast=CAST,
        deadline_s=60.0,
        models={},
        hosts={},
        sync="normal",
    )
    closed, _ = await again.recover()
    await again.close()
    assert {item.graph for item in closed} == {first.graph, second.graph}


@pytest.mark.asyncio
async def test_what_was_spelled_is_on_record_and_replayed_without_algebra(tmp_path: Path) -> None:
    path, slow = tmp_path / "a.sqlite", Slow()
    slow.released.set()
    arena = arena_of(path, Host(lambda ask: reply(ask.id, said(ask)), stop_after=3), slow)
    await arena.recover()
    arena.open([assignment(MATH)])
    async with asyncio.timeout(5):
        while (await arena.collect(0.01))[1].replies < 3:
            pass
    await arena.close()
    (recorded,) = read_journal(path)
    spelled = [event.canonical for _, event in recorded.events if isinstance(event, Replied)]
    assert sorted(spelled) == ["", "  +1x", "+1x"]

    async def never(raw: str) -> str:
        raise AssertionError(f"{raw} was spelled again")

    host = Host(lambda ask: reply(ask.id, "no idea"))
    resumed = arena_of(path, host, never)
    await resumed.recover()
    (done,), stats = await resumed.collect(5.0)
    await resumed.close()
    assert stats.error == ""
    opening = [node.answer.canonical for node in debates({"m": done})["m"].utterances if node.round == 0]
    assert opening == ["+1x", "  +1x", ""]


@pytest.mark.asyncio
async def test_an_arena_whose_canoniser_cannot_work_says_why(tmp_path: Path) -> None:
    async def broken(raw: str) -> str:
        raise ConfigError("install moot with its extra math")

    arena = arena_of(tmp_path / "a.sqlite", Host(lambda ask: reply(ask.id, said(ask))), broken)
    await arena.recover()
    arena.open([assignment(MATH)])
    _, stats = await arena.collect(5.0)
    await arena.close()
    assert "extra math" in stats.error


@pytest.mark.asyncio
async def test_an_arena_closed_while_answers_are_spelled_leaves_nothing_behind(tmp_path: Path) -> None:
    slow = Slow()
    arena = arena_of(tmp_path / "a.sqlite", Host(lambda ask: reply(ask.id, said(ask))), slow)
    await arena.recover()
    arena.open([assignment(MATH)])
    async with asyncio.timeout(5):
        while len(slow.asked) < 2:
            await asyncio.sleep(0.001)
    await arena.close()
    assert not arena._settling


@pytest.mark.asyncio
async def test_answers_queue_and_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sleepy(Algebra):
        def canonise(self, raw: str) -> str:
            time.sleep(0.2)
            return raw.upper()

    canoniser = Canoniser(Sleepy())
    before = time.monotonic()
    assert tuple(await asyncio.gather(canoniser.canonise("a"), canoniser.canonise("b"))) == ("A", "B")
    assert time.monotonic() - before >= 0.4
    monkeypatch.setattr(engine.data.canonical, "QUEUE_S", 0.05)
    assert await canoniser.canonise("c") == ""  # not in time
    await asyncio.to_thread(canoniser.close)
