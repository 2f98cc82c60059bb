"""The command line: mistakes are one line and an exit code, and a script can read what comes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import Result

from engine.cli import _show
from engine.live.progress import Progress
from engine.record.folder import Manifest, RunFolder
from tests.engine.command import moot
from tests.engine.config.test_recipe import GOOD

ROOT = Path(__file__).resolve().parents[2]
SCRIPTED = str(ROOT / "recipes" / "scripted.yaml")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    return path


def test_where_logs_are_json_an_error_is_too() -> None:
    done = moot("--log", "json", "check", "nowhere.yaml")
    told = json.loads(done.stderr)
    assert done.exit_code == 2 and told["level"] == "error" and "nowhere.yaml" in told["message"]


def test_every_kind_of_outcome_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    _show(
        {
            "run": "runs/a",
            "before": {"accuracy": 0.5, "accuracy_interval": [0.25, 0.75]},
            "rows": {"ada": 3, "bo": 4},
            "warnings": [],
            "adapters": ["ada@a-v1"],
            "roles": {"judge": "decides in the end", "critic": ""},
            "phases": {"open": ["closed"], "closed": []},
            "diagram": "a\nb",
            "none": None,
            "hosts": {
                "m/0": {"replies": 7, "failures": {"timeout": 2}, "retries": 3, "hedged": 0, "restarts": 1},
                "m/1": {"replies": 0, "failures": {}, "retries": 0, "hedged": 0, "restarts": 0},
            },
        }
    )
    assert capsys.readouterr().out.splitlines() == [
        "run: runs/a",
        "before:",
        "  accuracy: 0.5",
        "  accuracy_interval: 0.25, 0.75",
        "rows: ada 3, bo 4",
        "adapters:",
        "  ada@a-v1",
        "roles:",
        "  judge: decides in the end",
        "  critic: ",
        "phases:",
        "  open: closed",
        "  closed: ",
        "diagram:",
        "a",
        "b",
        "hosts:",
        "  m/0: 7 replies, 2 failed, 3 retries, 1 restarts",
        "  m/1: 0 replies",
    ]


def test_tasks_that_the_protocol_refuses_are_found_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(f'{{"question": "q{n}", "answer": "{n or ""}"}}\n' for n in range(4)))
    recipe = GOOD | {
        "tasks": {"source": "file", "path": str(tmp_path / "t.jsonl"), "test": 1},
        "protocol": {"name": "reflect"},
        "cast": {"teacher": ["ada"], "student": ["bo"]},
    }
    path = tmp_path / "reflect.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    said = "1 of 4 tasks cannot be debated under 'reflect': "
    assert_one_line(moot("check", path), said)
    assert_one_line(moot("run", path, "--run-dir", tmp_path / "run"), said)
    assert not (tmp_path / "run").exists()


def test_the_name_of_a_shipped_recipe_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert moot("check", "scripted", "--json").exit_code == 0
    assert_one_line(moot("check", "scripte"), "recipe scripte: No such file or directory")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", ""), ("run", ""), ("run", "scripted", "--run-dir", ""), ("eval", ""), ("resume", ""),
        ("ctl", "show", ""),
        ("report", "r", "-o", ""), ("export", "json", "r", "-o", ""), ("import", "mad", ""), ("list", "--runs-dir", ""),
        ("adapters", "merge", "r", "ada", "-o", "m", "--base", ""), ("compare", ""), ("compare", ":debate"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_an_empty_path_is_not_the_folder_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = moot(*arguments)
    assert result.exit_code == 2 and "is empty; give" in result.output, result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [("list",), ("ctl", "list")], ids=" ".join)
def test_a_folder_of_runs_that_is_named_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    for name, said in (("nope", "Directory 'nope' does not exist"), ("file", "Directory 'file' is a file")):
        result = moot(*command, "--runs-dir", name)
        assert result.exit_code == 2 and said in result.output and not result.stdout
    assert not json.loads(moot(*command, "--json").stdout)["runs"]  # there were no runs yet


def test_a_key_given_twice_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("name: a\ntasks: {source: arithmetic}\nname: b\n")
    assert_one_line(moot("check", path), "twice.yaml, line 3: is not valid YAML: the key 'name' is given twice")
    path.write_text("name: a\nagents:\n  ada: {model: m}\n  bo: {model: m}\n  ada: {model: n}\n")
    assert_one_line(moot("check", path), "line 5: is not valid YAML: the key 'ada' is given twice")


MISTAKES = {
    "one of few words": ("tasks.level=add50", "use one of: add20, add3, add30"),
    "one of few words in a list": ("protocol.stop=[foo]", "protocol.stop[0]='foo'"),
    "a limit that is no number": (
        "models.simulated.limits={timeout_s: .nan}",
        "limits.timeout_s=nan must be a finite number above 0",
    ),
    "a latency that is no number": ("models.simulated.latency_s=.nan", "latency_s=nan must be a finite number"),
    "wrong key": ("protocol.round=3", "protocol.round=3 is not known; did you mean 'rounds'?"),
    "unknown protocol": ("protocol.name=duel", "protocol.name='duel' is not known; there is: baseline, dialectic, mad"),
    "missing model": ("models.simulated={backend: vllm, model: /nowhere/model}", "models.simulated"),
    "broken task file": ("tasks={source: file, path: broken.jsonl}", "broken.jsonl, line 1: is not valid JSON"),
    "missing task file": ("tasks={source: file, path: none.jsonl}", "cannot read none.jsonl: No such file"),
    "exhausted level": ("tasks={source: arithmetic, level: add20, train: 900}", "level 'add20' has only about"),
    "no override": ("rounds", "override 'rounds' must look like key=value"),
    "a key of two lines": ('{"a\\nb": 1}=2', "is not known"),
}


def assert_one_line(result: Result, said: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("moot: ") and said in line
    assert "Traceback" not in result.output


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(recipe: Path, mistake: str) -> None:
    (recipe.parent / "broken.jsonl").write_text("{")
    override, said = MISTAKES[mistake]
    assert_one_line(moot("check", recipe, override), said)
    assert_one_line(moot("check", recipe, override, "--json"), said)


@pytest.mark.parametrize("command", ["run", "loop", "eval"])
def test_a_mistake_starts_nothing(recipe: Path, command: str) -> None:
    target = recipe.parent / "run"
    assert_one_line(moot(command, recipe, "loop.iterations=0", "--run-dir", target), "iterations=0")
    assert not target.exists()
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


def test_a_loop_whose_agents_would_each_have_a_whole_model_starts_nothing(recipe: Path) -> None:
    target = recipe.parent / "run"
    said = "agents that share a model cannot each have all of its weights, and ada shares models.simulated with bo; set"
    assert_one_line(moot("loop", recipe, "sft.method=full", "--run-dir", target), said)
    assert not target.exists()


def test_what_quotes_several_lines_is_still_one(recipe: Path) -> None:
    recipe.write_text(yaml.safe_dump(GOOD | {"a\nb": 1}), encoding="utf-8")
    assert_one_line(moot("check", recipe), "is not known")


def test_a_missing_recipe_and_a_missing_run_are_one_line(tmp_path: Path) -> None:
    assert_one_line(moot("check", tmp_path / "none.yaml"), "No such file or directory; `moot list` names")
    assert_one_line(moot("resume", tmp_path / "none"), "is not a run's folder")
    assert_one_line(moot("report", tmp_path / "none"), "is not a run's folder")
    assert_one_line(moot("eval", tmp_path), "is not a run's folder")
    assert_one_line(moot("eval", tmp_path, "--or-resume"), "each of its evaluations is another; leave out --or-resume")


def test_an_interrupted_command_says_what_is_left_to_do(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = RunFolder.create(
        tmp_path / "run",
        Manifest(id="r", kind="run", name="n", fingerprint="f", num_arenas=1, recipe={}, recipe_path=""),
    )
    done.release()

    def interrupted(*_: object, progress: Progress, **options: object) -> None:
        progress.run = str(done.path)
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.run.start", interrupted)
    result = moot("run", recipe)
    assert result.exit_code == 130 and f"stays: go on with `moot resume {done.path}`" in result.stderr
    done.manifest.finished_at = 1.0
    done.save()
    result = moot("run", recipe)
    assert result.exit_code == 130 and f"the run is done, and `moot report {done.path}` writes" in result.stderr


def test_check_says_what_a_run_would_do(recipe: Path) -> None:
    result = moot("check", recipe, "--limit", "2", "seed=5")
    assert result.exit_code == 0 and result.stderr == ""
    assert "train: 2" in result.stdout and "protocol: society" in result.stdout


@pytest.mark.parametrize("arguments", [("check", SCRIPTED, "--json"), ("list", "--json"), ("schema",)])
def test_json_is_one_object_on_stdout(arguments: tuple[str, ...]) -> None:
    result = moot(*arguments)
    assert result.exit_code == 0 and result.stderr == ""
    assert isinstance(json.loads(result.stdout), dict)


def test_list_shows_recipes_and_runs(tmp_path: Path) -> None:
    manifest = Manifest(
        id="r",
        kind="run",
        name="n",
        fingerprint="f",
        num_arenas=1,
        recipe={},
        recipe_path="r.yaml",
        done={"debate": {}},
    )
    RunFolder.create(tmp_path / "good", manifest).release()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text("{")
    result = moot("list", "--json", "--runs-dir", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert SCRIPTED in found["recipes"]
    assert found["runs"] == [
        f"{tmp_path / 'bad'}  damaged: its run.json cannot be read",
        f"{tmp_path / 'good'}  run  resumable after debate",
    ]


def test_click_itself_refuses_what_is_no_command() -> None:
    assert moot("debat").exit_code == 2
    assert moot("check").exit_code == 2
    assert moot("check", SCRIPTED, "--limit", "0").exit_code == 2
    assert moot("--help").exit_code == 0


def test_looking_around_starts_nothing_heavy() -> None:
    code = f"""
import sys
from click.testing import CliRunner
from engine.cli import _show, main
for arguments in (["--help"], ["check", {SCRIPTED!r}], ["list"], ["schema"]):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (arguments, result.output)
heavy = {{"ray", "torch", "vllm", "transformers", "trl", "peft", "datasets", "matplotlib", "networkx"}}
assert not heavy & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_control_of_what_is_no_run_or_not_driven_is_one_line(tmp_path: Path) -> None:
    manifest = Manifest(id="r", kind="run", name="r", fingerprint="f", num_arenas=1, recipe={}, recipe_path="r.yaml")
    RunFolder.create(tmp_path / "r", manifest).release()
    for verb in ("show", "pause", "resume", "drain", "set", "retry"):
        more = {"set": ["a.concurrency=1"], "retry": ["all"]}.get(verb, [])
        assert_one_line(moot("ctl", verb, tmp_path, *more), "is not a run's folder")
    for verb in ("pause", "resume", "drain"):
        assert_one_line(moot("ctl", verb, tmp_path / "r", "--json"), "is not running; go on with `moot resume")
    listed = moot("ctl", "list", "--runs-dir", tmp_path, "--json")
    assert listed.exit_code == 0 and json.loads(listed.stdout) == {"runs": {}}
