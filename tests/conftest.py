"""What holds for all tests: their environment, fixed seeds, a local Ray, and the fast tests first."""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings


def _set_environment() -> None:
    """Before anything imports Ray, transformers or matplotlib: they read these once. Ray's workers inherit them."""
    folder = Path(tempfile.mkdtemp(prefix="moot-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    token = folder / "ray_token"  # Ray would otherwise write one into the home folder
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= {
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",  # a test that needs the network is no test
        "MPLBACKEND": "Agg",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # as on any machine where moot starts a Ray of its own
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a killed worker is noticed soon
        "RAY_USAGE_STATS_ENABLED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_NO_USAGE_STATS": "1",
    }
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
        os.environ.pop(name, None)  # a developer's own cluster is none of ours
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes would each compile all that they import


_set_environment()
_ONLY_WITH = {"mlflow": "engine/results/test_track_mlflow.py", "bitsandbytes": "trainers/tuning/test_qlora_training.py"}
collect_ignore = [file for library, file in _ONLY_WITH.items() if not find_spec(library)]
settings.register_profile("moot", deadline=None, max_examples=40)  # a busy machine is slow, not wrong
settings.register_profile("ci", parent=settings.get_profile("moot"), derandomize=True)
settings.register_profile("thorough", parent=settings.get_profile("moot"), max_examples=1000)
settings.load_profile("ci" if os.environ.get("CI") else "moot")


LONG = ("test_colocate", "test_lanes", "test_loop", "test_overlap", "test_preference_loop", "test_whole_loop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast modules first: what is broken shows in seconds. Those that share one Ray last: it burdens no other.

    The kills, which wait more than they work, begin before all that is slow, and of the last modules the longest, so
    that in the end nobody has a long one left alone. Modules stay whole, since processes that share the tests (``-n``)
    take whole ones in this order: one that has the shared Ray then starts no other.
    """
    with_ray = {item.path for item in items if "local_ray" in getattr(item, "fixturenames", ())}
    slow, chaos = ({item.path for item in items if item.get_closest_marker(name)} for name in ("slow", "chaos"))

    def place(item: pytest.Item) -> tuple[bool, ...]:
        path = item.path
        return path in with_ray, path in slow, path not in chaos, path not in with_ray or path.stem not in LONG

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _logs_end() -> Iterator[None]:
    """A run in this process logs to its folder for as long as the process lives: here, for as long as its test."""
    ours = logging.getLogger("moot")
    level, handlers = ours.level, list(ours.handlers)
    yield
    for handler in set(ours.handlers) - set(handlers):
        ours.removeHandler(handler)
        handler.close()
    ours.setLevel(level)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Any]:
    """Ray on this machine with two CPUs, started once for all tests that need it; what they start in it, they end.

    Its one node is set apart for trainings too, so that they are held to it as on a cluster.
    """
    import ray

    from engine.debates.cluster import few_processes

    apart = {"moot_trainers": 1}
    with few_processes():
        ray.init(address="local", num_cpus=2, resources=apart, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()
