"""The command line. Nothing heavy is imported before a command needs it: ``moot --help`` must answer at once."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from types import ModuleType

    from engine.live.progress import Progress
    from protocols.errors import MootError

EXIT_SET_ASIDE, EXIT_BAD_INPUT, EXIT_PAUSED, EXIT_INTERRUPTED = 1, 2, 3, 130
RECIPES = Path(__file__).resolve().parent.parent / "recipes"
DEMO = RECIPES / "demo.yaml"
RUNS = Path("runs")

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; all else on stderr.")


class NamedPath(click.Path):
    """A path that is named: an empty one, such as an unset variable of a script makes, is not the folder one is in."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if value == "":
            optional = isinstance(parameter, click.Option) and not parameter.required
            self.fail(f"it is empty; give a path{', or leave the option out' * optional}", parameter, context)
        return super().convert(value, parameter, context)


dir_option = click.option(
    "--run-dir", type=NamedPath(path_type=Path), help="Folder for this run. Default: runs/NAME-TIME."
)
again_option = click.option(
    "--or-resume",
    is_flag=True,
    help="Go on with the run that --run-dir holds, if it does: for jobs that are submitted again.",
)
runs_dir_option = click.option(  # a folder that is named must be there; the usual one need not be
    "--runs-dir", type=NamedPath(exists=True, file_okay=False, path_type=Path), help="Default: runs."
)
limit_option = click.option("--limit", type=click.IntRange(min=1), help="At most so many tasks of each side.")


def _shipped(context: click.Context, parameter: click.Parameter, value: Path) -> Path:
    """A recipe's path; the bare name of one that moot ships will do."""
    named = RECIPES / f"{value}.yaml"
    return named if not value.exists() and value.name == str(value) and named.exists() else value


recipe_argument = click.argument("recipe", type=NamedPath(path_type=Path), callback=_shipped)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
run_argument = click.argument("run", type=NamedPath(path_type=Path))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="moot")
@click.option("--log", type=click.Choice(["text", "json"]), default="text", help="How stderr tells of the run.")
def main(log: str) -> None:
    """Turns debates between language models into better models.

    A recipe is one YAML file; any of its keys can be set on the command line as KEY=VALUE, e.g. loop.iterations=2.
    Exit codes: 0 done, 1 done with tasks set aside or damage found, 2 bad input; go on with `moot resume` after 3
    paused (drained, a budget is spent, or an account refuses) and 130 interrupted (Ctrl-C or SIGTERM).
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
@again_option
@json_option
def run(
    recipe: Path, overrides: tuple[str, ...], limit: int | None, run_dir: Path | None, or_resume: bool, as_json: bool
) -> None:
    """Run a recipe's debates, without training."""
    _start("run", recipe, overrides, run_dir, limit, as_json, or_resume)


@main.command()
@recipe_argument
@overrides_argument
@limit_option
@dir_option
@again_option
@json_option
def loop(
    recipe: Path, overrides: tuple[str, ...], limit: int | None, run_dir: Path | None, or_resume: bool, as_json: bool
) -> None:
    """Run a recipe's whole loop: debate, train, swap the adapters in, evaluate, again."""
    _start("loop", recipe, overrides, run_dir, limit, as_json, or_resume)


@main.command(name="eval")
@click.argument("target", type=NamedPath(path_type=Path))
@overrides_argument
@limit_option
@dir_option
@again_option
@json_option
def evaluate(
    target: Path, overrides: tuple[str, ...], limit: int | None, run_dir: Path | None, or_resume: bool, as_json: bool
) -> None:
    """Evaluate on held-out tasks: a RECIPE's agents as they are, or a RUN's with its newest adapters.

    KEY=VALUE may name other tasks or another protocol, so that tuned agents are tried elsewhere or without a debate.
    """

    def work(progress: Progress) -> dict[str, Any]:
        from engine.run import evaluate_run, start
        from protocols.errors import ConfigError

        if not target.is_dir():
            return start(
                "eval", target, overrides, run_dir=run_dir, limit=limit, or_resume=or_resume, progress=progress
            )
        if or_resume:
            raise ConfigError(f"{target} is a run: each of its evaluations is another; leave out --or-resume")
        return evaluate_run(target, overrides, run_dir=run_dir, limit=limit, progress=progress)

    _command(work, as_json)


