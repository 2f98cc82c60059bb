"""A person as an agent: the desk between hosts and whoever serves it, the terminal, and a run at a real one."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import yaml

from actors.models.backend import AdapterRef
from actors.models.human import FrontDesk, HumanBackend, HumanSettings, Question
from engine.check import check_recipe
from engine.config.recipe_file import load_recipe
from engine.debates.terminal import Terminal, check_people, harmless, people, render
from protocols.errors import AgentError, ConfigError, ReplyError
from protocols.message import Ask, ImagePart, Reply, Sampling, assistant, system, user
from tests.integration.command import ROOT, RunOnDisk, check_clean, moot_in

EXAMPLE = ROOT / "examples" / "human.yaml"


def ask(number: int = 0) -> Ask:
    return Ask(
        id=f"d{number}#0.judge.0", debate_id=f"d{number}", agent="me", role="judge", messages=(user("Who is right?"),),
        sampling=Sampling(),
    )  # fmt: skip


class DeskHere:
    """A desk in this process, as a backend sees it and, with ``handle``, as whoever serves it does."""

    def __init__(self) -> None:
        self.front = FrontDesk()
        self.handle = SimpleNamespace(
            take=SimpleNamespace(remote=self.front.take), answer=SimpleNamespace(remote=self.front.answer)
        )

    async def ask(self, person: str, ask: Ask) -> str:
        return await self.front.ask(ask.id, person, ask)


async def soon(ready: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not ready():
            await asyncio.sleep(0.001)


# The backend and the desk


def test_a_person_s_text_becomes_the_reply() -> None:
    async def run() -> Reply:
        desk = DeskHere()
        backend = HumanBackend(HumanSettings(person="Ann"), desk)
        info = await backend.start()
        assert (info.max_concurrency, info.takes_images, info.takes_adapters) == (1, True, False)
        asked = asyncio.create_task(backend.generate(ask(), None))
        question = await desk.front.take(5.0)
        assert question is not None and (question.person, question.ask) == ("Ann", ask())
        assert await desk.front.answer(question.ticket, "The first.")
        reply = await asked
        assert backend.metrics() == {"asked": 1, "answered": 1}
        assert not await desk.front.answer(question.ticket, "The second.")
        return reply

    reply = asyncio.run(run())
    assert (reply.ask_id, reply.text, reply.model, reply.token_ids) == (ask().id, "The first.", "human:Ann", ())


def test_questions_come_in_order_and_withdrawn_ones_not_at_all() -> None:
    async def run() -> list[str]:
        desk = DeskHere()
        asked = [asyncio.create_task(desk.ask("", ask(number))) for number in range(4)]
        await asyncio.sleep(0)
        asked[1].cancel()
        first = await desk.front.take(5.0)
        assert first is not None
        asked[0].cancel()  # while the person is writing
        await asyncio.gather(*asked[:2], return_exceptions=True)
        assert not await desk.front.answer(first.ticket, "too late")
        rest = [await desk.front.take(0.01) for _ in range(3)]
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        return [question.ask.id if question else "" for question in (first, *rest)]

    assert asyncio.run(run()) == ["d0#0.judge.0", "d2#0.judge.0", "d3#0.judge.0", ""]


def test_a_person_takes_no_adapter() -> None:
    with pytest.raises(AgentError, match="is a person; leave it out of train"):
        asyncio.run(HumanBackend(HumanSettings(), DeskHere()).load_adapter(AdapterRef(name="a", agent="b", path="c")))


def test_without_a_desk_the_ask_fails_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(name: str) -> None:
        raise ValueError(f"Failed to look up actor with name {name!r}")

    monkeypatch.setattr("ray.get_actor", nobody)
    with pytest.raises(ReplyError, match="nobody serves the desk where Ann would answer"):
        asyncio.run(HumanBackend(HumanSettings(person="Ann")).generate(ask(), None))


@pytest.mark.parametrize("name", ["x" * 81, "Ann\x1b[2J"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="up to 80 printable letters"):
        msgspec.convert({"person": name}, HumanSettings)


# The terminal


def test_what_is_shown_names_roles_images_and_the_way_to_answer() -> None:
    shown = msgspec.structs.replace(
        ask(), messages=(system("Be fair."), user("Who?", [ImagePart(sha256="ab")]), assistant("Ada."), user("Sure?"))
    )
    text = render(Question("t", "Ann", shown), 3, Path("/run/media"))
    assert text.splitlines()[1:] == [
        "--- question 3 for Ann: you are me, the judge, in d0 ---",
        "[system]", "Be fair.",
        "[user]", "(image /run/media/ab)", "Who?",
        "[assistant]", "Ada.",
        "[user]", "Sure?",
        "--- write your reply; a line with only '.' (or Ctrl-D) sends it ---",
    ]  # fmt: skip


def test_what_a_model_says_cannot_steer_the_terminal() -> None:
    assert harmless("a\x1b[2J\x07b\u202ec\x9bd\r\ne\tf\rg") == "a\ufffd[2J\ufffdb\ufffdc\ufffdd\ne\tf\ufffdg"
    assert harmless("नहीं क्‍या 👩‍🚀") == "नहीं क्‍या 👩‍🚀"


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal: where a person types, and what a program reads."""
    typing, reading = pty.openpty()
    yield typing, reading
    for fd in (typing, reading):
        try:
            os.close(fd)
        except OSError:  # a test may have hung up
            continue


