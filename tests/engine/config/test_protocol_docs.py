"""What the docs and `moot protocols` say is what the classes say; the tutorial's protocol runs as it is printed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from engine.cli import main
from engine.config.named_protocol import find_protocol
from engine.config.protocol_docs import BEGIN, comments_of, markdown, rewritten, settings_of, show
from protocols.catalogue import PROTOCOLS, prompts_of
from protocols.conversation import Conversation, Flow, Player, ProtocolSettings
from protocols.errors import ConfigError
from protocols.message import Ask
from protocols.task import Task
from tests.fakes import node_of, play, told

ROOT = Path(__file__).parents[3]
TUTORIAL = ROOT / "docs" / "tutorial" / "review.py"
TASK = Task(id="t", question="What is 24 + 19?", gold=("43",))


@pytest.fixture
def review(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Conversation]]:
    monkeypatch.syspath_prepend(str(TUTORIAL.parent))
    yield find_protocol("review:Review")
    sys.modules.pop("review", None)


def machine(review: type[Conversation]) -> Conversation:
    settings = ProtocolSettings()
    cast = {"writer": (Player(name="ada"),), "reviewer": (Player(name="bo"),)}
    return review(settings, cast, prompts_of(review, settings))


def test_the_docs_hold_what_the_code_says() -> None:
    page = (ROOT / "docs" / "protocols.md").read_text(encoding="utf-8")
    assert page == rewritten(page), "docs/protocols.md is out of date: run `moot protocols docs docs/protocols.md`"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_setting_says_what_it_means(name: str) -> None:
    silent = [key for key, _, meaning in settings_of(PROTOCOLS[name].SETTINGS) if not meaning]
    assert silent == []


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_section_names_every_phase_role_and_departure(name: str) -> None:
    text, found = markdown(name), PROTOCOLS[name]
    assert all(f"{phase.value} -->" in text for phase in found.FLOW)
    assert all(f"| `{role}` |" in text for role in found.ROLES)
    assert found.SOURCE in text
    assert show(name)["phases"].keys() == {phase.value for phase in found.FLOW}


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks"):
        rewritten("# Protocols")
    with pytest.raises(ValueError, match="lacks"):
        rewritten(f"# Protocols\n{BEGIN}")


def test_comments_are_read_from_the_source() -> None:
    assert comments_of(ProtocolSettings)["tie_break"] == "of every vote"
    assert comments_of(int) == {}


def test_the_tutorial_is_as_short_as_it_says_and_printed_whole() -> None:
    code = TUTORIAL.read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 40
    assert code in (ROOT / "docs" / "writing-a-protocol.md").read_text(encoding="utf-8")


def test_the_tutorial_mends_what_the_reviewer_dislikes(review: type[Conversation]) -> None:
    said = {
        "0.answer.0": r"\boxed{44}",
        "0.review.0": "No: 4 + 9 is 13.",
        "1.answer.0": r"\boxed{43}",
        "1.review.0": "OK",
    }
    played = play(machine(review), TASK, lambda ask: said[node_of(ask)])
    assert played.asked() == list(said)
    assert (played.verdict.answer, played.verdict.stop_reason, played.verdict.correct) == ("43", "accepted", True)
    assert "No: 4 + 9 is 13." in told(played.ask("1.answer.0"))
    assert {(edge.source, edge.target, edge.kind) for edge in played.debate.edges} == {
        ("0.answer.0", "0.review.0", "saw"),
        ("0.answer.0", "1.answer.0", "memory"),
        ("0.review.0", "1.answer.0", "saw"),
        ("1.answer.0", "1.review.0", "saw"),
    }


@pytest.mark.parametrize(("silent", "reason"), [("0.answer.0", "no_replies"), ("0.review.0", "failures")])
def test_the_tutorial_ends_whoever_falls_silent(review: type[Conversation], silent: str, reason: str) -> None:
    def answer(ask: Ask) -> str | None:
        return None if node_of(ask) == silent else r"\boxed{44}"

    assert play(machine(review), TASK, answer).verdict.stop_reason == reason


def test_a_protocol_of_ones_own_is_found_or_refused_with_a_sentence(review: type[Conversation]) -> None:
    with pytest.raises(ConfigError, match="has no Conversation called 'Nothing'"):
        find_protocol("review:Nothing")
    with pytest.raises(ConfigError, match="cannot import 'nowhere'"):
        find_protocol("nowhere:Review")
    with pytest.raises(ConfigError, match="use one of: society"):
        find_protocol("debate")


def test_a_protocol_with_a_hole_in_its_flow_is_refused(
    review: type[Conversation], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, writing, reviewing, closed = review.FLOW

    class Stuck(review):  # type: ignore[misc, valid-type]
        NAME = "stuck"
        FLOW: ClassVar[Flow] = {waiting: {writing}, writing: {closed}, reviewing: {closed}, closed: set()}

    monkeypatch.setattr(sys.modules["review"], "Stuck", Stuck, raising=False)
    with pytest.raises(ConfigError, match=r"'stuck' cannot be used: phase reviewing cannot be reached"):
        find_protocol("review:Stuck")


def test_the_commands_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["protocols"], standalone_mode=False)
    assert ended.value.code == 0
    listed = capsys.readouterr().out
    assert all(f"{name}: " in listed for name in PROTOCOLS)
    with pytest.raises(SystemExit):
        main(["protocols", "show", "society"], standalone_mode=False)
    assert "stateDiagram-v2" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["protocols", "show", "sociaty"], standalone_mode=False)
    assert ended.value.code == 2
    assert "no protocol 'sociaty'" in capsys.readouterr().err


def test_the_tutorial_imports_from_the_public_names_alone() -> None:
    spec = importlib.util.spec_from_file_location("tutorial_review", TUTORIAL)
    assert spec is not None
    assert "from protocols import" in TUTORIAL.read_text(encoding="utf-8")
    assert "protocols." not in TUTORIAL.read_text(encoding="utf-8").replace("protocols import", "")