@main.command()
@run_argument
@click.option("--budget", multiple=True, metavar="usd=Y|tokens=N", help="The run's new budget, what is spent included.")
@click.option("--iterations", type=int, metavar="N", help="That a loop is to have in all: one that is done goes on.")
@json_option
def resume(run: Path, budget: tuple[str, ...], iterations: int | None, as_json: bool) -> None:
    """Go on with a run that was interrupted; nothing that is on record is asked again."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.run import resume as resume_run

        return _with_report(resume_run(run, budget=budget, iterations=iterations, progress=progress), progress)

    _command(work, as_json)


@main.command()
@run_argument
@overrides_argument
@click.option("--preferences", is_flag=True, help="Learn which answers are better (tree-DPO), on the newest adapters.")
@click.option("--magdi", is_flag=True, help="Distil whole debates into one student by MAGDi's objective, a baseline.")
@json_option
def train(run: Path, overrides: tuple[str, ...], preferences: bool, magdi: bool, as_json: bool) -> None:
    """Train one adapter an agent from the debates that a finished run, or an import, has on record."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.learning.train_magdi import train_student
        from engine.learning.train_preferences import train_on_preferences
        from engine.learning.training import train_recorded
        from protocols.errors import ConfigError

        if preferences and magdi:
            raise ConfigError("--preferences and --magdi are two trainings; give one of them")
        fit = train_on_preferences if preferences else train_student if magdi else train_recorded
        return fit(run, overrides, progress=progress)

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
@click.option("-o", "--output", type=NamedPath(path_type=Path), help="Default: report.html in the run's folder.")
@json_option
def report(run: Path, output: Path | None, as_json: bool) -> None:
    """Write a run's report: one HTML page that needs nothing else."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.results.collect import write_run_report

        path, text = write_run_report(run, output)
        progress.note(text)
        return {"run": str(run), "report": str(path)}

    _command(work, as_json)


@main.command()
@click.argument("sides", nargs=-1, required=True, metavar="RUN[:STAGE]...")
@json_option
def compare(sides: tuple[str, ...], as_json: bool) -> None:
    """Hold runs or stages against the first, paired by task, with diversity and cost. One RUN alone: all its stages.

    Accuracies have 95% intervals; changes are paired over the tasks that both graded, with McNemar's test where every
    score is right or wrong.
    """
    from engine.results.compare import compare_runs
    from protocols.errors import MootError

    try:
        found = compare_runs(sides)
    except MootError as err:
        _fail(err, partial(click.echo, err=True))
    if as_json:
        click.echo(json.dumps(found.outcome()))
        return
    from engine.results.compare_tables import compare_text

    click.echo(compare_text(found), nl=False)


@main.command(name="import")
@click.argument("form", metavar="FORMAT")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=NamedPath(path_type=Path))
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
@click.option("-o", "--output", type=NamedPath(path_type=Path), required=True, help="A file, or a folder of files.")
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

    FORMAT: mad, maft, mag, mag-batch, magdi, magdi-graph, m2d, llava, trl-sft, trl-preference, trl-tree, messages,
    parquet, graphml, json.
    """

    def work(progress: Progress) -> dict[str, Any]:
        from engine.results.transfer_out import Options, export_run

        return export_run(form, run, output, Options(**options), stage=stage, force=force, progress=progress)

    _command(work, as_json)


@main.group(invoke_without_command=True)
@click.pass_context
@json_option
def protocols(context: click.Context, as_json: bool) -> None:
    """List the protocols; `moot protocols show NAME` tells all about one."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.config.protocol_docs import list_protocols

        return list_protocols()

    if context.invoked_subcommand is None:
        _command(work, as_json)


@protocols.command(name="show")
@click.argument("name")
@json_option
def show_protocol(name: str, as_json: bool) -> None:
    """A protocol's phases, roles, settings, prompts, departures from its source, and its diagram."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.config.protocol_docs import show

        return show(name)

    _command(work, as_json)


