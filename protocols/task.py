"""A task: one question, and what would count as a right answer."""

from __future__ import annotations

import hashlib

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


def stable_id(dataset: str, *content: str) -> str:
    """An id that depends on what a task says alone: same content, same id, in any order, file or run.

    Returns: ``<dataset>-<16 hex digits>``.
    """
    digest = hashlib.blake2b("\x1f".join((dataset, *content)).encode(), digest_size=8).hexdigest()
    return f"{dataset}-{digest}"
