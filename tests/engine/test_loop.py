"""Loops interrupted at every arrow: all of a loop but Ray and torch, so that a training is a hash of its rows."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from actors.models.scripted import ScriptedBackend
from engine.config.recipe import Recipe
from engine.debates.cluster import Cluster
from engine.live.progress import Progress
from engine.record.folder import RunFolder
from engine.record.journal import Journal, read_journal
from engine.run import resume, start
from protocols.errors import ConfigError, TrainerError
from protocols.graph import decode_debate
from protocols.message import Ask
from tests.actors.remote import Remote
from tests.engine.config.test_recipe import GOOD
from tests.engine.in_process import InProcess
from trainers.jobs.job import TrainingJob, is_trained
from trainers.record.feed import FeedActor, decode_page
from trainers.record.registry import CONFIG_NAME, WEIGHTS_NAME
from trainers.selection.mix import Mix
from trainers.tuning.sft_settings import RESULT_NAME, SFTResult
from trainers.tuning.tree_dpo_settings import TreeDPOResult

pytestmark = pytest.mark.timeout(120)

ITERATIONS, TASKS, HELD_OUT = 3, 4, 2


class Trainer:
    """In the place of Ray Train, and of the processes that end with their driver.

    ``slow_until``: trainings of the iterations before this one are still under way when the next debates begin.
    ``bare``: adapters that cannot be trained, as those cannot for which there is no row.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slow_until, self.bare = 0, set[str]()
        self._feeds: list[FeedActor] = []
        self._journals: list[Journal] = []
        self._loop: asyncio.AbstractEventLoop | None = None

        async def up(recipe: Recipe, **options: Any) -> InProcess:
            self._loop = asyncio.get_running_loop()
            self.close()  # what the driver before has left
            return await InProcess.up(recipe)

        monkeypatch.setattr(Cluster, "start", up)
        monkeypatch.setattr("engine.debates.arena.Journal", self._open_journal)
        monkeypatch.setattr("engine.debates.shard.COLLECT_S", 0.01)
        monkeypatch.setattr("engine.debates.attendant.POLL_S", 0.005)
        monkeypatch.setattr("engine.loop.make_feed_actor", self._make_feed)
        monkeypatch.setattr("engine.learning.training.fit_lanes", self._fit)
        monkeypatch.setattr("engine.learning.training.machines_of_cluster", list)

    def close(self) -> None:
        for feed in self._feeds:
            feed._feed.close()
        for journal in self._journals:
            journal.close()
        self._feeds.clear()
        self._journals.clear()

    def _open_journal(self, *args: Any, **options: Any) -> Journal:
        self._journals.append(Journal(*args, **options))
        return self._journals[-1]

    def _make_feed(self, folder: Path, *, mix: Mix) -> Remote:
        self._feeds.append(FeedActor(str(folder), mix))
        return Remote(self._feeds[-1])

    def _fit(self, jobs: Sequence[TrainingJob], *, feed: Any, storage_path: Path, **_: Any) -> None:
        """In a thread of its own. A driver that has left takes it with it."""
        loop = self._loop
        assert loop is not None
        for job in (job for job in jobs if not is_trained(job)):
            if isinstance(feed, str):
                rows = [Path(feed, f"{job.agent}.jsonl").read_bytes()]
            else:
                rows = asyncio.run_coroutine_threadsafe(_rows_of(feed, job.agent), loop).result(30)
                run, number = storage_path.parents[2], int(storage_path.parent.name.rpartition("-")[2])
                while number < self.slow_until and not (run / f"journal/debate-{number + 1}").exists():
                    time.sleep(0.005)
                    if loop.is_closed():
                        return
            if job.name in self.bare:
                continue
            parent = Path(job.parent, WEIGHTS_NAME).read_bytes() if job.parent else b""
            _write(job, hashlib.sha256(b"\n".join([parent, *rows])).digest(), len(rows))
        if bare := sorted(job.name for job in jobs if job.name in self.bare):
            raise TrainerError(f"{', '.join(bare)} could not be trained")


