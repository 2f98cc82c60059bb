"""What the stages of a loop are called: ``eval-0``, ``debate-1``, ``train-1``, ``eval-1``, and so on.

With preferences an iteration is ``debate-1``, ``train-1``, ``eval-1-sft``, ``prefer-1``, ``eval-1``.
With staleness later debates come in between, and both trainings before both evaluations.
"""

from __future__ import annotations

from collections.abc import Iterable

BEFORE_PREFERENCES = "-sft"  # ends the name of an evaluation between an iteration's two trainings


def iteration_of(stage: str) -> int:
    """0 where the name tells none."""
    number = stage.removesuffix(BEFORE_PREFERENCES).rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def last_iteration(stages: Iterable[str]) -> int:
    """The last one whose debates are among these; 0: none."""
    return max((iteration_of(stage) for stage in stages if stage.startswith("debate-")), default=0)


def order_of(stage: str) -> tuple[int, bool]:
    """Evaluations sorted by this are in the order in which they were held."""
    return iteration_of(stage), not stage.endswith(BEFORE_PREFERENCES)


def label_of(stage: str) -> str:
    """What a reader is told of a loop's stage of debates."""
    kind, _, _ = stage.partition("-")
    number = iteration_of(stage)
    if kind == "debate":
        return f"debates of iteration {number}"
    if number == 0:
        return "before training"
    if stage.endswith(BEFORE_PREFERENCES):
        return f"iteration {number}, before preferences"
    return f"after iteration {number}"
