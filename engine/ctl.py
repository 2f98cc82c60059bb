"""Control of a run from another shell or machine: what its driver is asked, and what is done where none is at work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from engine.live.command_files import Answer, Command, Verb, fetch_answer, post, withdraw
from engine.live.status import Status, driven, read_status
from engine.record.folder import RunFolder
from protocols.errors import ConfigError

if TYPE_CHECKING:
    from engine.debates.desk import Closed

ANSWER_S = 30.0  # more than a driver gives itself to carry a command out
POLL_S = 0.05
ALIVE_S = 1.0  # between looks whether the driver still lives


def list_runs(runs_dir: Path) -> dict[str, Any]:
    """The runs in a folder that are under way, or stopped before their end."""
    found = {}
    for file in sorted(runs_dir.glob("*/status.json")):
        run = file.parent
        try:
            status = read_status(run)
        except ConfigError as err:  # of one run, which hides no other
            found[str(run)] = {"state": "unreadable", "stage": "", "reason": str(err)}
            continue
        if status is not None and status.state != "done":
            found[str(run)] = _shown(status, driven(run, status))
    return {"runs": found}


def show(run: Path) -> dict[str, Any]:
    """All that its driver says of one run. Raises: ConfigError: not a run, or it was never driven."""
    RunFolder.open(run)
    if (status := read_status(run)) is None:
        raise ConfigError(f"{run}: no driver has told how it stands; go on with `moot resume {run}`")
    return {"run": str(run), "status": _shown(status, driven(run, status))}


def _shown(status: Status, alive: bool) -> dict[str, Any]:
    """``state`` is ``died`` of a run whose driver has gone without a word."""
    told: dict[str, Any] = msgspec.to_builtins(status)
    return told | {"state": status.state if alive or status.over else "died", "driven": alive}


def give(run: Path, verb: Verb, args: Sequence[str] = (), *, wait_s: float = ANSWER_S) -> dict[str, Any]:
    """Have the driver of a run do something. Returns: its answer.

    Raises: ConfigError: not a run, none drives it, or what its driver says against it.
    """
    RunFolder.open(run)
    status = read_status(run)
    if not driven(run, status):
        raise ConfigError(_not_driven(run, status))
    posted = post(run, Command(verb=verb, args=tuple(args)))
    try:
        answer = _answer(run, posted, wait_s)
    except BaseException:  # nobody waits any more
        withdraw(posted)
        raise
    if answer is None:
        if withdraw(posted):
            raise ConfigError(
                f"{run}: its driver has not taken the command within {wait_s:g} s, and will not: it is still starting, "
                "or ending; see `moot ctl show`"
            )
        raise ConfigError(f"{run}: its driver has taken the command, and has not answered; see `moot ctl show {run}`")
    if answer.error:
        raise ConfigError(f"{run}: {answer.error}")
    return {"run": str(run)} | answer.done


def _answer(run: Path, posted: Path, wait_s: float) -> Answer | None:
    """Raises: ConfigError: the driver has died meanwhile; the command is withdrawn."""
    began = looked = time.monotonic()
    while (now := time.monotonic()) - began < wait_s:
        if (answer := fetch_answer(posted)) is not None:
            return answer
        if now - looked > ALIVE_S:
            looked = now
            if not driven(run, status := read_status(run)):
                withdraw(posted)
                return fetch_answer(posted) or Answer(error=_not_driven(run, status).removeprefix(f"{run} "))
        time.sleep(POLL_S)
    return None


def _not_driven(run: Path, status: Status | None) -> str:
    if status is None:
        return f"{run} is not running; go on with `moot resume {run}`"
    if status.state == "done":
        return f"{run} is done"
    if status.state == "stopped":
        return f"{run} is not running: it has stopped; go on with `moot resume {run}`"
    ago = max(0.0, time.time() - status.at)
    return (
        f"{run} is not running: its driver, process {status.pid} on {status.host}, died without a word and gave its "
        f"last sign of life {ago:.0f} s ago; go on with `moot resume {run}`"
    )


def retry(run: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """Debate set-aside tasks again: at once where the run is under way, else as soon as it is resumed.

    Args:
        tasks: task ids, or those of debates; ``all`` for all.
    Raises: ConfigError: one was not set aside, or its stage has been learned from.
    """
    names = () if list(tasks) == ["all"] else tuple(tasks)
    under_way = driven(run, read_status(run))
    outcome = give(run, "retry", names) if under_way else _retry_offline(run, names)
    if not outcome["debates"]:
        return outcome | {"note": "nothing is set aside"}
    return outcome if under_way else outcome | {"go on with": f"moot resume {run}"}


def _retry_offline(run: Path, names: Sequence[str]) -> dict[str, Any]:
    folder = RunFolder.open(run)
    folder.lock()
    try:
        return {"run": str(run), "state": "not running", "debates": _reopened(folder, names)}
    finally:
        folder.release()


def _reopened(folder: RunFolder, names: Sequence[str]) -> list[str]:
    from engine.record.attempts import Attempts

    aside = _set_aside(folder)
    chosen = {debate: stage for debate, (stage, closed) in aside.items() if not names or _named(closed, names)}
    if missing := [name for name in names if not any(_named(closed, [name]) for _, closed in aside.values())]:
        raise ConfigError(f"{folder.path}: {missing[0]!r} is no task that was set aside; {_told(aside)}")
    learned = [stage for stage in chosen.values() if folder.manifest.kind == "loop" and _learned_from(folder, stage)]
    if learned:
        raise ConfigError(
            f"{folder.path}: {learned[0]} has been learned from, so what it set aside comes too late; begin another "
            f"run by `moot fork {folder.path}`, which debates it again"
        )
    manifest = folder.manifest
    for stage in chosen.values():  # first: a stage that is gone through again with nothing to do does no harm
        manifest.done.pop(stage, None)
    manifest.finished_at = None if chosen else manifest.finished_at
    folder.save()
    attempts = Attempts(folder.path)
    attempts.again(chosen)
    return [attempts.id(stage, aside[debate][1].debate.task.id) for debate, stage in chosen.items()]


def _set_aside(folder: RunFolder) -> dict[str, tuple[str, Closed]]:
    """Debate -> its stage and itself."""
    from engine.debates.stage import recorded

    stages = sorted(path.name for path in (folder.path / "journal").glob("*") if path.is_dir())
    return {item.debate.id: (stage, item) for stage in stages for item in recorded(folder, stage) if item.set_aside}


def _named(closed: Closed, names: Sequence[str]) -> bool:
    return closed.debate.task.id in names or closed.debate.id in names


def _told(aside: dict[str, tuple[str, Closed]]) -> str:
    shown = ", ".join(closed.debate.task.id for _, closed in list(aside.values())[:5])
    return f"there is: {shown}" + (", ..." if len(aside) > 5 else "") if aside else "none was"


def _learned_from(folder: RunFolder, stage: str) -> bool:
    """Whether a stage's rows are all in, so that none can be added."""
    return stage.startswith("debate-") and stage in folder.manifest.done