async def _rows_of(feed: Any, agent: str) -> list[bytes]:
    rows: list[bytes] = []
    while not (page := decode_page(await feed.read.remote(agent, len(rows), 100, 0.05))).done or page.rows:
        rows += [msgspec.msgpack.encode(row) for row in page.rows]
    return rows


def _write(job: TrainingJob, weights: bytes, rows: int) -> None:
    figures: dict[str, Any] = {"steps": 1, "refused": 0, "losses": (0.5,), "learning_rates": (0.1,)}
    figures |= {"data_hash": weights.hex(), "started_at": 1.0, "first_step_at": 1.0, "finished_at": 1.0}
    one = (0.5,)
    result = (
        SFTResult(**figures, rows=rows, rows_seen=rows, completion_tokens=1)
        if job.method == "sft"
        else TreeDPOResult(
            **figures, pairs=rows, pairs_seen=rows, packs=1, pack_tokens=1, expanded_tokens=1, margins=one,
            accuracies=one, chosen_rewards=one, rejected_rewards=one, step_times=one,
        )
    )  # fmt: skip
    draft = Path(f"{job.output}.new")
    draft.mkdir(parents=True, exist_ok=True)
    (draft / WEIGHTS_NAME).write_bytes(weights)
    (draft / CONFIG_NAME).write_text("{}")
    (draft / RESULT_NAME).write_bytes(msgspec.json.encode(result))
    draft.rename(job.output)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    trainer = Trainer(monkeypatch)
    yield trainer
    trainer.close()


def recipe(folder: Path, **loop: Any) -> Path:
    base = folder / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(b"weights")
    path = folder / "r.yaml"
    data = GOOD | {
        "tasks": GOOD["tasks"] | {"train": TASKS, "test": HELD_OUT},
        "train": {"base_model": str(base), "label": "gold", "agents": ["ada", "bo"], "tree": {"root": "question"}},
        "loop": {"iterations": ITERATIONS, "init_from": "previous"} | loop,
        "run": {"sync": "normal", "max_open": 1},
    }
    path.write_text(yaml.safe_dump(data))
    return path


def looped(recipe: Path, name: str) -> tuple[Path, dict[str, Any]]:
    path = recipe.parent / name / "r"
    return path, start("loop", recipe, (), run_dir=path, limit=None, progress=Progress(live=False))


def spoke(path: Path) -> dict[str, set[str]]:
    """Stage -> the versions, by number, that learners spoke with; "" is the base."""
    found: dict[str, set[str]] = {}
    for stage in sorted(path.glob("journal/*")):
        graphs = [item.graph for item in read_journal(stage / "arena-000.sqlite")]
        nodes = [node for graph in graphs if graph is not None for node in decode_debate(graph).utterances]
        found[stage.name] = {node.reply.adapter.rpartition("-v")[2] for node in nodes}
    return found


def adapters(path: Path) -> list[dict[str, Any]]:
    kept = ("name", "parent", "data_hash", "checksum", "metrics")
    records = msgspec.json.decode((path / "adapters/registry.json").read_bytes())
    return [{key: record.get(key) for key in kept} for record in records]


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_debates_are_spoken_by_versions_so_far_behind_and_evaluations_by_the_newest(
    tmp_path: Path, trainer: Trainer, staleness: int
) -> None:
    trainer.slow_until = ITERATIONS if staleness else 0
    path, outcome = looped(recipe(tmp_path, staleness=staleness), "whole")
    debated = {f"debate-{number}": str(max(0, number - 1 - staleness) or "") for number in range(1, ITERATIONS + 1)}
    evaluated = {f"eval-{number}": str(number or "") for number in range(ITERATIONS + 1)}
    assert spoke(path) == {stage: {version} for stage, version in (debated | evaluated).items()}
    parents = {record["name"]: record["parent"] for record in adapters(path)}
    assert parents == {
        f"{agent}@r-v{number}": f"{agent}@r-v{number - 1}" if number > 1 else None
        for agent in ("ada", "bo")
        for number in range(1, ITERATIONS + 1)
    }
    behind = [min(staleness, number - 1) for number in range(1, ITERATIONS + 1)]
    told = [{"stale_share": float(by > 0), "most_behind": by} for by in behind]
    if not staleness:
        assert "staleness" not in outcome and "most_behind" not in adapters(path)[0]["metrics"]
        return
    assert list(outcome["staleness"].values()) == told
    for record in adapters(path):
        figures = told[int(record["metrics"]["iteration"]) - 1]
        assert {key: record["metrics"][key] for key in figures} == figures


