"""The two sides of a persuasion debate: the answers they defend, and the names they argue under."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Literal

import msgspec

from protocols.answer import Answer, equivalent, grade
from protocols.choice import letter_for
from protocols.conversation import Turn
from protocols.errors import TaskError
from protocols.prompt import PromptSet
from protocols.quotes import verify_quotes, words_of
from protocols.task import Task, letter_of

Assign = Literal["seeded", "gold"]
Side = Literal["a", "b"]
Method = Literal["debate", "consultancy"]
SIDES: tuple[Side, Side] = ("a", "b")

_VERIFIED = re.compile(r"(<v_quote>.*?</v_quote>)", re.DOTALL)


class Position(msgspec.Struct, frozen=True):
    """An answer that somebody defends: as prompts show it, and as a verdict names it."""

    text: str
    value: str


def positions_of(task: Task, assign: Assign, rng: random.Random) -> tuple[Position, Position]:
    """The answers defended by A and by B, in an order that ``rng`` draws.

    ``seeded`` takes the task's two choices and looks at no gold. ``gold`` takes a right answer and a wrong one: of the
    choices (the wrong one drawn, unless ``details["incorrect_answer"]`` names it), or, where there are none, the first
    gold answer and ``details["incorrect_answer"]``.

    Raises: TaskError: the task does not hold two such answers.
    """
    pair = _choices(task) if assign == "seeded" else _right_and_wrong(task, rng)
    if len(pair) != 2 or not all(position.text.strip() for position in pair) or equivalent(pair[0].text, pair[1].text):
        have = ", ".join(repr(position.text[:40]) for position in pair[:5]) or "none"
        raise TaskError(
            f"task {task.id!r}: one choice for each side is needed, two different ones, and it has {have}; "
            "mend tasks.choices"
            + (", or set protocol.assign: gold to debate a right and a wrong one" if assign == "seeded" else "")
        )
    first = rng.randrange(2)
    return pair[first], pair[1 - first]


def _choices(task: Task) -> list[Position]:
    lettered = task.answer_format == "choice"
    return [Position(text, letter_of(number) if lettered else text) for number, text in enumerate(task.choices)]


def _right_and_wrong(task: Task, rng: random.Random) -> list[Position]:
    named = task.details.get("incorrect_answer", "")
    if not task.gold:
        raise TaskError(f"task {task.id!r} has no gold answer, which protocol.assign: gold needs; set assign: seeded")
    choices = _choices(task) or [Position(text, text) for text in (task.gold[0], named)]
    right = [position for position in choices if grade(Answer(position.value, "choice"), task)]
    wrong = [position for position in choices if position not in right]
    if named and task.choices:  # by its text, or else by its letter
        letter = letter_for(named, task.choices)
        known = [position for position in choices if equivalent(named, position.text)]
        known = known or ([choices[ord(letter) - ord("A")]] if letter else [])
        wrong = [position for position in wrong if position in known]
    if not right or not wrong or not wrong[0].text:
        raise TaskError(
            f"task {task.id!r}: protocol.assign: gold needs a right and a wrong answer: among its choices, or, "
            "where it has none, with the wrong one in details under incorrect_answer"
        )
    return [right[0], rng.choice(wrong)]


def exchange_names(text: str, names: tuple[str, str]) -> str:
    """The text with the two names exchanged, and (A) with (B): for who is shown the debate the other way round."""
    text = re.sub(r"\(([AB])\)", lambda found: "(B)" if found[1] == "A" else "(A)", text)
    if not all(names):
        return text
    one, other = map(re.escape, names)
    known = re.compile(rf"\b(?:({one})|{other})(?!\w)", re.IGNORECASE)
    return known.sub(lambda found: names[1] if found[1] else names[0], text)


class Stage:
    """What prompts show of a debate: what is held, who says what, and what they have read.

    Args:
        answers: those that A and B defend.
        passage: what debaters alone read; quotes are looked up in it.
    """

    def __init__(self, prompts: PromptSet, method: Method, answers: tuple[str, str], passage: str) -> None:
        self._prompts, self._method, self._answers = prompts, method, answers
        self._words = words_of(passage)
        self.background = prompts.fill("background", passage=passage) if passage else ""
        self.names = prompts.fill("debater", letter="A"), prompts.fill("debater", letter="B")

    def answers(self, swapped: bool) -> tuple[str, str]:
        """Those of A and of B, as whoever is shown the two sides exchanged knows them."""
        return (self._answers[1], self._answers[0]) if swapped else self._answers

    def rules(self, swapped: bool) -> str:
        """What is held, and which answers are at stake."""
        answer_a, answer_b = self.answers(swapped)
        name_a, name_b = self.names
        return self._prompts.fill(self._method, answer_a=answer_a, answer_b=answer_b, name_a=name_a, name_b=name_b)

    def transcript(self, moments: Sequence[Sequence[Turn]], swapped: bool) -> list[str]:
        """What was said, speaker by speaker; of those who spoke at one moment either may come first."""
        ordered = [turn for moment in moments for turn in (reversed(moment) if swapped else moment)]
        entries = [
            self._prompts.fill("entry", name=self._speaker(turn), text=self.verified(turn.text)) for turn in ordered
        ]
        return [self._exchanged(entry) for entry in entries] if swapped else entries

    def _exchanged(self, entry: str) -> str:
        """With the names exchanged; a verified quote stays as it stands in the text."""
        pieces = _VERIFIED.split(entry)
        return "".join(
            piece if number % 2 else exchange_names(piece, self.names) for number, piece in enumerate(pieces)
        )

    def _speaker(self, turn: Turn) -> str:
        return self.name(turn.seat[0]) if turn.role == "debater" else self._prompts.fill("questioner")

    def name(self, side: str) -> str:
        """What a side is called."""
        return self.names[SIDES.index(side)] if self._method == "debate" else self._prompts.fill("consultant")

    def verified(self, text: str) -> str:
        """What was said, as others are shown it."""
        return verify_quotes(text, self._words)