@protocols.command(name="docs")
@click.argument("page", type=NamedPath(path_type=Path, exists=True, dir_okay=False))
def write_protocol_docs(page: Path) -> None:
    """Make anew the part of a page that is generated from the protocols."""
    from engine.config.protocol_docs import write_docs

    write_docs(page)


@main.command()
@run_argument
@overrides_argument
@dir_option
@json_option
def fork(run: Path, overrides: tuple[str, ...], run_dir: Path | None, as_json: bool) -> None:
    """Begin another run with RUN's recipe, changed; what its record holds that stays valid is not asked again."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.fork import fork as fork_run

        return _with_report(fork_run(run, overrides, run_dir=run_dir, progress=progress), progress)

    _command(work, as_json)


@main.group()
def ctl() -> None:
    """Control a run that is under way, from any shell or machine that sees its folder."""


@ctl.command(name="list")
@json_option
@runs_dir_option
def list_running(as_json: bool, runs_dir: Path | None) -> None:
    """List the runs that are under way, or have stopped before their end."""
    _control(lambda ctl: ctl.list_runs(runs_dir or RUNS), as_json)


@ctl.command(name="show")
@run_argument
@json_option
def show_run(run: Path, as_json: bool) -> None:
    """How a run stands: its debates, its models, what was set aside and why."""
    _control(lambda ctl: ctl.show(run), as_json)


@ctl.command()
@run_argument
@json_option
def pause(run: Path, as_json: bool) -> None:
    """Send nothing more; what is in the models comes in, and the run stays up until `moot ctl resume`."""
    _control(lambda ctl: ctl.give(run, "pause"), as_json)


@ctl.command(name="resume")
@run_argument
@json_option
def go_on(run: Path, as_json: bool) -> None:
    """Go on after `moot ctl pause`, or take `moot ctl drain` back."""
    _control(lambda ctl: ctl.give(run, "resume"), as_json)


@ctl.command()
@run_argument
@json_option
def drain(run: Path, as_json: bool) -> None:
    """Open no more debates; when those that are open have ended, the run stops with exit code 3."""
    _control(lambda ctl: ctl.give(run, "drain"), as_json)


@ctl.command(name="set")
@run_argument
@click.argument("settings", nargs=-1, required=True, metavar="KEY=VALUE...")
@json_option
def set_values(run: Path, settings: tuple[str, ...], as_json: bool) -> None:
    """Change limits without a restart: MODEL.concurrency=8, MODEL.requests_per_minute=60, run.max_open=64 ..."""
    _control(lambda ctl: ctl.set_values(run, settings), as_json)


@ctl.command()
@run_argument
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...|all")
@json_option
def retry(run: Path, tasks: tuple[str, ...], as_json: bool) -> None:
    """Debate tasks again that were set aside: now, or on `moot resume` where the run has ended."""
    _control(lambda ctl: ctl.retry(run, tasks), as_json)


def _control(ask: Callable[[ModuleType], dict[str, Any]], as_json: bool) -> NoReturn:
    """Like ``_command``, for what answers at once and shows no progress: less is imported."""
    from engine import ctl
    from protocols.errors import MootError

    try:
        outcome = ask(ctl)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except MootError as err:
        _fail(err, partial(click.echo, err=True))
    _tell(outcome if as_json else ctl.told(outcome), as_json)
    sys.exit(0)


@main.group()
def adapters() -> None:
    """What a run has trained: list it, merge it into its base, hand it on."""


adapter_argument = click.argument("name", metavar="ADAPTER")
folder_option = click.option(
    "-o", "--output", type=NamedPath(path_type=Path), required=True, help="A folder that is not there yet."
)
base_id_option = click.option("--base-id", default="", help="The base's name on the hub, for the card: ORG/NAME.")


@adapters.command(name="list")
@run_argument
@json_option
def list_adapters(run: Path, as_json: bool) -> None:
    """List a run's adapters, oldest first."""
    _adapters(lambda adapters: adapters.list_adapters(run), as_json)


