"""What a cluster can hold, host by host and machine by machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.debates.resources import Machine, Need, check_resources, check_training
from protocols.errors import ConfigError

BIG = Need("big", 1, 4)


def shares(number: int, share: float) -> list[Need]:
    return [Need(f"m/{index}", 0, share) for index in range(number)]


@pytest.mark.parametrize(
    ("needs", "machines"),
    [
        ([], []),
        ([BIG], [Machine(8, 4)]),
        ([BIG, Need("small", 1, 1)], [Machine(8, 1), Machine(8, 4)]),
        ([Need("small", 1, 1), BIG], [Machine(8, 4), Machine(8, 1)]),  # the largest is placed first
        (shares(4, 0.5), [Machine(1, 2)]),
        ([*shares(3, 0.3), Need("whole", 0, 1)], [Machine(1, 2)]),
        ([Need("cpu", 0.5, 0)] * 4, [Machine(2, 0)]),
    ],
)
def test_what_fits_is_let_through(needs: list[Need], machines: list[Machine]) -> None:
    check_resources(needs, machines)


@pytest.mark.parametrize(
    ("needs", "machines", "said"),
    [
        ([BIG], [Machine(8, 0)], "the models need 4 GPUs, the cluster has 0; lower models.*.num_gpus"),
        ([Need("cpu", 3, 0)], [Machine(2, 0)], "the models need 3 CPUs, the cluster has 2"),
        ([BIG], [Machine(8, 2), Machine(8, 2)], "model 'big' takes 1 CPUs and 4 GPUs of one machine"),
        (shares(3, 0.6), [Machine(1, 2)], "and beside the other models no machine has that left (1 CPUs and 2 GPUs)"),
        ([Need("a", 2, 1), Need("b", 2, 1)], [Machine(3, 2), Machine(1, 0)], "model 'b' takes 2 CPUs"),
    ],
)
def test_what_is_missing_is_said(needs: list[Need], machines: list[Machine], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_resources(needs, machines)
    assert said in str(caught.value)


LANE = Need("a training", 1, 1)


def test_a_training_needs_room_beside_the_models_unless_they_leave() -> None:
    host, one_gpu = Need("m", 1, 1), [Machine(4, 1)]
    check_training(LANE, [], one_gpu)
    check_training(LANE, [host], [*one_gpu, *one_gpu])
    check_training(Need("a training", 1, 0.49), [Need("m", 1, 0.51)], one_gpu)
    with pytest.raises(
        ConfigError, match=r"1 GPUs of one machine, and beside the models .* set run\.colocate: release"
    ):
        check_training(LANE, [host], one_gpu)
    with pytest.raises(
        ConfigError, match=r"takes 1 CPUs and 1 GPUs of one machine, which none has \(8 CPUs and 0 GPUs\)"
    ):
        check_training(LANE, [], [Machine(8, 0)])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
def test_a_machine_for_each_host_is_always_enough(needs: list[tuple[int, int]]) -> None:
    check_resources(
        [Need(f"m/{number}", cpus, gpus) for number, (cpus, gpus) in enumerate(needs)],
        [Machine(cpus, gpus) for cpus, gpus in needs],
    )
