"""What finetuning a whole society is worth: multiagent finetuning beside its baselines on the same held-out tasks.

    python benchmarks/finetuning_methods.py [--train 200] [--test 200] [--iterations 2] [--seeds 1] [--final 600]
        [--methods METHOD ...] [--folder FOLDER] [--at-once 1] [--set KEY=VALUE ...]

Every method is recipes/arithmetic-smollm2.yaml, changed as ``METHODS`` says: SmolLM2-135M-Instruct, three seats, no
gold in training, adapters that are trained on from iteration to iteration. Base, majority of three and debate are what
the untuned agents do: the evaluation before training. The baselines are those of Subramaniam et al. 2025 (MAFT),
arXiv:2501.05707, sec. 3.2.

One `moot loop` after another, or several at once on what RAY_ADDRESS names; what is finished in --folder is not done
again, so that this command may be interrupted and given again. --set changes the recipe for all of them. Told are,
with 95 % intervals: a single agent, the majority of the openings and the vote after the debate; what multiagent
finetuning gains over each baseline, paired by task; and how much answers differ, by iteration.
With --final, what came of the last iteration and the untuned agents are held against each other on so many held-out
tasks: the intervals of 200 tasks are wider than what methods differ by.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from engine.record.folder import machine_description  # noqa: E402
from engine.results.compare import OPENING_VOTE, Compared, compare_runs, describe_runs  # noqa: E402
from engine.results.compare_tables import DIVERSITY, diversity_cells  # noqa: E402
from engine.results.evaluate import FINAL_VOTE, SINGLE_AGENT  # noqa: E402
from engine.results.findings import describe, describe_change  # noqa: E402
from engine.results.report import in_columns  # noqa: E402

RECIPE = ROOT / "recipes" / "arithmetic-smollm2.yaml"
CRITICS = ("ada-critic", "bo-critic", "cy-critic")
WHOLE = "multiagent, generators and critics"
METHODS = {
    WHOLE: (
        *(f"agents.{name}={{model: smollm2, temperature: 1.0, max_tokens: 14}}" for name in CRITICS),
        f"cast.critic=[{', '.join(CRITICS)}]",
        "train.rules={generator: generator, critic: critic}",
        "models.smollm2.max_adapters=6",
    ),
    "single agent": ("cast.generator=[ada, ada, ada]", "train.rules={generator: [generator, critic]}"),
    "majority": ("cast.generator=[ada, ada, ada]", "protocol.rounds=1"),
    "multiagent, generators": (),
}
BASE = "none"
MEASURES = {SINGLE_AGENT: "one agent", OPENING_VOTE: "majority of 3", FINAL_VOTE: "after the debate"}
Rows = list[tuple[str, ...]]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--train", type=int, default=200, help="tasks to learn from, debated anew in each iteration")
    options.add_argument("--test", type=int, default=200)
    options.add_argument("--iterations", type=int, default=2)
    options.add_argument("--seeds", type=int, nargs="+", default=[1])
    options.add_argument(
        "--final", type=int, default=0, help="held-out tasks for a last comparison; 600 are nearly all there are"
    )
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="beside the whole one")
    options.add_argument("--at-once", type=int, default=1, help="loops side by side")
    options.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the recipe")
    options.add_argument("--folder", type=lambda text: Path(text).absolute(), default="runs/finetuning-methods")
    options.add_argument("--json", type=Path)
    args = options.parse_args()
    sizes = (
        f"tasks.train={args.train}",
        f"tasks.test={args.test}",
        f"loop.iterations={args.iterations}",
        "loop.init_from=previous",
        "sft.epochs=4",
        *args.set,
    )
    methods = {method: METHODS[method] for method in METHODS if method == WHOLE or method in args.methods}
    with ThreadPoolExecutor(args.at_once) as pool:
        seeds = {seed: [pool.submit(job) for job in jobs(args, sizes, methods, seed)] for seed in args.seeds}
        try:
            outcomes = [outcome(args, methods, seed, running) for seed, running in seeds.items()]
        except BaseException:  # Ctrl-C, too
            pool.shutdown(cancel_futures=True)
            raise
    if args.json:
        result = {"machine": machine_description(), "arguments": sys.argv[1:], "seeds": outcomes}
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
    return 0


def outcome(
    args: argparse.Namespace, methods: Collection[str], seed: int, running: Sequence[Future[None]]
) -> dict[str, Any]:
    """Print what came of a seed, once it is run. Raises: SystemExit: a part of it failed."""
    for one in as_completed(running):
        one.result()
    found, against = compare_all({method: folder_of(args.folder, method, seed) for method in methods})
    print(f"seed {seed}, {args.test} held-out tasks, {machine_description()}\n")
    for rows in (accuracy(found), gains(against), diversity(found)):
        print("\n".join(in_columns(rows)), end="\n\n", flush=True)
    came = {"seed": seed, "methods": told(found), "against": told(against)}
    if args.final:
        found, against = compare_all({method: final_of(args.folder, method, seed) for method in (*methods, BASE)})
        print(f"seed {seed}, the last adapters on {args.final} held-out tasks\n")
        for rows in (accuracy(found), gains(against)):
            print("\n".join(in_columns(rows)), end="\n\n", flush=True)
        came["final"] = {"methods": told(found), "against": told(against)}
    return came


def jobs(
    args: argparse.Namespace, sizes: Sequence[str], methods: dict[str, tuple[str, ...]], seed: int
) -> Iterator[Callable[[], None]]:
    """What is to be run for a seed: a loop for each method and what comes of it, in any order."""
    final = (f"tasks.test={args.final}",)
    for method, changes in methods.items():
        whole = folder_of(args.folder, method, seed)
        settings = (f"seed={seed}", *sizes, *changes)
        yield partial(run, whole, settings, final_of(args.folder, method, seed) if args.final else None, final)
    if args.final:
        untuned = (f"seed={seed}", *sizes, *METHODS[WHOLE], *final)
        yield partial(evaluate, RECIPE, final_of(args.folder, BASE, seed), untuned)


def run(folder: Path, settings: Sequence[str], final: Path | None, changes: Sequence[str]) -> None:
    """A finished loop does nothing more; one that was interrupted goes on."""
    moot(folder, "loop", str(RECIPE), *settings, "--run-dir", str(folder), "--or-resume")
    if final is not None:
        evaluate(folder, final, changes)


def evaluate(target: Path, folder: Path, changes: Sequence[str]) -> None:
    """A recipe's agents as they are, or a run's with its newest adapters; ``folder`` tells of it."""
    if folder.exists():
        moot(folder, "resume", str(folder))
    else:
        moot(folder, "eval", str(target), *changes, "--run-dir", str(folder))


def moot(folder: Path, *arguments: str) -> None:
    """What it says goes beside its folder. Raises: SystemExit: it failed."""
    log = folder.with_name(f"{folder.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command, began = [sys.executable, "-m", "engine", *arguments], time.time()
    print(f"{folder.name}: moot {arguments[0]}, see {log}", file=sys.stderr, flush=True)
    with log.open("a") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, check=False)
    if done.returncode:
        raise SystemExit(f"{folder.name}: moot {arguments[0]} ended with status {done.returncode}; {log} says why")
    print(f"{folder.name}: done after {time.time() - began:,.0f} s", file=sys.stderr, flush=True)


def compare_all(folders: dict[str, Path]) -> tuple[dict[str, Compared], dict[str, Compared]]:
    """Each method by itself; and each of the others with multiagent finetuning against it."""
    alone = {method: describe_runs([str(folder)]) for method, folder in folders.items()}
    whole = str(folders[WHOLE])
    return alone, {method: compare_runs([str(folders[method]), whole]) for method in folders if method != WHOLE}


def told(found: dict[str, Compared]) -> dict[str, Any]:
    return {method: one.outcome() for method, one in found.items()}


def folder_of(folder: Path, method: str, seed: int) -> Path:
    return folder / f"{method.replace(', ', '-').replace(' ', '-')}-{seed}"


def final_of(folder: Path, method: str, seed: int) -> Path:
    if method == BASE:
        return folder_of(folder, f"{BASE}-final", seed)
    whole = folder_of(folder, method, seed)
    return whole.with_name(f"{whole.name}-final")


def accuracy(found: dict[str, Compared]) -> Rows:
    """A row each for what was evaluated; before training, all methods are the same agents but for chance."""
    return [
        ("finetuning", "iteration", *MEASURES.values()),
        *(row for rows in map(_accuracy, found.items()) for row in rows),
    ]


def _accuracy(method: tuple[str, Compared]) -> Iterator[tuple[str, ...]]:
    name, compared = method
    for number, side in enumerate(compared.sides):
        yield (name, str(number), *(describe(side.evaluation.figure(measure)) for measure in MEASURES))


def gains(against: dict[str, Compared]) -> Rows:
    """Multiagent finetuning against each of the others after the last iteration, paired by task."""
    rows: Rows = [(f"{WHOLE}, against", *MEASURES.values())]
    for method, compared in against.items():
        changes = {change.after_measure: change.difference for change in compared.changes}
        rows.append((method, *(describe_change(changes[measure]) for measure in MEASURES)))
    return rows


def diversity(found: dict[str, Compared]) -> Rows:
    rows = (
        (method, str(number), *cells)
        for method, one in found.items()
        for number, side in enumerate(one.sides)
        for cells in diversity_cells(side)
    )
    return [("finetuning", "iteration", *DIVERSITY), *rows]


if __name__ == "__main__":
    raise SystemExit(main())
