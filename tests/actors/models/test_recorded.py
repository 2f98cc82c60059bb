"""Replies out of a finished run's journals: which ask finds which, and what is said where there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors.models.backend import AdapterRef
from actors.models.recorded import RecordedBackend, RecordedSettings, check_run
from engine.config.recipe_file import load_recipe
from engine.record.journal import CloseEntry, EventEntry, Journal
from protocols.errors import AgentError, ConfigError, ReplyError
from protocols.graph import Debate, Edge, Utterance, Verdict, encode_debate
from protocols.machine import Opened
from protocols.message import Ask, Message, Reply, Sampling, Usage, assistant, user
from protocols.task import Task

QUESTION = (user("6 * 7?"),)


def node(ask_id: str, text: str, prompt: tuple[Message, ...] = QUESTION, agent: str = "ada") -> Utterance:
    reply = Reply(
        ask_id=ask_id, text=text, model="paid", usage=Usage(7, 3), token_ids=(1, 2), logprobs=(-0.5, -0.25),
        latency_s=3.0, tries=2, cost_usd=0.25,
    )  # fmt: skip
    return Utterance(
        id=ask_id.rpartition("#")[2], agent=agent, role="solver", round=0, phase="answer", prompt=prompt, reply=reply
    )


def write(
    run: Path, debate_id: str, nodes: Sequence[Utterance], *, edges: Sequence[Edge] = (), closed: bool = True
) -> None:
    """One debate into the journal of its stage, as an arena writes it."""
    (run / "run.json").parent.mkdir(exist_ok=True)
    (run / "run.json").write_text("{}")
    folder = run / "journal" / debate_id.partition("/")[0]
    folder.mkdir(parents=True, exist_ok=True)
    task = Task(id=debate_id, question="6 * 7?")
    debate = Debate(id=debate_id, task=task, protocol="society", seed=0, cast={"solver": ("ada",)})
    for each in nodes:
        debate.add(each, [edge for edge in edges if edge.target == each.id])
    debate.close(Verdict(answer="42", stop_reason="rounds", aggregator="majority_vote"))
    journal = Journal(folder / "arena-000.sqlite", fingerprint="f")
    opened = Opened(debate_id=debate_id, task=task, seed=0)
    journal.commit([EventEntry(debate_id, 0, 0.0, opened)])
    if closed:
        journal.commit([CloseEntry(debate_id, 1.0, encode_debate(debate))])
    journal.close()


def ask(
    ask_id: str, messages: tuple[Message, ...] = QUESTION, agent: str = "ada", role: str = "solver", **drawn: Any
) -> Ask:
    return Ask(
        id=ask_id, debate_id=ask_id.partition("#")[0], agent=agent, role=role, messages=messages,
        sampling=Sampling(**drawn),
    )  # fmt: skip


def replies(run: Path, *asks: Ask, stage: str = "") -> list[Reply]:
    async def work() -> list[Reply]:
        backend = RecordedBackend(RecordedSettings(run=str(run), stage=stage))
        await backend.start()
        return [await backend.generate(each, None) for each in asks]

    return asyncio.run(work())


def test_a_reply_comes_back_as_it_was_but_costs_no_time_and_no_money(tmp_path: Path) -> None:
    recorded = node("debate/t1#0.answer.0", "42")
    write(tmp_path, "debate/t1", [recorded])
    (found,) = replies(tmp_path, ask("debate/t1#0.answer.0", temperature=0.1, seed=9))
    assert found == msgspec.structs.replace(recorded.reply, latency_s=0.0, tries=1, cost_usd=0.0)
    assert found.token_ids == (1, 2) and found.model == "paid"


def test_of_asks_with_the_same_words_the_id_decides_then_the_turn_then_always_the_same(tmp_path: Path) -> None:
    for stage in ("debate", "eval-0"):
        nodes = [node(f"{stage}/t1#0.answer.{seat}", f"{stage} {seat}") for seat in range(3)]
        write(tmp_path, f"{stage}/t1", nodes)
    ids = ["eval-0/t1#0.answer.1", "debate/t1#0.answer.1", "debate-7/t1#0.answer.2", "other/t9#0.answer.5"]
    texts = [reply.text for reply in replies(tmp_path, *map(ask, ids))]
    assert texts[:3] == ["eval-0 1", "debate 1", "debate 2"]
    assert texts == [reply.text for reply in replies(tmp_path, *map(ask, ids[::-1]))][::-1]
    assert len({replies(tmp_path, ask(f"x/t{n}#0.answer.0"))[0].text for n in range(40)}) > 2
    assert replies(tmp_path, ask(ids[0]), stage="debate")[0].text == "debate 1"


@pytest.mark.parametrize(
    "other",
    [
        ask("debate/t1#0.answer.0", (user("6 * 8?"),)),
        ask("debate/t1#0.answer.0", agent="bo"),
        ask("debate/t1#0.answer.0", role="judge"),
    ],
)
def test_what_was_not_asked_is_a_miss_though_the_id_is_the_same(tmp_path: Path, other: Ask) -> None:
    write(tmp_path, "debate/t1", [node("debate/t1#0.answer.0", "42")])
    with pytest.raises(
        ReplyError, match=r"holds no reply of '(ada|bo)' as (solver|judge) to what ask debate/t1#0"
    ) as err:
        replies(tmp_path, other)
    assert err.value.kind == "malformed"


def test_a_chat_is_found_with_all_that_was_said_before(tmp_path: Path) -> None:
    first = node("debate/t1#0.answer.0", "41")
    second = node("debate/t1#1.answer.0", "42", (user("Sure?"),))
    write(tmp_path, "debate/t1", [first, second], edges=[Edge(first.id, second.id, "memory")])
    chat = (*QUESTION, assistant("41"), user("Sure?"))
    assert replies(tmp_path, ask("debate/t1#1.answer.0", chat))[0].text == "42"
    with pytest.raises(ReplyError, match="holds no reply"):
        replies(tmp_path, ask("debate/t1#1.answer.0", (user("Sure?"),)))


def test_more_debates_than_a_page_are_all_read(tmp_path: Path) -> None:
    asks = []
    for number in range(70):
        words = (user(f"{number} * 7?"),)
        write(tmp_path, f"debate/t{number}", [node(f"debate/t{number}#0.answer.0", str(number), words)])
        asks.append(ask(f"debate/t{number}#0.answer.0", words))
    assert [reply.text for reply in replies(tmp_path, *asks)] == [str(number) for number in range(70)]


def test_hits_and_misses_are_counted_and_nothing_learns(tmp_path: Path) -> None:
    write(tmp_path, "debate/t1", [node("debate/t1#0.answer.0", "42")])

    async def work() -> dict[str, float]:
        backend = RecordedBackend(RecordedSettings(run=str(tmp_path)))
        info = await backend.start()
        assert info.takes_images and not info.takes_adapters
        await backend.generate(ask("debate/t1#0.answer.0"), None)
        with pytest.raises(ReplyError):
            await backend.generate(ask("debate/t1#0.answer.0", role="judge"), None)
        with pytest.raises(AgentError, match="cannot speak through replies on record"):
            await backend.load_adapter(AdapterRef(name="ada@r-v1", agent="ada", path="."))
        return backend.metrics()

    assert asyncio.run(work()) == {"replies": 1, "hits": 1, "misses": 1}


def test_a_run_without_what_is_wanted_is_one_sentence(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"is not a run's folder; `moot list` names the runs"):
        check_run(RecordedSettings(run=str(run)))
    write(run, "debate/t1", [node("debate/t1#0.answer.0", "42")], closed=False)
    check_run(RecordedSettings(run=str(run)))
    with pytest.raises(ConfigError, match=r"stage='debate-2' is not one of .*; there is: debate"):
        check_run(RecordedSettings(run=str(run), stage="debate-2"))
    with pytest.raises(AgentError, match="holds no closed debate; finish it with `moot resume"):
        replies(run)
    (run / "journal" / "debate" / "arena-000.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(AgentError, match="cannot be read"):
        replies(run)


def test_the_example_says_which_run_it_wants() -> None:
    recipe = load_recipe(Path(__file__).resolve().parents[3] / "examples" / "recorded.yaml")
    assert recipe.models["first"].settings == RecordedSettings(run="runs/first", stage="debate")


@pytest.mark.parametrize("settings", [{"run": ""}, {"run": "r", "stage": "../x"}, {"run": "r", "on_mis": "fail"}, {}])
def test_a_wrong_setting_is_refused(settings: dict[str, str]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(settings, RecordedSettings)
