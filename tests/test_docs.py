"""The README and the docs say what is true: every command in the README is run, every key of a recipe is explained."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from actors.agent import Limits
from actors.catalogue import BACKENDS
from actors.limits.prices import Price
from actors.services.batch_book import BatchSettings
from actors.services.openai_settings import FinetuneSettings
from engine.config.recipe import LoopSettings, RunSettings, TrainSettings
from engine.data.tasks import SOURCES
from protocols.message import Sampling
from trainers.selection.mix import Mix
from trainers.tuning.magdi_settings import MAGDiSettings
from trainers.tuning.sft_settings import SFTSettings

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {
    "make demo": "test_demo_learns_on_the_real_model",  # the same command line, a smaller recipe
    "make test": "this run",
    "ray job submit --working-dir . -- python -m engine run recipes/scripted.yaml --limit 5 --json": "test_job_submit",
}
"""README commands that another test runs."""


def commands(page: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def moot_command(line: str) -> bool:
    return line.startswith(".venv/bin/moot ")


def test_every_command_of_the_readme_is_run_by_a_test() -> None:
    for line in commands("README.md"):
        assert moot_command(line) or line in ELSEWHERE, f"no test runs: {line}"


@pytest.mark.parametrize(
    "kind",
    [
        *(spec.settings for spec in BACKENDS.values()),
        *SOURCES.values(),
        BatchSettings,
        FinetuneSettings,
        Price,
        Limits,
        Sampling,
        TrainSettings,
        Mix,
        SFTSettings,
        MAGDiSettings,
        LoopSettings,
        RunSettings,
    ],
)
def test_every_key_of_a_recipe_is_explained(kind: type[msgspec.Struct]) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    missing = [field.name for field in msgspec.structs.fields(kind) if f"`{field.name}`" not in page]
    assert not missing, f"docs/recipes.md does not explain {missing} of {kind.__name__}"


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}, which is not there"


def moot(arguments: list[str], folder: Path, timeout_s: float, also: str = "") -> subprocess.CompletedProcess[str]:
    """Run moot as a user would, in a folder of its own; ``also`` is one more folder on PYTHONPATH."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), also)))}
    for variable in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):  # a command makes its own
        env.pop(variable, None)
    return subprocess.run(
        [sys.executable, "-m", "engine", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_commands_of_the_readme_work_as_written(tmp_path: Path) -> None:
    for folder in ("examples", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for line in filter(moot_command, commands("README.md")):
        done = moot(line.split()[1:], tmp_path, 600)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    assert (tmp_path / "runs" / "mine" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_commands_of_the_tutorial_work_as_written(tmp_path: Path) -> None:
    for folder in ("docs", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    lines = [line.partition(" .venv/bin/moot ") for line in commands("docs/writing-a-protocol.md")]
    assert [setting for setting, command, _ in lines if command] == ["PYTHONPATH=docs/tutorial"] * 2
    for setting, _, arguments in lines:
        done = moot(arguments.split(), tmp_path, 600, also=setting.partition("=")[2])
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "review" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_demo_learns_on_the_real_model(tmp_path: Path) -> None:
    """The whole way, for real: vLLM, Ray, TRL and PEFT; only the recipe is smaller than the demo's."""
    smaller = ["tasks.train=10", "tasks.test=4", "train.min_support=1", "run.max_open=3", "sft.epochs=1"]
    done = moot(["demo", "--run-dir", "run", "--json", *smaller], tmp_path, 1400)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["closed"] == 18
    assert outcome["before"].keys() == outcome["after"].keys()
    assert outcome["warnings"] == []
    run = tmp_path / "run"
    assert {path.parent.parent.name for path in run.glob("adapters/*/v1/adapter_model.safetensors")} == {
        "ada",
        "bo",
        "cy",
    }
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "before training" in page
    assert "after iteration 1" in page