@pytest.mark.parametrize(("staleness", "preferences"), [(0, True), (1, False), (1, True)])
def test_a_loop_that_is_interrupted_at_every_arrow_comes_to_the_same(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch, staleness: int, preferences: bool
) -> None:
    trainer.slow_until = 2 if staleness else 0
    plan = recipe(tmp_path, staleness=staleness, preferences=preferences, iterations=2)
    whole, outcome = looped(plan, "whole")
    stages = set(RunFolder.open(whole).manifest.done)
    broken = tmp_path / "broken" / "r"
    points, late = _interrupt_everywhere(monkeypatch)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever starts the tests in the background ignores it
    with pytest.raises(KeyboardInterrupt):
        looped(plan, "broken")
    again = None
    while again is None:
        before = len(points)
        with suppress(KeyboardInterrupt):
            again = resume(broken, progress=Progress(live=False))
        assert again or len(points) > before
    # And once in the middle of each stage of debates. What overlaps may be over before the driver has ended.
    assert points >= (stages - late if staleness else stages)
    assert len((points | late) - stages) == sum("debate" in stage or "eval" in stage for stage in stages)
    assert adapters(broken) == adapters(whole) and len(adapters(whole)) == 2 * 2 * (1 + preferences)
    assert spoke(broken) == spoke(whole)
    assert again.get("staleness") == outcome.get("staleness")


@pytest.mark.parametrize(("staleness", "preferences"), [(0, False), (1, True)])
def test_a_loop_that_is_done_goes_further_and_comes_to_the_same(
    tmp_path: Path, trainer: Trainer, staleness: int, preferences: bool
) -> None:
    plan = recipe(tmp_path, staleness=staleness, preferences=preferences)
    whole, outcome = looped(plan, "whole")
    further, silent = tmp_path / "further" / "r", Progress(live=False)
    start("loop", plan, ("loop.iterations=1",), run_dir=further, limit=None, progress=silent)
    asked = spoke(further)
    second = resume(further, iterations=2, progress=silent)
    assert len(adapters(further)) == 2 * 2 * (1 + preferences) and second["after"] != outcome["after"]
    again = start("loop", plan, (), run_dir=further, limit=None, or_resume=True, progress=silent)  # three, it says
    assert adapters(further) == adapters(whole)
    assert spoke(further) == spoke(whole) and asked.items() <= spoke(whole).items()
    assert (again["before"], again["after"]) == (outcome["before"], outcome["after"])
    assert again.get("staleness") == outcome.get("staleness")
    changes = RunFolder.open(further).manifest.changes
    assert [(item.key, item.old, item.new) for item in changes] == [
        ("loop.iterations", 1, 2),
        ("loop.iterations", 2, 3),
    ]
    assert resume(further, iterations=ITERATIONS, progress=silent)["state"] == "done already"
    RunFolder.open(further).lock()  # nobody holds it


