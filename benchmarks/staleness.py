"""What debates ahead of trainings save: a loop with ``loop.staleness: 1`` beside the same loop with 0.

    python benchmarks/staleness.py [--iterations 3] [--debates 40] [--epochs 2] [--rounds 3] [--json FILE]

The loop of ``streaming.py``, several iterations of it: the scripted model debates, with a latency and little CPU of its
own, while adapters of the embedded model are trained in two lanes on two cores, as if each side had devices of its own.
With what is set, both sides take about as long. Both variants stream, and take turns, each in a fresh process.

Told are the seconds of the whole loop and of an iteration, from the last adapter of one to the last adapter of the
next: G, its debates, R, what its trainings take from there on, and T, the trainings where no row was waited for. With
0 an iteration takes G + R; with 1 it takes max(G, T), the first excepted, whose debates nothing can be beside.

Exit status 1: with 1 the iterations after the first are not --limit times faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.streaming import recipe_data, run_apart, run_here, run_loop, spread  # noqa: E402

STALENESS = (0, 1)


class Span(msgspec.Struct, frozen=True):
    """One loop; by iteration, seconds since it began."""

    staleness: int
    closed: list[float]  # its last debate
    trained: list[float]  # its last adapter
    stale_share: float  # of the last iteration's turns of learners

    @property
    def later_s(self) -> list[float]:
        """What each iteration but the first takes."""
        return [after - before for before, after in zip(self.trained, self.trained[1:], strict=False)]


async def hold(staleness: str, recipe: dict[str, Any], folder: Path) -> Span:
    """The loop in this process."""
    from trainers.record.registry import Registry

    began, found = await run_loop(recipe, folder)
    trained = defaultdict[int, float](float)
    for record in Registry(folder / "adapters").list():
        number = int(record.metrics["iteration"])
        trained[number] = max(trained[number], record.created_at - began)
    return Span(
        staleness=int(staleness),
        closed=[max(iteration.closed_unix_s) - began for iteration in found.iterations],
        trained=[trained[iteration.iteration] for iteration in found.iterations],
        stale_share=found.iterations[-1].stale_share or 0.0,
    )


def figures(spans: Sequence[Span]) -> dict[str, list[float]]:
    """What the rounds say, one figure a round but for the pieces of an iteration, of which each is one."""
    by_turns, ahead = ([span for span in spans if span.staleness == number] for number in STALENESS)
    return {
        "loop_0_s": [span.trained[-1] for span in by_turns],
        "loop_1_s": [span.trained[-1] for span in ahead],
        "later_0_s": [statistics.median(span.later_s) for span in by_turns],
        "later_1_s": [statistics.median(span.later_s) for span in ahead],
        "times_faster": [
            statistics.median(one.later_s) / statistics.median(two.later_s)
            for one, two in zip(by_turns, ahead, strict=True)
        ],
        "G": [closed - end for span in by_turns for closed, end in zip(span.closed[1:], span.trained, strict=False)],
        "R": [end - closed for span in by_turns for closed, end in zip(span.closed, span.trained, strict=True)],
        # where an iteration's debates were over before the trainings of the one before were
        "T": [
            end - before
            for span in ahead
            for closed, before, end in zip(span.closed[1:], span.trained, span.trained[1:], strict=False)
            if closed <= before
        ],
        "stale_share": [span.stale_share for span in ahead],
    }


def table(found: dict[str, list[float]]) -> str:
    shown = {
        "G": ("G", 0), "R": ("R", 0), "T": ("T", 0),
        "an iteration, staleness 0, s": ("later_0_s", 0), "staleness 1, s": ("later_1_s", 0),
        "times faster": ("times_faster", 2), "whole loop, staleness 0, s": ("loop_0_s", 0),
        "whole loop, staleness 1, s": ("loop_1_s", 0), "said by older versions": ("stale_share", 2),
    }  # fmt: skip
    cells = [spread(found[name], places) if found[name] else "" for name, places in shown.values()]
    return "\n".join(f"| {' | '.join(row)} |" for row in (list(shown), ["---"] * len(shown), cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--debates", type=int, default=40, help="of each iteration")
    parser.add_argument("--latency-s", type=float, default=6.0, help="median of a reply's latency")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=1.2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--variant", nargs=2, metavar=("STALENESS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        run_here(options.variant, hold)
        return 0
    if options.iterations < 2:
        parser.error(f"--iterations {options.iterations} has none after the first: give 2 or more")
    spans = []
    for number in range(options.rounds):
        for staleness in STALENESS if number % 2 == 0 else STALENESS[::-1]:
            data = recipe_data(options.debates, options.latency_s, options.epochs)
            data["loop"] |= {"iterations": options.iterations, "staleness": staleness}
            spans.append(run_apart(__file__, str(staleness), data, Span))
            print(f"staleness {staleness}: {spans[-1].trained[-1]:.0f} s", file=sys.stderr, flush=True)
    found = figures(spans)
    print(table(found))
    if options.json:
        from engine.record.folder import machine_description, versions

        told = {"machine": machine_description(), "versions": versions(), "figures": found, "spans": spans}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=2))
    return int(statistics.median(found["times_faster"]) < options.limit)


if __name__ == "__main__":
    sys.exit(main())
