"""The command line. Nothing heavy is imported before a command needs it: ``moot --help`` must answer at once."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from engine.progress import Progress

EXIT_SET_ASIDE, EXIT_BAD_INPUT, EXIT_PAUSED, EXIT_INTERRUPTED = 1, 2, 3, 130
RECIPES = Path(__file__).resolve().parent.parent / "recipes"
DEMO = RECIPES / "demo.yaml"

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; all else on stderr.")
dir_option = click.option(
    "--run-dir", type=click.Path(path_type=Path), help="Folder for this run. Default: runs/NAME-TIME."
)
limit_option = click.option("--limit", type=click.IntRange(min=1), help="At most so many tasks of each side.")


def _shipped(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    """A recipe's path; the bare name of one that moot ships will do."""
    named = RECIPES / f"{value}.yaml"
    return named if not value.exists() and value.name == str(value) and named.exists() else value


recipe_argument = click.argument("recipe", type=click.Path(path_type=Path), callback=_shipped)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
run_argument = click.argument("run", type=click.Path(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="moot")
@click.option("--log", type=click.Choice(["text", "json"]), default="text", help="How stderr tells of the run.")
def main(log: str) -> None:
    """Turns debates between language models into better models.

    A recipe is one YAML file; any of its keys can be set on the command line as KEY=VALUE, e.g. loop.iterations=2.
    Exit codes: 0 done, 1 done with tasks set aside, 2 bad input; go on with `moot resume` after 3 paused (a budget is
    spent, or an account refuses) and 130 interrupted.
    """


@main.command()
@dir_option
@json_option
@overrides_argument
def demo(run_dir: Path | None, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Debate, train and evaluate the embedded model on this machine, with a report at the end."""
    _start("loop", DEMO, overrides, run_dir, None, as_json)


@main.command()
@recipe_argument
@overrides_argument
@limit_option
@dir_option
@json_option
def run(recipe: Path, overrides: tuple[str, ...], limit: int | None, run_dir: Path | None, as_json: bool) -> None:
    """Run a recipe's debates, without training."""
    _start("run", recipe, overrides, run_dir, limit, as_json)


@main.command()
@recipe_argument
@overrides_argument
@limit_option
@dir_option
@json_option
def loop(recipe: Path, overrides: tuple[str, ...], limit: int | None, run_dir: Path | None, as_json: bool) -> None:
    """Run a recipe's whole loop: debate, train, swap the adapters in, evaluate, again."""
    _start("loop", recipe, overrides, run_dir, limit, as_json)


@main.command(name="eval")
@click.argument("target", type=click.Path(path_type=Path))
@overrides_argument
@limit_option
@dir_option
@json_option
def evaluate(target: Path, overrides: tuple[str, ...], limit: int | None, run_dir: Path | None, as_json: bool) -> None:
    """Evaluate on held-out tasks: a RECIPE's agents as they are, or a RUN's with its newest adapters."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.run import evaluate_run, start
        from protocols.errors import ConfigError

        if not target.is_dir():
            return start("eval", target, overrides, run_dir=run_dir, limit=limit, progress=progress)
        if overrides or run_dir or limit:
            raise ConfigError(
                f"{target} is a run: it is evaluated as it was run, without overrides, --limit or --run-dir"
            )
        return evaluate_run(target, progress=progress)

    _command(work, as_json)


@main.command()
@run_argument
@click.option("--budget", multiple=True, metavar="usd=Y|tokens=N", help="The run's new budget, what is spent included.")
@json_option
def resume(run: Path, budget: tuple[str, ...], as_json: bool) -> None:
    """Go on with a run that was interrupted; nothing that is on record is asked again."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.run import resume as resume_run

        return _with_report(resume_run(run, budget=budget, progress=progress), progress)

    _command(work, as_json)


@main.command()
@run_argument
@overrides_argument
@json_option
def train(run: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train one adapter an agent from the debates that a finished run, or an import, has on record."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.training import train_recorded

        return train_recorded(run, overrides, progress=progress)

    _command(work, as_json)


@main.command()
@recipe_argument
@overrides_argument
@limit_option
@json_option
def check(recipe: Path, overrides: tuple[str, ...], limit: int | None, as_json: bool) -> None:
    """Check a recipe and its tasks without starting anything."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.check import check_recipe

        return check_recipe(recipe, overrides, limit)

    _command(work, as_json)


@main.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from engine.check import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2))


@main.command()
@run_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: report.html in the run's folder.")
@json_option
def report(run: Path, output: Path | None, as_json: bool) -> None:
    """Write a run's report: one HTML page that needs nothing else."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.collect import write_run_report

        path, text = write_run_report(run, output)
        progress.note(text)
        return {"run": str(run), "report": str(path)}

    _command(work, as_json)


@main.command(name="import")
@click.argument("form", metavar="FORMAT")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path))
@dir_option
@click.option("--seed", default=0, show_default=True, help="Of what a LLaVA mixture draws.")
@json_option
def import_debates(form: str, paths: tuple[Path, ...], run_dir: Path | None, seed: int, as_json: bool) -> None:
    """Make a run of other systems' debate files. FORMAT: mad, maft, mag, magdi, m2d or llava."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.transfer import import_run

        return import_run(form, paths, run_dir, seed=seed, progress=progress)

    _command(work, as_json)


@main.command(name="export")
@click.argument("form", metavar="FORMAT")
@run_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="A file, or a folder of files.")
@click.option("--stage", help="Whose debates, e.g. debate-1. Default: the only one, or debate.")
@click.option("--rule", default="generator", show_default=True, help="trl-sft: a rule of train.rule, or right.")
@click.option("--label", type=click.Choice(["consensus", "gold"]), default="consensus", show_default=True)
@click.option("--edges", type=click.Choice(["causal", "magdi_legacy"]), default="causal", help="magdi-graph alone.")
@click.option("--force", is_flag=True, help="Replace what is there.")
@json_option
def export_debates(
    form: str, run: Path, output: Path, stage: str | None, force: bool, as_json: bool, **options: Any
) -> None:
    """Write a run's debates in another system's format, or as rows for trainers.

    FORMAT: mad, maft, mag, mag-batch, magdi, magdi-graph, m2d, llava, trl-sft, trl-preference, messages, graphml, json.
    """

    def work(progress: Progress) -> dict[str, Any]:
        from engine.transfer_out import Options, export_run

        return export_run(form, run, output, Options(**options), stage=stage, force=force, progress=progress)

    _command(work, as_json)


@main.group(invoke_without_command=True)
@click.pass_context
@json_option
def protocols(context: click.Context, as_json: bool) -> None:
    """List the protocols; `moot protocols show NAME` tells all about one."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.protocol_docs import list_protocols

        return list_protocols()

    if context.invoked_subcommand is None:
        _command(work, as_json)


@protocols.command(name="show")
@click.argument("name")
@json_option
def show_protocol(name: str, as_json: bool) -> None:
    """A protocol's phases, roles, settings, prompts, departures from its source, and its diagram."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.protocol_docs import show

        return show(name)

    _command(work, as_json)


@protocols.command(name="docs")
@click.argument("page", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def write_protocol_docs(page: Path) -> None:
    """Make anew the part of a page that is generated from the protocols."""
    from engine.protocol_docs import write_docs

    write_docs(page)


@main.command(name="list")
@json_option
@click.option("--runs-dir", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
def list_runs(as_json: bool, runs_dir: Path) -> None:
    """List the recipes that moot ships, and the runs in a folder."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.collect import list_all

        return list_all(RECIPES, runs_dir)

    _command(work, as_json)


def _start(
    kind: str, recipe: Path, overrides: tuple[str, ...], run_dir: Path | None, limit: int | None, as_json: bool
) -> NoReturn:
    def work(progress: Progress) -> dict[str, Any]:
        from engine.run import start

        outcome = start(kind, recipe, overrides, run_dir=run_dir, limit=limit, progress=progress)
        return _with_report(outcome, progress)

    _command(work, as_json)


def _with_report(outcome: dict[str, Any], progress: Progress) -> dict[str, Any]:
    from engine.collect import write_run_report

    path, text = write_run_report(Path(outcome["run"]), None)
    progress.note(text)
    return outcome | {"report": str(path)}


def _command(work: Callable[[Progress], dict[str, Any]], as_json: bool) -> NoReturn:
    """Run a command's work; errors become one sentence and an exit code, never a traceback."""
    from engine.progress import Progress
    from protocols.errors import MootError, PausedError

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    progress = Progress(as_json=click.get_current_context().find_root().params.get("log") == "json")
    try:
        with progress:
            outcome = work(progress)
    except KeyboardInterrupt:
        run = progress.run or "RUN"
        progress.last(f"interrupted; what is on record stays: go on with `moot resume {run}`")
        sys.exit(EXIT_INTERRUPTED)
    except MootError as err:
        progress.last("moot: " + " ".join(str(err).split("\n")))  # what is quoted may hold lines
        sys.exit(EXIT_PAUSED if isinstance(err, PausedError) else EXIT_BAD_INPUT)
    if as_json:
        click.echo(json.dumps(outcome))
    else:
        _show(outcome)
    sys.exit(EXIT_SET_ASIDE if outcome.get("set_aside") else 0)


def _show(outcome: dict[str, Any]) -> None:
    for key, value in outcome.items():
        rows = _host_rows(value) if key == "hosts" else _rows(value)
        if rows:
            click.echo(f"{key}:")
            for row in rows:
                click.echo(f"  {row}")
        elif isinstance(value, dict):
            click.echo(f"{key}: " + ", ".join(f"{name} {shown}" for name, shown in value.items()))
        elif value not in ([], None, ""):
            gap = "\n" if "\n" in str(value) else " "
            click.echo(f"{key}:{gap}{value}")


def _rows(value: Any) -> list[str]:
    """What is shown one to a line: sentences, and mappings to them."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        return value
    if isinstance(value, dict) and any(isinstance(shown, list | str | dict) for shown in value.values()):
        return [f"{name}: {_row(shown)}" for name, shown in value.items()]
    return []


def _host_rows(hosts: dict[str, Any]) -> list[str]:
    """What each model's process did, in one line; ``--json`` has all of it."""
    rows = []
    for name, did in hosts.items():
        told = {"replies": did["replies"], "failed": sum(did["failures"].values())}
        told |= {key: did[key] for key in ("retries", "hedged", "restarts")}
        rows.append(
            f"{name}: " + ", ".join(f"{count} {key}" for key, count in told.items() if count or key == "replies")
        )
    return rows


def _row(shown: Any) -> str:
    """Lists, and the shares of a total, on one line."""
    if isinstance(shown, dict):
        shown = [f"{name} ({', '.join(f'{key} {one}' for key, one in parts.items())})" for name, parts in shown.items()]
    return ", ".join(map(str, shown)) if isinstance(shown, list) else str(shown)


if __name__ == "__main__":
    main()
