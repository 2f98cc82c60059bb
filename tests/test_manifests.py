"""The clusters that moot ships: Ray's own schemas take them, and Ray's own autoscaler starts what moot asks for."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.cli import loop
from engine.config.recipe_file import load_recipe
from engine.debates.resources import Machine, Need, check_arenas, check_resources, held_to, machine_of
from protocols.errors import ConfigError
from tests.test_repository import read_lock

ROOT = Path(__file__).resolve().parents[1]
RAYJOB = ROOT / "examples" / "kuberay" / "rayjob.yaml"

# What KubeRay 1.7's types have; a field that they lack is refused, or dropped without a word.
JOB_FIELDS = {
    "activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint", "entrypointNumCpus",
    "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata", "rayClusterSpec", "runtimeEnvYAML",
    "shutdownAfterJobFinishes", "submissionMode", "submitterConfig", "submitterPodTemplate", "suspend",
    "ttlSecondsAfterFinished",
}  # fmt: skip
CLUSTER_FIELDS = {
    "authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec",
    "headServiceAnnotations", "managedBy", "rayVersion", "suspend", "workerGroupSpecs",
}  # fmt: skip
GROUP_FIELDS = {
    "groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts", "priority",
    "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend", "template",
}  # fmt: skip


@pytest.fixture(scope="module")
def rayjob() -> Any:
    return list(yaml.safe_load_all(RAYJOB.read_text(encoding="utf-8")))[1]


@pytest.fixture(scope="module", params=["cluster.yaml", "rayjob.yaml"])
def config(request: pytest.FixtureRequest, rayjob: Any) -> Any:
    """Ray's own reading of each manifest, checked against its schema on the way."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    if request.param == "cluster.yaml":
        read = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    else:
        metadata = {"name": "moot", "namespace": "default"}
        read = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": rayjob["spec"]["rayClusterSpec"]})
    return AutoscalingConfig(read, skip_content_hash=True)


@pytest.fixture
def machines(config: Any) -> list[Machine]:
    """All that the cluster may grow to, as moot sees it."""
    return [
        machine_of(kind.resources)
        for kind in config.get_node_type_configs().values()
        for _ in range(kind.max_worker_nodes)
    ]


def launched(
    config: Any, demands: Sequence[Mapping[str, float]], remembered: Mapping[str, float] | None = None
) -> dict[str, int]:
    """What Ray's autoscaler would start on an empty cluster; ``remembered``: of machines that did not come."""
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(dict(d)) for d in demands]),
            recoverable_resource_availabilities=dict(remembered or {}),
        )
    )
    assert not reply.infeasible_resource_requests
    return {launch.instance_type.replace("-", "_"): launch.count for launch in reply.to_launch}