def set_values(run: Path, settings: Sequence[str]) -> dict[str, Any]:
    """Change settings of a run: at once where it is under way, else for when it is resumed. Raises: ConfigError."""
    if driven(run, read_status(run)):
        return give(run, "set", settings)
    from engine.config.recipe_file import build_recipe
    from engine.debates.changes import changed, keep_changes

    folder = RunFolder.open(run)
    folder.lock()
    try:
        where = Path(folder.manifest.recipe_path)
        old = build_recipe(folder.manifest.recipe, where=str(where), folder=where.parent)
        new, found = changed(old, settings, where.parent)
        keep_changes(folder, new, found)
    finally:
        folder.release()
    told = [str(item) for item in found]
    return {"run": str(run), "state": "not running", "changed": told, "go on with": f"moot resume {run}"}


def told(outcome: dict[str, Any]) -> dict[str, Any]:
    """The same for people."""
    if "runs" in outcome:
        return {"runs": [f"{run}  {_line(status)}" for run, status in outcome["runs"].items()]}
    if (status := outcome.get("status")) is None:
        return outcome
    models = {
        name: f"{model['running']} running of {model['concurrency']}, {model['queued']} queued, "
        f"{model['replies']} replies" + (f", {model['failures']} failed" if model["failures"] else "")
        for name, model in status["models"].items()
    }
    aside = [_printable(f"{item['task']}: {item['reason']}") for item in status["aside"]]
    driver = f"process {status['pid']} on {status['host']}, {max(0.0, time.time() - status['at']):.0f} s ago"
    shown = {
        "models": models,
        "set aside": aside,
        "changed": [_printable(change) for change in status["changes"]],
        "driver": driver,
    }
    return {"run": f"{outcome['run']}  {_line(status)}", "reason": status["reason"]} | shown


def _printable(text: str) -> str:
    """Reasons quote services and models, whose words must not steer a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _line(status: dict[str, Any]) -> str:
    if not status["stage"]:
        return str(status["state"])
    aside = f", {status['set_aside']} set aside" if status["set_aside"] else ""
    money = f", ${status['cost_usd']:.4f}" if status["cost_usd"] else ""
    return (
        f"{status['state']}  {status['stage']}: {status['closed']}/{status['total']} closed, {status['open']} open, "
        f"{status['waiting']} waiting{aside}, {status['replies_per_s']:.1f} replies/s, "
        f"{status['tokens_per_s']:.0f} tokens/s{money}"
    )