def test_what_a_loop_cannot_go_further_to_is_refused(tmp_path: Path, trainer: Trainer) -> None:
    path, _ = looped(recipe(tmp_path), "whole")
    silent = Progress(live=False)
    before = (path / "run.json").read_bytes()
    with pytest.raises(
        ConfigError, match=r"loop\.iterations=2 is fewer than the 3 that the run has begun; give as many"
    ):
        resume(path, iterations=2, progress=silent)
    with pytest.raises(ConfigError, match=r"^--iterations: loop\.iterations=0 must be a number from 1 to"):
        resume(path, iterations=0, progress=silent)
    (path / "adapters" / "bo" / "v4").mkdir()  # of a training that was given between, and came to nothing
    with pytest.raises(ConfigError, match="`moot train` has made version 4 of its adapters, and iteration 4"):
        resume(path, iterations=4, progress=silent)
    assert (path / "run.json").read_bytes() == before  # it is done still
    (path / "adapters" / "bo" / "v4").rmdir()


def test_more_iterations_can_be_taken_back_until_they_begin(tmp_path: Path, trainer: Trainer) -> None:
    path, outcome = looped(recipe(tmp_path), "whole")
    folder, file = RunFolder.open(path), path / "recipe.yaml"
    data = yaml.safe_load(file.read_text())
    data["loop"]["iterations"] = 50  # a slip, and the driver died at once
    file.write_text(yaml.safe_dump(data))
    folder.manifest.recipe, folder.manifest.finished_at = data, None
    folder.save()
    again = resume(path, iterations=ITERATIONS, progress=Progress(live=False))
    assert again["after"] == outcome["after"] and RunFolder.open(path).manifest.finished_at is not None


def test_a_loop_without_a_section_of_its_own_goes_further_by_an_edit(tmp_path: Path, trainer: Trainer) -> None:
    plan = recipe(tmp_path)
    data = yaml.safe_load(plan.read_text())
    del data["loop"]
    plan.write_text(yaml.safe_dump(data))
    path, _ = looped(plan, "short")
    (path / "recipe.yaml").write_text(yaml.safe_dump(data | {"loop": {"iterations": 2}}))
    resume(path, progress=Progress(live=False))
    assert {"train-1", "train-2"} <= set(RunFolder.open(path).manifest.done)


@pytest.mark.parametrize("whole", [False, True])
def test_who_could_not_be_trained_speaks_as_before_when_the_loop_goes_further(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr("engine.loop.trains_whole", lambda _: whole)  # whole models take up the newest version alone
    trainer.bare = {"bo@r-v2"}
    path, outcome = looped(recipe(tmp_path, iterations=2), "short")
    assert outcome["warnings"] == ["bo@r-v2 could not be trained"]
    again = resume(path, iterations=3, progress=Progress(live=False))
    assert again["warnings"] == outcome["warnings"]
    assert spoke(path)["debate-3"] == {"1", "2"} and spoke(path)["eval-3"] == {"3"}
    parents = {record["name"]: record["parent"] for record in adapters(path)}
    assert parents["bo@r-v3"] == "bo@r-v1" and parents["ada@r-v3"] == "ada@r-v2"


def _interrupt_everywhere(monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], set[str]]:
    """Once at the end of each stage, and at an ask in its middle, one a driver.

    Returns: where it was done by now, and what a driver came to that was interrupted before.
    """
    points, late = set[str](), set[str]()
    struck: list[asyncio.AbstractEventLoop] = []  # of drivers that were interrupted
    mark_done, generate = RunFolder.mark_done, ScriptedBackend.generate

    def interrupt(point: str) -> None:
        if (loop := asyncio.get_running_loop()) in struck:
            late.add(point)
        elif point not in points:
            points.add(point)
            struck.append(loop)
            signal.raise_signal(signal.SIGINT)

    def marking(self: RunFolder, stage: str, result: dict[str, Any]) -> None:
        mark_done(self, stage, result)
        interrupt(stage)

    async def generating(self: ScriptedBackend, ask: Ask, adapter: Any) -> Any:
        if "#1." in ask.id:
            interrupt(f"in {ask.id.partition('/')[0]}")
        return await generate(self, ask, adapter)

    monkeypatch.setattr(RunFolder, "mark_done", marking)
    monkeypatch.setattr(ScriptedBackend, "generate", generating)
    return points, late
