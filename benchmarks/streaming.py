"""What streaming debates into training saves: an iteration of the loop beside the same iteration in two phases.

    python benchmarks/streaming.py [--debates 60] [--epochs 1 2] [--rounds 3] [--plot FILE.svg] [--json FILE]

Three agents on the scripted model debate for two rounds; each learns from its own openings that agree with the vote, in
two lanes on two cores, with the embedded model as its base. ``streamed`` is the iteration as `moot loop` has it;
``two phases`` is the very same with the trainings begun when the last debate has closed. The model's latency is such
that generation takes about as long as the first trainings of the lanes, with little CPU of its own.

Told are the seconds from the iteration's beginning to its last adapter, medians of --rounds in which the variants take
turns, each in a fresh process: G, the debates; S, until the first optimiser step where the rows were there; T, the
training from there on. Two phases take G + S + T. With rows in time for every step, a streamed iteration takes no less
than max(G, S + T1) + T - T1, where T1 is the part of the trainings that needs no later row: the first epoch of the
first training of each lane. Where engines and trainings have machines of their own, as on a split cluster, the same
holds with the S and T of those machines.

Exit status 1: with one epoch, streaming is not --limit times faster; or the variants learned from other rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from engine.loop import Loop
    from engine.results.report_data import ReportData

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

VARIANTS = ("streamed", "two phases")
AGENTS = ("ada", "bo", "cy")
LANES = 2


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """One iteration of one variant; times in seconds since it began."""

    variant: str
    epochs: int
    closed: list[float]  # when debates closed
    steps: dict[str, list[float]]  # agent -> when its optimiser steps were done
    end: float  # the last adapter is in the registry
    rows: dict[str, str]  # agent -> checksum of what it learned from, whatever the order in which debates closed

    @property
    def first_step(self) -> float:
        return min(at for times in self.steps.values() for at in times)


def recipe_data(debates: int, latency_s: float, epochs: int) -> dict[str, Any]:
    return {
        "name": "streaming",
        "tasks": {"source": "arithmetic", "level": "add49", "train": debates, "test": 1},
        "models": {"simulated": {"backend": "scripted", "skill": 0.8, "latency_s": latency_s}},
        "agents": {name: {"model": "simulated"} for name in AGENTS},
        "protocol": {"name": "society", "rounds": 2},
        "cast": {"generator": list(AGENTS)},
        "train": {
            "rule": "generator", "min_support": 2, "base_model": "embedded", "num_lanes": LANES, "mix": {"how": "all"},
        },
        "sft": {"epochs": epochs, "batch_size": 4, "max_length": 256},
        "loop": {"iterations": 1, "evaluate": False},
        "run": {"max_open": 8},
    }  # fmt: skip


async def run_loop(data: dict[str, Any], path: Path, kind: type[Loop] | None = None) -> tuple[float, ReportData]:
    """A loop in this process; when it began, in seconds since 1970, and what came of it."""
    from engine.config.recipe_file import build_recipe
    from engine.data.tasks import load_split
    from engine.debates.cluster import Cluster
    from engine.live.progress import Progress
    from engine.loop import Loop
    from engine.record.folder import Manifest, RunFolder
    from engine.results.collect import collect

    recipe = build_recipe(data, where="benchmark")
    manifest = Manifest(
        id="r", kind="loop", name=recipe.name, fingerprint=recipe.fingerprint, num_arenas=1, recipe=recipe.source,
        recipe_path="", limit=None, started_at=time.time(), machine="", versions={},
    )  # fmt: skip
    run = RunFolder.create(path, manifest)
    cluster = await Cluster.start(recipe)
    progress = Progress(live=False)
    progress.hush()
    try:
        loop = (kind or Loop)(recipe, cluster, run, load_split(recipe.tasks), progress)
        began = time.time()
        await loop.run()
        return began, collect(run)
    finally:
        await cluster.stop()
        run.release()


async def iterate(variant: str, data: dict[str, Any], path: Path) -> Span:
    """One iteration in this process."""
    from engine.loop import Loop
    from trainers.record.feed import Feed, hash_rows
    from trainers.record.registry import Registry

    class TwoPhases(Loop):
        """All debates are on record when the trainings begin."""

        async def _train(self, iteration: Any) -> None:
            await iteration.closed.wait()
            await super()._train(iteration)

    began, found = await run_loop(data, path, Loop if variant == "streamed" else TwoPhases)
    records = Registry(path / "adapters").list()
    feed = Feed(path / "train" / "iteration-1" / "feed", lock_wait_s=60.0)  # its actor may still be going
    (iteration,) = found.iterations
    return Span(
        variant=variant,
        epochs=data["sft"]["epochs"],
        closed=[at - began for at in iteration.closed_unix_s],
        steps={item.agent: [point.time_unix_s - began for point in item.points] for item in found.trainings},
        end=max(record.created_at for record in records) - began,
        rows={name: hash_rows(sorted(feed.examples(name), key=msgspec.json.encode)) for name in AGENTS},
    )


S = TypeVar("S", bound=msgspec.Struct)


def run_apart(script: str, variant: str, data: dict[str, Any], kind: type[S]) -> S:
    """What a variant came to in a fresh process: the script with ``--variant``, which calls ``run_here``."""
    with tempfile.TemporaryDirectory(prefix="moot-bench-") as temporary:
        folder = Path(temporary)
        (folder / "recipe.json").write_text(json.dumps(data))
        command = [sys.executable, script, "--variant", variant, temporary]
        done = subprocess.run(command, capture_output=True, text=True, timeout=7200, check=False)
        if done.returncode:
            raise SystemExit(f"{variant} failed:\n{done.stderr[-3000:]}")
        return msgspec.json.decode((folder / "span.json").read_bytes(), type=kind)


def run_here(given: tuple[str, str], hold: Callable[[str, dict[str, Any], Path], Coroutine[Any, Any, S]]) -> None:
    """The other end of ``run_apart``. Args: given: of ``--variant``."""
    variant, folder = given[0], Path(given[1])
    span = asyncio.run(hold(variant, json.loads((folder / "recipe.json").read_text()), folder / "run"))
    (folder / "span.json").write_bytes(msgspec.json.encode(span))


def figures(spans: Sequence[Span], epochs: int) -> dict[str, Any]:
    """What all rounds say of a number of epochs."""
    streamed, phased = ([span for span in spans if (span.variant, span.epochs) == (name, epochs)] for name in VARIANTS)
    generation = statistics.median(max(span.closed) for span in phased)
    start = statistics.median(span.first_step - max(span.closed) for span in phased)
    training = statistics.median(span.end - span.first_step for span in phased)
    early = statistics.median(map(first_epochs, phased))
    least = max(generation, start + early) + training - early
    return {
        "epochs": epochs,
        "streamed_s": [span.end for span in streamed],
        "two_phases_s": [span.end for span in phased],
        "times_faster": [two.end / one.end for one, two in zip(streamed, phased, strict=True)],
        "G": generation,
        "S": start,
        "T": training,
        "T1": early,
        "least_s": least,
        "lead_s": [max(span.closed) - span.first_step for span in streamed],
        "same_rows": all(span.rows == spans[0].rows for span in spans),
    }


def first_epochs(span: Span) -> float:
    """Seconds of the first epochs of the trainings that come first in their lanes: the least of them."""
    found = []
    for agent in AGENTS[:LANES]:
        times = span.steps[agent]
        found.append(times[len(times) // span.epochs - 1] - span.first_step)
    return min(found)


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| epochs | two phases, s | streamed, s | times faster | G | S | T | T1 | the least, s |"
    yield f"|{'---|' * 9}"
    for row in rows:
        cells = [
            str(row["epochs"]), spread(row["two_phases_s"], 0), spread(row["streamed_s"], 0),
            spread(row["times_faster"], 2), *(f"{row[name]:.0f}" for name in ("G", "S", "T", "T1", "least_s")),
        ]  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], places: int) -> str:
    middle = f"{statistics.median(values):.{places}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{places}f} to {max(values):.{places}f})"


def plot(spans: Sequence[Span], file: Path) -> None:
    """Debates and optimiser steps over time, a row a variant; the first round of the fewest epochs."""
    import matplotlib.pyplot as plt

    end = max(span.end for span in spans)
    canvas, axes = plt.subplots(len(VARIANTS), 1, sharex=True, figsize=(7, 4.6), layout="constrained")
    for axis, variant in zip(axes, VARIANTS, strict=True):
        span = next(span for span in spans if span.variant == variant)
        axis.step(
            sorted(span.closed), range(1, len(span.closed) + 1), where="post", color="0.5", label="debates closed"
        )
        twin = axis.twinx()
        for agent, times in span.steps.items():
            twin.step(times, range(1, len(times) + 1), where="post", label=f"steps, {agent}")
        axis.axvline(span.end, color="0.2", linewidth=0.8, linestyle=":")
        axis.set(title=f"{variant}: {span.end:.0f} s", ylabel="debates closed", ylim=(0, None), xlim=(0, 1.02 * end))
        twin.set(ylabel="optimiser steps", ylim=(0, None))
    lines = [line for axis in (axes[0], twin) for line in axis.get_lines() if not line.get_label().startswith("_")]
    axes[-1].legend(lines, [line.get_label() for line in lines], loc="upper left", fontsize=8, frameon=False)
    axes[-1].set_xlabel("time since the iteration began (s)")
    canvas.savefig(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--debates", type=int, default=60)
    parser.add_argument("--latency-s", type=float, default=4.0, help="median of a reply's latency")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1.3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variant", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        run_here(options.variant, iterate)
        return 0
    spans = []
    for number in range(options.rounds):
        for epochs in options.epochs:
            for variant in VARIANTS if number % 2 == 0 else VARIANTS[::-1]:
                data = recipe_data(options.debates, options.latency_s, epochs)
                spans.append(run_apart(__file__, variant, data, Span))
                print(f"{variant}, {epochs} epochs: {spans[-1].end:.0f} s", file=sys.stderr, flush=True)
    rows = [figures(spans, epochs) for epochs in options.epochs]
    print("\n".join(table(rows)))
    if options.plot:
        plot([span for span in spans if span.epochs == min(options.epochs)], options.plot)
    if options.json:
        from engine.record.folder import machine_description, versions

        told = {"machine": machine_description(), "versions": versions(), "rows": rows, "spans": spans}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=2))
    slow = any(statistics.median(row["times_faster"]) < options.limit for row in rows if row["epochs"] == 1)
    return int(slow or not all(row["same_rows"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
