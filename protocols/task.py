"""A task: one question, and what would count as a right answer."""

from __future__ import annotations

import hashlib
import string

import msgspec

from protocols.message import ImagePart


class Task(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A question with optional choices, images and accepted answers.

    ``gold`` never reaches a prompt unless a protocol says so and its verdict says ``oracle``.
    """

    id: str
    question: str
    gold: tuple[str, ...] = ()  # any one of them is right; empty where nobody knows
    choices: tuple[str, ...] = ()
    images: tuple[ImagePart, ...] = ()
    dataset: str = ""
    answer_format: str = "number"  # how a reply's answer is read: see protocols.answer
    tolerance: float = 0.0  # numbers this far apart, absolutely, still count as equal; in the answer's unit
    canonical_gold: tuple[str, ...] = ()  # aligned with gold, for formats that need an algebra system
    held_out: bool = False  # for evaluation alone: nothing is ever learned from its debates
    details: dict[str, str] = {}  # what a protocol or an exporter needs beside: a category, a caption, the source's id


def render_question(task: Task) -> str:
    """The question as every prompt shows it: its choices lettered (A), (B), ... beneath."""
    if not task.choices:
        return task.question
    lettered = [f"({letter_of(number)}) {choice}" for number, choice in enumerate(task.choices)]
    return "\n".join((task.question, "Choices:", *lettered))


def letter_of(number: int) -> str:
    """The letter of choice ``number`` (from 0); a question has at most 26. Raises: IndexError: more."""
    return string.ascii_uppercase[number]


def stable_id(dataset: str, *content: str) -> str:
    """An id that depends on what a task says alone: same content, same id, in any order, file or run.

    Returns: ``<dataset>-<16 hex digits>``.
    """
    digest = hashlib.blake2b("\x1f".join((dataset, *content)).encode(), digest_size=8).hexdigest()
    return f"{dataset}-{digest}"