def served(terminal: tuple[int, int], work: Callable[[DeskHere, list[str]], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        desk, shown = DeskHere(), list[str]()
        serving = asyncio.create_task(Terminal(desk.handle, Path("media"), terminal[1], shown.append).serve())
        working = asyncio.ensure_future(work(desk, shown))
        await asyncio.wait([serving, working], return_when=asyncio.FIRST_COMPLETED, timeout=20)
        try:
            return working.result() if working.done() else serving.result()
        finally:
            for task in (serving, working):
                task.cancel()
            await asyncio.gather(serving, working, return_exceptions=True)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        (b"The first.\n.\n", "The first."),
        (b"One\n\n  two \n.\n", "One\n\n  two"),
        ("Grüße, 世界\n.\n".encode(), "Grüße, 世界"),
        (b"ended by\nthe key\n\x04", "ended by\nthe key"),
        (b"half a line\x04\x04", "half a line"),
        (b".\n\x04 \n.\nat last\n.\n", "at last"),
        (b"\xff\xfe\n.\n", "\ufffd\ufffd"),
    ],
)
def test_a_reply_ends_with_a_dot_or_the_end_of_input(terminal: tuple[int, int], typed: bytes, text: str) -> None:
    async def work(desk: DeskHere, shown: list[str]) -> str:
        asked = asyncio.create_task(desk.ask("Ann", ask()))
        await soon(lambda: bool(shown))
        os.write(terminal[0], typed)
        return await asked

    assert served(terminal, work) == text


def test_one_question_is_shown_at_a_time_and_a_late_reply_is_told(terminal: tuple[int, int]) -> None:
    async def work(desk: DeskHere, shown: list[str]) -> str:
        late, asked = (asyncio.create_task(desk.ask("", ask(number))) for number in range(2))
        await soon(lambda: bool(shown))
        assert len(shown) == 1 and "in d0" in shown[0]
        late.cancel()  # its time is up
        os.write(terminal[0], b"for the first\n.\n")
        await soon(lambda: len(shown) == 3)
        assert "too late" in shown[1] and "in d1" in shown[2]
        os.write(terminal[0], b"for the second\n.\n")
        return await asked

    assert served(terminal, work) == "for the second"


