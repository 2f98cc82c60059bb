"""What the benchmarks claim of themselves: peers debate in moot's own words, a barrier holds rounds apart, padding is
no work done, an iteration lasts from adapter to adapter."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks import peers_work, sft, staleness
from benchmarks.barrier import Barrier
from protocols.conversation import Player
from protocols.machine import Command, Opened, Replied, Request
from protocols.message import Ask, Reply, Sampling
from protocols.prompt import load_prompts
from protocols.society import Society, SocietySettings
from protocols.task import Task


def chats(commands: list[Command]) -> list[peers_work.Chat]:
    asks = [command.ask for command in commands if isinstance(command, Request)]
    return [[{"role": message.role, "content": message.text} for message in ask.messages] for ask in asks]


def test_peers_debate_in_moots_own_words() -> None:
    cast = {"generator": tuple(Player(name=name) for name in peers_work.AGENTS)}
    machine = Society(SocietySettings(), cast, load_prompts(peers_work.PROMPT_SET, Society.SLOTS))
    (question,) = peers_work.questions(1, seed=0)
    opened = machine.receive(Opened(debate_id="d", task=Task(id="t", question=question), seed=1))
    assert chats(opened) == [peers_work.opening(question)] * 3
    asked = [command.ask.id for command in opened if isinstance(command, Request)]
    revised: list[Command] = []
    for seat, ask_id in enumerate(asked):
        revised = machine.receive(Replied(Reply(ask_id=ask_id, text=f"reply {seat}", model="m")))
    for seat, chat in enumerate(chats(revised)):
        others = [f"reply {other}" for other in range(3) if other != seat]  # shown in an order that moot draws
        own = f"reply {seat}"
        assert chat in (
            peers_work.revision(question, own, others),
            peers_work.revision(question, own, others[::-1]),
        )


@pytest.mark.asyncio
async def test_a_barrier_lets_a_round_pass_when_the_one_before_is_over() -> None:
    def ask(number: int) -> Ask:
        return Ask(id=f"d#{number}.answer.0", debate_id="d", agent="a", role="r", messages=(), sampling=Sampling())

    barrier = Barrier(asks_a_round=2, rounds=2)
    tickets = [await barrier.enter(ask(0)) for _ in range(2)]
    later = asyncio.create_task(barrier.enter(ask(1)))
    barrier.leave(tickets[0], None)
    await asyncio.sleep(0)
    assert not later.done()
    barrier.leave(tickets[1], None)
    assert await later == 1


def test_tokens_a_second_are_those_of_rows_behind_the_first_step() -> None:
    lengths = [1, 3, 4, 6, 2, 2]
    runs = [
        {"variant": "trl", "times": [5.0, 7.0, 9.0], "losses": [4.0, 2.0, 1.0], "first_step_s": 5.0},
        {"variant": "padded", "times": [6.0, 7.0, 8.0], "losses": [4.0, 2.0, 1.1], "first_step_s": 6.0},
    ]
    told = sft.figures("padded", lengths, 2, 2048, runs)
    assert (told["tokens_per_s"], told["of_trl"], told["steps"]) == ([7.0], [2.0], 3)
    assert told["loss_difference"] == pytest.approx(0.1)
    assert told["filled"] == pytest.approx(18 / (2 * 3 + 2 * 6 + 2 * 2))


def test_an_iteration_ahead_is_timed_from_adapter_to_adapter() -> None:
    spans = [
        staleness.Span(staleness=0, closed=[50.0, 130.0, 210.0], trained=[80.0, 160.0, 240.0], stale_share=0.0),
        staleness.Span(staleness=1, closed=[50.0, 100.0, 150.0], trained=[90.0, 150.0, 210.0], stale_share=1.0),
    ]
    found = staleness.figures(spans)
    assert (found["later_0_s"], found["later_1_s"]) == ([80.0], [60.0])
    assert found["times_faster"] == [pytest.approx(4 / 3)]
    assert (found["G"], found["R"]) == ([50.0, 50.0], [30.0, 30.0, 30.0])
    assert found["T"] == [60.0]  # of the third alone all rows were there when its trainings could begin
    assert (found["loop_0_s"], found["loop_1_s"]) == ([240.0], [210.0])
