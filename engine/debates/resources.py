"""Whether a cluster has what a recipe's models take: known before anything is started, in one sentence.

Nodes may be set apart by custom resources: ``moot_arenas`` for arenas and for models without a GPU, ``moot_agents`` for
models on GPUs, ``moot_trainers`` for trainings. Where no node has such a resource, as on a laptop, anywhere will do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from protocols.errors import ConfigError

APART = "moot_"  # how the resources begin that set nodes apart
SHARE = 0.001  # of such a resource: holds an actor to the nodes that have it; what it really takes are CPUs and GPUs
UNLIMITED = 1_000  # machines of a kind, where the autoscaler sets no limit: more than any recipe needs


class Machine(msgspec.Struct, frozen=True):
    """What one machine has for models."""

    cpus: float
    gpus: float
    apart: Mapping[str, float] = {}  # of resources that set it apart


class Need(msgspec.Struct, frozen=True):
    """What one host takes, all of it on one machine."""

    host: str
    cpus: float
    gpus: float  # a whole number, or a share of one
    apart: Mapping[str, float] = {}


def held_to(place: str, machines: Iterable[Machine], amount: float = SHARE) -> dict[str, float]:
    """What an actor takes of the nodes set apart for ``arenas``, ``agents`` or ``trainers``; nothing where none is."""
    name = APART + place
    return {name: amount} if any(name in machine.apart for machine in machines) else {}


def check_resources(needs: Sequence[Need], machines: Sequence[Machine]) -> None:
    """Raises: ConfigError: the machines cannot hold all hosts at once; it says what is missing."""
    for key, word in (("cpus", "CPU"), ("gpus", "GPU")):
        need, have = (sum(getattr(item, key) for item in items) for items in (needs, machines))
        if need > have + 1e-9:
            raise ConfigError(
                f"the models need {need:g} {word}s, the cluster has {have:g}; "
                f"lower models.*.num_{key} or replicas, or add machines"
            )
    if (need := _without_place(needs, machines)) is not None:
        raise ConfigError(
            f"model {need.host!r} takes {need.cpus:g} CPUs and {need.gpus:g} GPUs of one machine, and beside the "
            f"other models no machine has that left ({_told(machines)}); lower models.*.num_cpus, num_gpus or "
            "replicas, or add machines"
        )


def check_training(lane: Need, staying: Sequence[Need], machines: Sequence[Machine]) -> None:
    """Whether one lane at least finds a place; others wait for it.

    Args: staying: the hosts that are up while trainings run.
    Raises: ConfigError: no machine has what it takes, or none has it left.
    """
    takes = f"a training takes {lane.cpus:g} CPUs and {lane.gpus:g} GPUs of one machine"
    if _without_place([lane], machines) is not None:
        raise ConfigError(
            f"{takes}, which none has ({_told(machines)}); lower train.cpus_per_lane or gpus_per_lane, or add machines"
        )
    if _without_place([*staying, lane], machines) is not None:
        raise ConfigError(
            f"{takes}, and beside the models none has that left ({_told(machines)}); set run.colocate: release, so "
            "that local models make room while trainings run, lower what either takes, or add machines"
        )


def _without_place(needs: Sequence[Need], machines: Iterable[Machine]) -> Need | None:
    """The first that finds no room beside those before it, the largest first; None: all do."""
    free = [_Free(machine) for machine in machines]
    ordered = sorted(needs, key=lambda need: (need.gpus, need.cpus), reverse=True)
    return next((need for need in ordered if not any(machine.take(need) for machine in free)), None)


def check_arenas(num_arenas: int, machines: Sequence[Machine]) -> None:
    """Raises: ConfigError: nodes are set apart for arenas, and there is not room for so many."""
    name = APART + "arenas"
    room = [machine.apart[name] // 1 for machine in machines if name in machine.apart]
    if room and num_arenas > sum(room):
        raise ConfigError(
            f"run.num_arenas={num_arenas}: each takes one {name}, and the cluster has {sum(room):g}; lower it, or add "
            "machines"
        )


class _Free:
    """What is left of a machine. GPUs are taken whole, or shared by those who take a share."""

    def __init__(self, machine: Machine) -> None:
        self._cpus = machine.cpus
        self._gpus = [1.0] * int(machine.gpus)
        self._apart = dict(machine.apart)

    def take(self, need: Need) -> bool:
        """Whether it was there."""
        if need.cpus > self._cpus + 1e-9:
            return False
        if any(amount > self._apart.get(name, 0.0) + 1e-9 for name, amount in need.apart.items()):
            return False
        share = need.gpus if need.gpus < 1 else 1.0
        fit = [number for number, left in enumerate(self._gpus) if left >= share - 1e-9]
        wanted = fit[: int(need.gpus) if need.gpus >= 1 else 1] if need.gpus else []
        if len(wanted) < need.gpus:
            return False
        for number in wanted:
            self._gpus[number] -= share
        for name, amount in need.apart.items():
            self._apart[name] -= amount
        self._cpus -= need.cpus
        return True


def _told(machines: Iterable[Machine]) -> str:
    shown = {
        f"{machine.cpus:g} CPUs and {machine.gpus:g} GPUs"
        + "".join(f" and {amount:g} {name}" for name, amount in machine.apart.items())
        for machine in machines
    }
    return ", ".join(sorted(shown)) or "none"


def machines_of_cluster() -> list[Machine]:
    """The machines of the cluster that was joined; where it grows by itself, all that it may grow to."""
    import ray
    from ray._private.state import state  # Ray has no public word for it; its Train and Data ask here, too

    config = state.get_cluster_config()
    if config is not None and config.node_group_configs:
        return [
            machine_of(group.resources)
            for group in config.node_group_configs
            for _ in range(group.max_count if group.max_count >= 0 else UNLIMITED)
        ]
    return [machine_of(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def machine_of(resources: Mapping[str, float]) -> Machine:
    """What Ray's resources of a node come to."""
    apart = {name: float(amount) for name, amount in resources.items() if name.startswith(APART)}
    return Machine(float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0)), apart)
