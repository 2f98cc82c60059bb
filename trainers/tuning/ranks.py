"""The processes that share one training: which of them this is, and what all of them come to.

Only processes that train import this module. A training by itself is one process, and torch.distributed has no part.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def summed(value: Tensor) -> Tensor:
    """Over all processes, each of which calls; the value itself where there is one."""
    if num_ranks() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def of_all(value: T) -> list[T]:
    """What each process has; all of them call."""
    if num_ranks() == 1:
        return [value]
    told: list[Any] = [None] * num_ranks()
    dist.all_gather_object(told, value)
    return told


def from_first(value: T) -> T:
    """What the first process has; all of them call."""
    if num_ranks() == 1:
        return value
    told: list[Any] = [value]
    dist.broadcast_object_list(told)
    first: T = told[0]
    return first


def local(weight: Any) -> Tensor:
    """The part of a weight that this process keeps: all of it, unless it is sharded."""
    part: Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
    return part