def test_the_recipe_for_eight_gpus_gets_eight(config: Any, machines: list[Machine], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    recipe = load_recipe(ROOT / "examples" / "eight-gpus.yaml", [f"models.base.model={tmp_path}"])
    place, train = recipe.models["base"].place, recipe.train
    held = held_to("agents", machines)
    check_arenas(recipe.run.num_arenas, machines)
    check_resources(
        [Need(f"base/{number}", place.num_cpus, place.num_gpus, held) for number in range(place.replicas)], machines
    )
    agent = {"CPU": place.num_cpus, "GPU": place.num_gpus} | held
    lane = {"CPU": train.cpus_per_lane, "GPU": train.gpus_per_lane} | held_to("trainers", machines)
    arena = held_to("arenas", machines, 1.0)
    demands = [agent] * place.replicas + [lane] * (train.num_lanes or 0) + [arena] * recipe.run.num_arenas
    assert launched(config, demands) == {"arenas": 1, "agents_spot": 4, "trainers_spot": 1}
    assert sum(demand.get("GPU", 0) for demand in demands) == 8


def test_each_kind_of_work_has_its_nodes(config: Any, machines: list[Machine]) -> None:
    agent = {"CPU": 1, "GPU": 1} | held_to("agents", machines)
    assert launched(config, []) == {"arenas": 1}
    assert launched(config, [held_to("arenas", machines, 1.0)] * 20) == {"arenas": 3}
    assert launched(config, [held_to("arenas", machines)] * 200) == {"arenas": 1}  # clients of services
    assert launched(config, [agent] * 3) == {"arenas": 1, "agents_spot": 3}
    assert launched(config, [agent] * 10) == {"arenas": 1, "agents_spot": 8, "agents": 2}  # the rest of them
    head = config.get_node_type_configs()[config.get_head_node_type()].resources
    assert head["CPU"] == 0 and not any(name.startswith("moot_") for name in head)


def test_what_falls_back_on_machines_on_demand(config: Any, machines: list[Machine]) -> None:
    """As docs/cluster.md tells: where Ray learns to remember refusals, its advice for AWS can go."""
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    spot = next(name for name in config.get_node_type_configs() if name.startswith("agents") and "spot" in name)
    agents = [{"CPU": 1, "GPU": 1} | held_to("agents", machines)] * 3

    def launched_after(status: Any) -> dict[str, int]:
        monitor = CloudResourceMonitor()
        monitor.notify([InstanceUpdateEvent(instance_id="i", instance_type=spot, new_instance_status=status)])
        return launched(config, agents, monitor.get_recoverable_resource_availabilities())

    assert launched_after(Instance.ALLOCATION_FAILED) == {"arenas": 1, "agents_spot": 3}  # refused at once, as EC2 does
    assert launched_after(Instance.ALLOCATION_TIMEOUT) == {"arenas": 1, "agents": 3}  # granted, and never came up


def test_more_arenas_than_there_is_room_for_are_refused(machines: list[Machine]) -> None:
    check_arenas(36, machines)
    with pytest.raises(ConfigError, match=r"run\.num_arenas=37: each takes one moot_arenas, and the cluster has 36"):
        check_arenas(37, machines)


def test_options_of_ray_start_are_there(rayjob: Any) -> None:
    import ray

    source = (Path(ray.__file__).parent / "scripts" / "scripts.py").read_text(
        encoding="utf-8"
    )  # to import it takes 4 s
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    given = {word.partition("=")[0] for command in commands for word in command.split() if word.startswith("--")}
    spec = rayjob["spec"]["rayClusterSpec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        given |= {f"--{name}" for name in group["rayStartParams"]}
    assert given >= {"--head", "--autoscaling-config", "--resources"}
    assert not [option for option in given if f'"{option}"' not in source]


def test_the_rayjob_is_one_that_kuberay_knows(rayjob: Any) -> None:
    claim = next(yaml.safe_load_all(RAYJOB.read_text(encoding="utf-8")))
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    spec = rayjob["spec"]
    cluster = spec["rayClusterSpec"]
    assert spec.keys() <= JOB_FIELDS and cluster.keys() <= CLUSTER_FIELDS
    assert cluster["rayVersion"] == str(read_lock("gpu")["ray"])
    assert spec["backoffLimit"] > 0 and spec["shutdownAfterJobFinishes"]
    assert cluster["autoscalerOptions"]["version"] == "v2"  # the only one that knows priorities
    names = [group["groupName"] for group in cluster["workerGroupSpecs"]]
    assert len(names) == len(set(names))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group.keys() <= GROUP_FIELDS
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        assert pod["restartPolicy"] == "Never"  # a pod that comes back would be another Ray node under the same name
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["moot"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
            assert container["resources"]["limits"] == container["resources"]["requests"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    ports = {
        port["name"]: port["containerPort"]
        for port in cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert ports == {"gcs": 6379, "dashboard": 8265, "metrics": 8080}


def test_the_rayjob_runs_a_command_of_moot_that_may_be_submitted_again(rayjob: Any) -> None:
    from ray.runtime_env import RuntimeEnv

    spec = rayjob["spec"]
    RuntimeEnv(**yaml.safe_load(spec["runtimeEnvYAML"]))
    assert subprocess.run(["sh", "-n", "-c", spec["entrypoint"]], check=False, timeout=20).returncode == 0
    command, _, rest = spec["entrypoint"].partition(" || ")
    assert rest == "[ $? -eq 1 ]"
    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("moot", "loop")
    given = loop.make_context("loop", arguments).params
    assert given["or_resume"] and given["run_dir"].is_relative_to("/mnt/moot")
    assert (ROOT / given["recipe"].relative_to("/moot")).is_file()
