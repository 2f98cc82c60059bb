"""The whole loop: debates, a training that starts while they run, kill -9, resume, the adapters in the next debates."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.integration.command import Moot, Process, RunOnDisk, check_clean, command_here, moot_in
from trainers.tuning.sft_settings import RESULT_NAME, SFTResult

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

AGENTS = ("ada", "bo", "cy")
TASKS, HELD_OUT, EPOCHS = 20, 2, 2
RECIPE = f"""
name: tiny
seed: 5
tasks: {{source: arithmetic, level: mixed10, train: {TASKS}, test: {HELD_OUT}}}
models:
  simulated: {{backend: scripted, skill: 0.9, latency_s: 1.0, latency_sigma: 0.1}}
agents:
  ada: {{model: simulated}}
  bo: {{model: simulated}}
  cy: {{model: simulated}}
protocol: {{name: society, rounds: 2}}
cast: {{generator: [ada, bo, cy]}}
train: {{base_model: BASE, rules: {{generator: [generator, critic]}}, loss: all, min_support: 2, checkpoint_every: 2}}
sft: {{rank: 4, epochs: {EPOCHS}, batch_size: 4, max_length: 2048, learning_rate: 0.001}}
run: {{max_open: 4, runs_dir: RUNS}}
"""


@pytest.fixture(scope="module")
def moot(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Moot]:
    folder = tmp_path_factory.mktemp("loop")
    recipe = RECIPE.replace("BASE", str(tiny_model)).replace("RUNS", str(folder / "runs"))
    (folder / "tiny.yaml").write_text(recipe)
    with moot_in(folder) as moot:
        yield moot


@pytest.fixture(scope="module")
def looped(moot: Moot) -> tuple[RunOnDisk, Process]:
    """A loop that was killed once its first training had kept a checkpoint, and taken up again.

    Half-way through the debates their agents are held up until then: however busy the machine, a step comes first. A
    checkpoint counts once Ray Train's own record names it; a folder alone may be half written.
    """
    run = RunOnDisk(moot.folder / "runs" / "one")
    process = moot.start_until(
        *("loop", "tiny.yaml", "--run-dir", "runs/one", "--json"),
        ready=lambda _: len(run.closed_at("debate-1")) >= 11,
    )
    (host,) = process.members("ray::AgentActor")
    os.kill(host, signal.SIGSTOP)
    assert process.running_when(lambda: kept_checkpoint(run)), process.stderr
    assert run.num_open("debate-1") > 0
    os.kill(host, signal.SIGCONT)
    process.signal_group(signal.SIGKILL)
    process.wait()
    check_clean(process.stderr)
    resumed = moot("resume", "runs/one", "--json")
    assert resumed.wait() == 0, resumed.stderr
    return run, resumed


def kept_checkpoint(run: RunOnDisk) -> bool:
    records = run.path.glob("train/iteration-1/checkpoints/*/checkpoint_manager_snapshot.json")
    return any(b"checkpoint_dir_name" in record.read_bytes() for record in records)


def results(run: RunOnDisk) -> dict[str, SFTResult]:
    files = run.path.glob(f"adapters/*/v1/{RESULT_NAME}")
    return {file.parts[-3]: msgspec.json.decode(file.read_bytes(), type=SFTResult) for file in files}


def test_training_begins_before_the_last_debate_closes(looped: tuple[RunOnDisk, Process]) -> None:
    run, _ = looped
    assert min(result.first_step_at for result in results(run).values()) < max(run.closed_at("debate-1"))


def test_every_row_is_learned_from_once_an_epoch(looped: tuple[RunOnDisk, Process]) -> None:
    run, _ = looped
    learned = results(run)
    assert set(learned) == set(AGENTS)
    for agent, result in learned.items():
        assert result.rows > 0 and result.refused == 0
        assert result.rows_seen == EPOCHS * result.rows, agent
        assert result.steps == len(result.losses) == len(result.step_times)


def test_every_adapter_is_registered_once_and_then_speaks(looped: tuple[RunOnDisk, Process]) -> None:
    run, _ = looped
    names = [record["name"] for record in run.json("adapters/registry.json")]
    assert sorted(names) == [f"{agent}@one-v1" for agent in AGENTS]
    for stage, spoke in (("eval-0", set()), ("debate-1", set()), ("eval-1", set(names))):
        debates = run.debates(stage).values()
        assert len(debates) == (TASKS if stage == "debate-1" else HELD_OUT)
        assert {node.reply.adapter for debate in debates for node in debate.utterances} - {""} == spoke
        asked = run.outcomes(stage)
        assert len(asked) == len(set(asked))


def test_what_is_printed_is_what_is_kept(looped: tuple[RunOnDisk, Process]) -> None:
    run, process = looped
    check_clean(process.stderr)
    outcome = process.outcome()
    assert outcome.pop("report") == "runs/one/report.html"
    assert outcome == run.json("results.json")
    assert outcome["debates"] == TASKS + 2 * HELD_OUT and outcome["set_aside"] == 0 and outcome["warnings"] == []
    assert process.all_gone()


class _Outside(HTMLParser):
    """Collects everything that a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "object", "embed"):
            self.found.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "data") and value and not value.startswith(("#", "data:")):
                self.found.append(f"{key}={value}")


def check_page(page: str) -> None:
    assert page.lower().startswith("<!doctype html>")
    reader = _Outside()
    reader.feed(page)
    assert reader.found == []
    assert not re.search(r"@import|url\((?!['\"]?(?:#|data:))", page)


def test_the_report_needs_nothing_else(looped: tuple[RunOnDisk, Process], tmp_path: Path) -> None:
    run, _ = looped
    page = (run.path / "report.html").read_text()
    check_page(page)
    assert "ada@one-v1" in page
    copy = tmp_path / "copy.html"
    assert command_here("report", run.path, "-o", copy) == {"run": str(run.path), "report": str(copy)}
    check_page(copy.read_text())


def test_eval_of_a_run_serves_its_newest_adapters_and_list_shows_both(
    looped: tuple[RunOnDisk, Process], local_ray: Any
) -> None:
    one, _ = looped
    run = RunOnDisk(Path(command_here("eval", one.path)["run"]))
    spoke = {node.reply.adapter for debate in run.debates("eval-0").values() for node in debate.utterances}
    assert spoke == {f"{agent}@one-v1" for agent in AGENTS}
    vote = ["protocol={name: baseline, method: majority, match: {agents: 3, rounds: 2}}", "cast={solver: [bo]}"]
    control = RunOnDisk(Path(command_here("eval", one.path, *vote)["run"]))
    for debate in control.debates("eval-0").values():  # as many samples of one tuned agent as the debate asked for
        assert [node.reply.adapter for node in debate.utterances] == ["bo@one-v1"] * 6
    compared = command_here("compare", control.path, one.path)
    changes = {change["after_measure"]: change["difference"]["num_tasks"] for change in compared["changes"]}
    assert changes["final vote"] == HELD_OUT and list(compared["sides"])[1] == "one:eval-1"
    found = command_here("list", "--runs-dir", one.path.parent)
    assert any(recipe.endswith("scripted.yaml") for recipe in found["recipes"])
    assert len(found["runs"]) == 3 and all("done" in line for line in found["runs"])
