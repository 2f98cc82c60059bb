"""A debate with made-up replies, to see who would be asked what before anybody is. No model, no Ray, no disk."""

from __future__ import annotations

from engine.config.named_protocol import find_protocol
from engine.config.recipe import Recipe
from protocols.machine import Command, DeadlinePassed, Machine, Opened, Replied, Request
from protocols.message import Ask, Reply
from protocols.task import Task

MAX_EVENTS = 1000  # a debate that has not closed by then has shown what it shows


def agents_shown_images(recipe: Recipe, task: Task) -> list[str]:
    """The agents whom a debate about the task sends images, by name; none where the protocol leaves images out.

    Raises: TaskError: the protocol can do nothing with the task.
    """
    machine = find_protocol(recipe.protocol)(recipe.settings, recipe.players, recipe.prompts)
    return sorted({ask.agent for ask in rehearse(machine, task) if any(message.images for message in ask.messages)})


def rehearse(machine: Machine, task: Task) -> list[Ask]:
    """Every ask of one debate in which right and wrong answers take turns."""
    asks = _asked(machine.receive(Opened(debate_id="rehearsal", task=task, seed=0)))
    answered, events = 0, 0
    while not machine.closed and events < MAX_EVENTS:
        waiting = next((ask for ask in asks[answered:] if ask.id in machine.outstanding), None)
        if waiting is None:
            asks += _asked(machine.receive(DeadlinePassed(machine.phase_index)))
        else:
            answered = asks.index(waiting, answered) + 1
            asks += _asked(machine.receive(Replied(Reply(ask_id=waiting.id, text=_text(task, answered), model="none"))))
        events += 1
    return asks


def _asked(commands: list[Command]) -> list[Ask]:
    return [command.ask for command in commands if isinstance(command, Request)]


def _text(task: Task, number: int) -> str:
    """A reply that most formats read an answer in; every other one is right, so that all ways of a script are gone."""
    gold = task.gold[0] if task.gold else "1"
    said = gold if number % 2 else task.choices[-1] if task.choices else "0"
    return f"The answer is {said}. \\boxed{{{said}}}"
