"""The debates as moot has them: a recipe, an arena actor with its journal on disk, an agent host, Ray between them.

The clock runs from the moment at which the arena is up, before the first debate is handed to it, to the one at which
the driver has the last debate's graph, which is on record by then (``sync: full``).
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from benchmarks.peers_work import AGENTS, MAX_TOKENS, MODEL, PROMPT_SET, Clock, Debates, Setup
from engine.arena import ArenaStats
from engine.cluster import Cluster
from engine.folder import Manifest, RunFolder
from engine.progress import Progress
from engine.recipe import Recipe, build_recipe
from engine.stage import run_stage
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


class Watched(Progress):
    """A progress that says nothing and starts the clock when the stage's arena is up."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(live=False)
        self._clock, self._started = clock, False

    def note(self, text: str) -> None:
        return None

    def update(self, *, closed: int, stats: Iterable[ArenaStats]) -> None:
        if not self._started:
            self._started = True
            self._clock.start()
        if closed == self._total:
            self._clock.stop()


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
        stages = itertools.count()

        async def run(questions: Sequence[str], clock: Clock) -> list[str]:
            tasks = [Task(id=str(number), question=text, gold=("42",)) for number, text in enumerate(questions)]
            stage = await run_stage(cluster, folder, f"s{next(stages)}", tasks, progress=Watched(clock))
            return [debate.verdict.answer or "" for debate in stage.graded if debate.verdict is not None]

        try:
            yield run
        finally:
            await cluster.stop()
            folder.release()


def two_hosts(setup: Setup) -> AbstractAsyncContextManager[Debates]:
    """The same with two agent hosts, each in a process of its own, between which debates are spread."""
    return debates(setup, replicas=2)