def test_a_terminal_that_goes_ends_the_run_with_a_sentence(terminal: tuple[int, int]) -> None:
    async def work(desk: DeskHere, shown: list[str]) -> str:
        asked = asyncio.create_task(desk.ask("", ask()))
        await soon(lambda: bool(shown))
        os.close(terminal[0])
        return await asked

    with pytest.raises(AgentError, match=r"the terminal is gone.*; go on with `moot resume`"):
        served(terminal, work)


# The recipe


def test_a_person_in_the_cast_needs_a_terminal_one_at_a_time_and_a_patient_protocol() -> None:
    recipe = load_recipe(EXAMPLE)
    assert people(recipe) == {"me": "you"}
    assert (recipe.models["you"].limits.timeout_s, recipe.models["you"].limits.max_tries) == (86400, 1)
    check_people(recipe, "r", terminal=True)
    with pytest.raises(ConfigError, match=r"agents.me is played by a person \(models.you\), who needs a terminal"):
        check_people(recipe, "r", terminal=False)
    for override, words in (
        ("models.you.limits.max_concurrency=2", "a person answers one at a time"),
        ("protocol.deadline_s=600", r"set protocol.deadline_s >= 86400"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_people(load_recipe(EXAMPLE, [override]), "r", terminal=True)
    brief = load_recipe(EXAMPLE, ["protocol.deadline_s=600", "models.you.limits.timeout_s=500"])
    check_people(brief, "r", terminal=True)
    assert people(load_recipe(EXAMPLE, ["cast.generator=[ada, bo]"])) == {}


def test_a_check_without_a_terminal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ConfigError, match="who needs a terminal, and this is none"):
        check_recipe(EXAMPLE, [], None)


# A run at a real terminal


class AtTerminal:
    """A command whose input and messages are a pseudo-terminal."""

    def __init__(self, command: list[str], env: dict[str, str], folder: Path) -> None:
        self._fd, theirs = pty.openpty()
        self.shown = ""
        with open(folder / "out", "wb") as out:
            self.process = subprocess.Popen(
                command, stdin=theirs, stderr=theirs, stdout=out, env=env, cwd=folder, start_new_session=True
            )
        os.close(theirs)

    def read_until(self, words: str, timeout_s: float = 200.0) -> None:
        """Raises: AssertionError: it did not come, with what did."""
        deadline = time.monotonic() + timeout_s
        while words not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self._fd], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._fd, 65536).decode("utf-8", "replace")
                except OSError:  # it has hung up: all has been read
                    assert words in self.shown, self.shown

    def type(self, text: str) -> None:
        self.shown = ""
        os.write(self._fd, text.encode())

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)
        os.close(self._fd)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_person_plays_in_a_run_at_a_terminal(tmp_path: Path) -> None:
    recipe = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    (tmp_path / "human.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    with moot_in(tmp_path) as moot:
        refused = moot("run", "human.yaml")
        assert (refused.wait(), "needs a terminal" in refused.sentence()) == (2, True)
        command = [sys.executable, "-m", "engine", "run", "human.yaml", "--run-dir", "run", "--json"]
        there = AtTerminal(command, moot.env, tmp_path)
        try:
            there.read_until("sends it ---")
            assert "question 1 for you: you are me, the generator" in there.shown
            there.type("I say\n\\boxed{7}\n.\n")
            there.read_until("sends it ---")
            assert "question 2 for you" in there.shown and "Worked out step by step" in there.shown
            there.type("Still \\boxed{7}\n.\n")
            assert there.process.wait(600) == 0
        finally:
            there.end()
        (line,) = (tmp_path / "out").read_text().splitlines()
        assert json.loads(line)["replies"] == 6
        (debate,) = RunOnDisk(tmp_path / "run").debates("debate").values()
        mine = [node for node in debate.utterances if node.agent == "me"]
        assert [(node.reply.text, node.reply.model, node.answer.value) for node in mine] == [
            ("I say\n\\boxed{7}", "human:you", "7"),
            ("Still \\boxed{7}", "human:you", "7"),
        ]
        check_clean(there.shown)