@adapters.command(name="show")
@run_argument
@adapter_argument
@json_option
def show_adapter(run: Path, name: str, as_json: bool) -> None:
    """All about one ADAPTER, or an agent's newest: what it comes from, what it learned, whether its files are whole."""
    _adapters(lambda adapters: adapters.show_adapter(run, name), as_json)


@adapters.command(name="merge")
@run_argument
@adapter_argument
@folder_option
@click.option("--base", type=NamedPath(path_type=Path), help="The base's folder. Default: what the run trained.")
@click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto")
@json_option
def merge_adapter(run: Path, name: str, output: Path, base: Path | None, dtype: str, as_json: bool) -> None:
    """Write ADAPTER and its base as one model, which transformers and vLLM load by itself."""
    _adapters(lambda adapters: adapters.merge(run, name, output, base=base, dtype=dtype), as_json)


@adapters.command(name="export")
@run_argument
@adapter_argument
@folder_option
@base_id_option
@json_option
def export_adapter(run: Path, name: str, output: Path, base_id: str, as_json: bool) -> None:
    """Write ADAPTER for others: PEFT layout, a model card, its lineage."""
    _adapters(lambda adapters: adapters.export(run, name, output, base_id=base_id), as_json)


@adapters.command(name="push")
@run_argument
@adapter_argument
@click.argument("repository", metavar="ORG/NAME")
@base_id_option
@click.option("--public", is_flag=True, help="A repository that is made now can be read by all.")
@json_option
def push_adapter(run: Path, name: str, repository: str, base_id: str, public: bool, as_json: bool) -> None:
    """Export ADAPTER to the Hugging Face hub; the token is that of HF_TOKEN."""
    _adapters(lambda adapters: adapters.push(run, name, repository, base_id=base_id, public=public), as_json)


@adapters.command(name="score")
@run_argument
@click.option("--stage", default="", help="Default: the last evaluation.")
@click.option("--replies", default=100, show_default=True, type=click.IntRange(min=1), help="Of each agent.")
@click.option("--base", type=NamedPath(path_type=Path), help="The base's folder. Default: what the run trained.")
@json_option
def score_stage(run: Path, stage: str, replies: int, base: Path | None, as_json: bool) -> None:
    """Score how likely the agents of a stage find each other's replies, for `moot compare` and the report."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.results.likelihoods import score_stage

        return score_stage(run, stage, num_replies=replies, base=base, progress=progress)

    _command(work, as_json)


def _adapters(ask: Callable[[ModuleType], dict[str, Any]], as_json: bool) -> NoReturn:
    def work(progress: Progress) -> dict[str, Any]:
        from engine.results import adapters

        outcome = ask(adapters)
        return outcome if as_json else adapters.told(outcome)

    _command(work, as_json)


@main.command(name="list")
@json_option
@runs_dir_option
def list_runs(as_json: bool, runs_dir: Path | None) -> None:
    """List the recipes that moot ships, and the runs in a folder."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.results.collect import list_all

        return list_all(RECIPES, runs_dir or RUNS)

    _command(work, as_json)


@main.group()
def journal() -> None:
    """Look after the journals of a run: what is whole, what can be saved, what takes space, where a copy is."""


@journal.command(name="check")
@run_argument
@json_option
def check_journals(run: Path, as_json: bool) -> None:
    """Say what of a run's journals is whole and what is damaged; exit code 1 where anything is."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.journal_care import check_run

        return check_run(run)

    _command(work, as_json)


@journal.command(name="repair")
@run_argument
@json_option
def repair_journals(run: Path, as_json: bool) -> None:
    """Save what can be read of damaged journals, and say what could not be; the damaged files are kept."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.journal_care import repair_run

        return repair_run(run, progress=progress)

    _command(work, as_json)


@journal.command(name="compact")
@run_argument
@click.option("--drop-events", is_flag=True, help="Also drop what happened in closed debates; their graphs stay.")
@json_option
def compact_journals(run: Path, drop_events: bool, as_json: bool) -> None:
    """Give back the space in a run's journals that nothing needs.

    With --drop-events a closed debate keeps its opening, its graph and what it cost: it cannot be replayed any more,
    nor its graph be made again should that be damaged.
    """

    def work(progress: Progress) -> dict[str, Any]:
        from engine.journal_care import compact_run

        return compact_run(run, drop_events=drop_events)

    _command(work, as_json)


