"""The command's side of control: who drives a run, what is said where nobody does, what is done without a driver."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import ctl
from engine.debates.changes import changed, differences
from engine.live.command_files import Answer, Inbox
from engine.live.status import STALE_S, Aside, Status, driven, read_status, write_status
from engine.record.folder import Manifest, RunFolder
from protocols.errors import ConfigError
from tests.engine.config.test_recipe import built
from tests.engine.record.test_attempts import closed, put_on_record


def make_run(path: Path, kind: str = "run", *overrides: str) -> RunFolder:
    recipe = built(*overrides)
    manifest = Manifest(
        id="r", kind=kind, name="r", fingerprint=recipe.fingerprint, num_arenas=1, recipe=recipe.source,
        recipe_path=str(path / "r.yaml"),
    )  # fmt: skip
    folder = RunFolder.create(path, manifest)
    folder.write_recipe(recipe.source)
    return folder


def status(path: Path, **fields: Any) -> Status:
    told: dict[str, Any] = {
        "run": str(path), "id": "r", "kind": "run", "state": "running", "host": os.uname().nodename, "pid": 7,
        "at": time.time(), "started_at": 0.0,
    }  # fmt: skip
    return Status(**(told | fields))


def test_a_run_is_driven_while_its_lock_is_held(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    assert driven(tmp_path, None) and driven(tmp_path, status(tmp_path, state="stopped", at=0.0))
    folder.release()
    assert not driven(tmp_path, None) and not driven(tmp_path, status(tmp_path))
    folder.lock()  # whoever looks does not keep a driver out
    folder.release()


@pytest.mark.parametrize(
    ("ago_s", "fields", "alive"),
    [(1.0, {}, True), (STALE_S + 1, {}, False), (1.0, {"state": "stopped"}, False), (-3.0, {}, True)],
)
def test_on_another_machine_a_sign_of_life_decides(
    tmp_path: Path, ago_s: float, fields: dict[str, Any], alive: bool
) -> None:
    found = status(tmp_path, host="elsewhere", at=1000.0 - ago_s, **fields)
    assert driven(tmp_path, found, now=1000.0) is alive


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (None, "is not running; go on with `moot resume"),
        ({"state": "done"}, "is done"),
        ({"state": "stopped"}, "it has stopped; go on with `moot resume"),
        ({"at": 0.0}, "process 7 on .* died without a word and gave its last sign of life .* s ago"),
    ],
)
def test_what_nobody_drives_says_so_at_once(tmp_path: Path, fields: dict[str, Any] | None, said: str) -> None:
    make_run(tmp_path).release()
    if fields is not None:
        write_status(tmp_path, status(tmp_path, **fields))
    began = time.monotonic()
    for verb in ("pause", "resume", "drain"):
        with pytest.raises(ConfigError, match=said) as error:
            ctl.give(tmp_path, verb)
        assert "\n" not in str(error.value)
    assert time.monotonic() - began < ctl.ANSWER_S and not (tmp_path / "control").exists()


def test_a_driver_that_takes_no_command_is_not_waited_for(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    with pytest.raises(ConfigError, match=r"has not taken the command within 0\.1 s, and will not"):
        ctl.give(tmp_path, "pause", wait_s=0.1)
    assert list((tmp_path / "control").iterdir()) == []  # a driver that comes to itself does not find it
    folder.release()


def test_a_driver_that_dies_meanwhile_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctl, "ALIVE_S", 0.05)
    folder = make_run(tmp_path)
    write_status(tmp_path, status(tmp_path))
    threading.Timer(0.1, folder.release).start()
    with pytest.raises(ConfigError, match="died without a word"):
        ctl.give(tmp_path, "pause", wait_s=20.0)
    assert list((tmp_path / "control").iterdir()) == []


def driver(inbox: Inbox, answer: Callable[[str], Answer], count: int) -> threading.Thread:
    """Answers so many commands."""

    def work() -> None:
        left = count
        while left:
            for taken in inbox.take():
                inbox.answer(taken, answer(taken.name))
                left -= 1
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_many_commanders_at_once_get_their_own_answers(tmp_path: Path) -> None:
    folder, inbox = make_run(tmp_path), Inbox(tmp_path)
    inbox.open()
    thread, seen = driver(inbox, lambda name: Answer(done={"name": name}), 12), []
    commanders = [threading.Thread(target=lambda: seen.append(ctl.give(tmp_path, "pause")["name"])) for _ in range(12)]
    for commander in commanders:
        commander.start()
    for one in (*commanders, thread):
        one.join(20)
    assert len(set(seen)) == 12 and list((tmp_path / "control").iterdir()) == []
    folder.release()


def test_runs_are_listed_whatever_state_they_are_in(tmp_path: Path) -> None:
    states: dict[str, dict[str, Any]] = {
        "a": {"stage": "debate", "total": 9, "closed": 2, "set_aside": 1, "cost_usd": 0.5},
        "b": {"at": 0.0},
        "c": {"state": "done"},
        "d": {"state": "stopped", "reason": "drained", "aside": (Aside(task="t", times=1, reason="no\x1b[2J\nway"),)},
    }
    for name, fields in states.items():
        folder = make_run(tmp_path / name)
        write_status(tmp_path / name, status(tmp_path / name, **fields))
        if name != "a":
            folder.release()
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "status.json").write_text("{")
    runs = ctl.list_runs(tmp_path)["runs"]
    assert {Path(run).name: found["state"] for run, found in runs.items()} == {
        "a": "running",
        "b": "died",
        "d": "stopped",
        "e": "unreadable",
    }
    lines = ctl.told({"runs": runs})["runs"]
    assert lines[0].endswith(
        "running  debate: 2/9 closed, 0 open, 0 waiting, 1 set aside, 0.0 replies/s, 0 tokens/s, $0.5000"
    )
    assert lines[1].endswith("b  died")
    shown = ctl.told(ctl.show(tmp_path / "d"))
    assert shown["run"].endswith("d  stopped") and shown["reason"] == "drained" and "process 7 on" in shown["driver"]
    assert shown["set aside"] == ["t: no\ufffd[2J\ufffdway"]


def test_a_finished_run_takes_up_what_it_set_aside(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    put_on_record(
        folder, "debate", closed("debate/t0", aside=True), closed("debate/t1"), closed("debate/t2", aside=True)
    )
    folder.manifest.finished_at = 1.0
    folder.mark_done("debate", {"debates": 3})
    folder.release()
    with pytest.raises(ConfigError, match="'t1' is no task that was set aside"):
        ctl.retry(tmp_path, ["t0", "t1"])
    assert RunFolder.open(tmp_path).manifest.finished_at == 1.0 and not (tmp_path / "retries.json").exists()
    assert ctl.retry(tmp_path, ["debate/t2"])["debates"] == ["debate~2/t2"]
    manifest = RunFolder.open(tmp_path).manifest
    assert manifest.finished_at is None and manifest.done == {}
    told = {"run": str(tmp_path), "state": "not running"}
    go_on = {"debates": ["debate~2/t0"], "go on with": f"moot resume {tmp_path}"}
    assert ctl.retry(tmp_path, ["all"]) == told | go_on
    assert ctl.retry(tmp_path, ["all"]) == told | {"debates": [], "note": "nothing is set aside"}


def test_what_was_learned_from_is_not_debated_again(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "loop")
    for stage in ("debate-1", "eval-0"):
        put_on_record(folder, stage, closed(f"{stage}/t0", aside=True))
        folder.mark_done(stage, {"debates": 1})
    folder.release()
    with pytest.raises(ConfigError, match="debate-1 has been learned from, so what it set aside comes too late"):
        ctl.retry(tmp_path, ["all"])
    assert ctl.retry(tmp_path, ["eval-0/t0"])["debates"] == ["eval-0~2/t0"]
    assert list(RunFolder.open(tmp_path).manifest.done) == ["debate-1"]


def test_settings_of_a_run_that_nobody_drives_are_for_when_it_goes_on(tmp_path: Path) -> None:
    make_run(tmp_path).release()
    assert ctl.set_values(tmp_path, ["ada.concurrency=3", "run.budget.tokens=9"])["changed"] == [
        "models.simulated.limits: not set -> {\"max_concurrency\":3}",
        "run: not set -> {\"budget\":{\"tokens\":9}}",
    ]  # fmt: skip
    manifest = RunFolder.open(tmp_path).manifest
    assert manifest.recipe["run"] == {"budget": {"tokens": 9}} and len(manifest.changes) == 2
    assert built().fingerprint == manifest.fingerprint


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("simulated.skill=1", "a model's 'skill' cannot be set while it runs; there is: backoff_s"),
        ("models.simulated.limits.max_trys=1", "did you mean 'max_tries'"),
        ("protocol.rounds=3", "cannot be set while a run goes on; there is: "),
        ("run.num_arenas=3", "cannot be set while a run goes on; did you mean 'run.max_open'"),
        ("nobody.concurrency=3", "did you mean '.*concurrency'"),
        ("run.max_open", "must look like key=value"),
        ("run.max_open=0", "run.max_open=0 must be a number from 1 to"),
        ("ada.concurrency=many", "max_concurrency='many'"),
        ("ada.timeout_s=.nan", "timeout_s=nan must be a finite number above 0"),
    ],
)
def test_what_cannot_be_set_is_one_sentence(tmp_path: Path, setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        changed(built(), [setting], tmp_path)
    assert "\n" not in str(error.value)


def test_differences_are_told_key_by_key_and_those_that_are_free_known() -> None:
    old = built().source
    new = built(
        "protocol.rounds=3", "models.simulated.limits.max_tries=2", "run.max_open=3", "agents.ada.persona=x"
    ).source
    found = {str(item): item.free for item in differences(old, new)}
    assert found == {
        'models.simulated.limits: not set -> {"max_tries":2}': True,
        "agents.ada.persona: not set -> x": False,
        "protocol.rounds: 2 -> 3": False,
        'run: not set -> {"max_open":3}': True,
    }
    assert [str(item) for item in differences(new, built("run.max_open=4").source)][-1] == "run.max_open: 3 -> 4"


def test_the_list_is_there_at_once_and_needs_no_ray(tmp_path: Path) -> None:
    make_run(tmp_path / "r").release()
    write_status(tmp_path / "r", status(tmp_path / "r"))
    code = (
        "import sys; from engine import ctl; ctl.told(ctl.list_runs(__import__('pathlib').Path(sys.argv[1])));"
        "print(sorted({'ray', 'yaml', 'torch', 'engine.debates.arena'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stdout


def test_a_damaged_status_is_one_sentence(tmp_path: Path) -> None:
    make_run(tmp_path).release()
    (tmp_path / "status.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"status\.json: cannot be read"):
        read_status(tmp_path)
