"""The debates as moot has them: a recipe, an arena actor with its journal on disk, an agent host, Ray between them.

The clock runs from the moment at which the arena is up, before the first debate is handed to it, to the one at which
the driver has the last debate's graph, which is on record by then (``sync: full``).
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from benchmarks.peers_work import AGENTS, MAX_TOKENS, MODEL, PROMPT_SET, Clock, Debates, Setup
from engine.config.recipe import Recipe
from engine.config.recipe_file import build_recipe
from engine.debates.cluster import Cluster
from engine.debates.desk import Closed
from engine.debates.stage import run_stage
from engine.live.progress import Progress
from engine.record.folder import Manifest, RunFolder
from protocols.task import Task

MAX_OPEN = 5_000  # debates in flight in the one arena


def recipe(setup: Setup, replicas: int) -> Recipe:
    served = {
        "backend": "openai", "model": MODEL, "base_url": setup.url, "max_concurrency": setup.in_flight // replicas,
        "limits": {"max_concurrency": setup.in_flight // replicas}, "replicas": replicas,
    }  # fmt: skip
    data = {
        "name": "peers",
        "tasks": {"source": "arithmetic", "train": 1, "test": 0},
        "models": {"m": served if setup.url else {"backend": "scripted", "replicas": replicas}},
        "agents": {name: {"model": "m", "max_tokens": MAX_TOKENS} for name in AGENTS},
        "protocol": {"name": "society", "rounds": 2, "prompts": PROMPT_SET},
        "cast": {"generator": list(AGENTS)},
        "run": {"max_open": MAX_OPEN},
    }
    return build_recipe(data, where="benchmark")


class Silent(Progress):
    """A progress that says nothing."""

    def note(self, text: str) -> None:
        return None


@asynccontextmanager
async def debates(setup: Setup, replicas: int = 1) -> AsyncIterator[Debates]:
    made = recipe(setup, replicas)
    manifest = Manifest(
        id="r", kind="run", name=made.name, fingerprint=made.fingerprint, num_arenas=1, recipe=made.source,
        recipe_path="", limit=None, started_at=time.time(), machine="", versions={},
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="moot-bench-") as temporary:
        folder = RunFolder.create(Path(temporary) / "run", manifest)
        cluster = await Cluster.start(made, folder=folder.path)
        stages, watch = itertools.count(), cluster.hosts.watch

        async def run(questions: Sequence[str], clock: Clock) -> list[str]:
            tasks = [Task(id=str(number), question=text, gold=("42",)) for number, text in enumerate(questions)]
            left = len(tasks)

            async def started() -> None:  # a stage watches its hosts as soon as its arenas are up
                clock.start()
                await watch()

            async def on_closed(closed: list[Closed]) -> None:
                nonlocal left
                left -= len(closed)
                if not left:
                    clock.stop()

            cluster.hosts.watch = started  # type: ignore[method-assign]
            name, silent = f"s{next(stages)}", Silent(live=False)
            stage = await run_stage(cluster, folder, name, tasks, on_closed=on_closed, progress=silent)
            return [debate.verdict.answer or "" for debate in stage.graded if debate.verdict is not None]

        try:
            yield run
        finally:
            await cluster.stop()
            folder.release()


def two_hosts(setup: Setup) -> AbstractAsyncContextManager[Debates]:
    """The same with two agent hosts, each in a process of its own, between which debates are spread."""
    return debates(setup, replicas=2)