@journal.command(name="restore")
@click.argument("url")
@dir_option
@json_option
def restore_journals(url: str, run_dir: Path | None, as_json: bool) -> None:
    """Make a run's folder again from its mirror: URL is `run.mirror`/ID, e.g. s3://bucket/runs/society-20260101."""

    def work(progress: Progress) -> dict[str, Any]:
        from engine.journal_care import restore_run

        return restore_run(url, run_dir, progress=progress)

    _command(work, as_json)


def _start(
    kind: str,
    recipe: Path,
    overrides: tuple[str, ...],
    run_dir: Path | None,
    limit: int | None,
    as_json: bool,
    or_resume: bool = False,
) -> NoReturn:
    def work(progress: Progress) -> dict[str, Any]:
        from engine.run import start

        outcome = start(kind, recipe, overrides, run_dir=run_dir, limit=limit, or_resume=or_resume, progress=progress)
        return _with_report(outcome, progress)

    _command(work, as_json)


def _with_report(outcome: dict[str, Any], progress: Progress) -> dict[str, Any]:
    from engine.results.collect import write_run_report

    path, text = write_run_report(Path(outcome["run"]), None)
    progress.note(text)
    return outcome | {"report": str(path)}


def _command(work: Callable[[Progress], dict[str, Any]], as_json: bool) -> NoReturn:
    """Run a command's work; errors become one sentence and an exit code, never a traceback."""
    from engine.live.progress import Progress
    from protocols.errors import MootError

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    progress = Progress(as_json=click.get_current_context().find_root().params.get("log") == "json")
    try:
        with progress:
            outcome = work(progress)
    except KeyboardInterrupt:
        progress.last(f"interrupted; {_left_behind(progress.run)}")
        sys.exit(EXIT_INTERRUPTED)
    except MootError as err:
        _fail(err, progress.last)
    _tell(outcome, as_json)
    sys.exit(EXIT_SET_ASIDE if outcome.get("set_aside") or outcome.get("damage") else 0)


def _left_behind(run: str) -> str:
    """What a command that was interrupted leaves, and how to go on."""
    from engine.record.folder import RunFolder
    from protocols.errors import MootError

    with suppress(MootError):  # no run was begun, or none that can be read
        if run and RunFolder.open(Path(run)).manifest.finished_at is not None:
            return f"the run is done, and `moot report {run}` writes its report"
    return f"what is on record stays: go on with `moot resume {run or 'RUN'}`"


def _fail(err: MootError, say: Callable[[str], None]) -> NoReturn:
    from protocols.errors import PausedError, TerminatedError

    say("moot: " + " ".join(str(err).split("\n")))  # what is quoted may hold lines
    if isinstance(err, TerminatedError):
        sys.exit(EXIT_INTERRUPTED)  # nothing has to be mended: whoever submits it again goes on
    sys.exit(EXIT_PAUSED if isinstance(err, PausedError) else EXIT_BAD_INPUT)


def _tell(outcome: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(outcome))
    else:
        _show(outcome)


def _show(outcome: dict[str, Any]) -> None:
    for key, value in outcome.items():
        rows = _host_rows(value) if key == "hosts" else _rows(value)
        if rows:
            click.echo(f"{key}:")
            for row in rows:
                click.echo(f"  {row}")
        elif isinstance(value, dict) and value:
            click.echo(f"{key}: " + ", ".join(f"{name} {shown}" for name, shown in value.items()))
        elif value not in ([], {}, None, ""):
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


def _share(name: str, parts: Any) -> str:
    if not isinstance(parts, dict):
        return f"{name} {parts}"
    return f"{name} ({', '.join(f'{key} {one}' for key, one in parts.items())})"


def _row(shown: Any) -> str:
    """Lists, and the shares of a total, on one line."""
    if isinstance(shown, dict):
        shown = [_share(name, parts) for name, parts in shown.items()]
    return ", ".join(map(str, shown)) if isinstance(shown, list) else str(shown)


if __name__ == "__main__":
    main()
