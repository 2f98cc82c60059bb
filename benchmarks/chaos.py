"""What a death costs: processes of runs of 200 debates killed at seeded moments, on a local cluster of three nodes.

    python benchmarks/chaos.py [--points 100] [--loops 2] [--seed 1] [--json FILE]

Every five kills share a run, and what came too late in one is done in a further one; a kill of the driver, or of the
head with it, is followed by `moot resume`. A service that no kill reaches counts what it is asked. Told, for each kind
of process: kills, after how many of them the run had to be submitted again, how many asks were asked again beside those
in flight at the kill, and the seconds from the kill until all that was in flight is on record. A raylet's processes
outlive it for a moment: in flight is then what was so at any time between the kill and their end.

Each of --loops takes three of the points: kills in a whole loop on a Ray of its own, of the training's worker and the
feed of rows. There recovered means that such a process lives again, and asks are not counted.

Exit status 1: a run did not end as the untouched one did, a reply on record was lost, doubled or asked for again, or
more was asked again than was in flight; or a loop's adapters or what they learned from differ.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from engine.record.folder import machine_description  # noqa: E402
from tests.integration.chaos import accounts, chaos_in  # noqa: E402
from tests.integration.chaos_account import LOOP_KINDS, Account, Figures, plan, plan_loop, table  # noqa: E402
from tests.integration.chaos_loop import LoopChaos  # noqa: E402
from tests.integration.command import moot_in  # noqa: E402
from tests.trainers.conftest import make_tiny_model  # noqa: E402


def main() -> int:
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("--points", type=int, default=100)
    told.add_argument("--loops", type=int, default=2)
    told.add_argument("--seed", type=int, default=1)
    told.add_argument("--json", type=Path)
    args = told.parse_args()
    figures: list[Figures] = []
    faults: list[str] = []
    for account in all_accounts(args.seed, args.points - len(LOOP_KINDS) * args.loops, args.loops):
        figures += account.figures
        faults += account.faults
        for item in (*account.figures, *account.faults):
            print(msgspec.json.encode(item).decode(), file=sys.stderr, flush=True)
    print(f"{len(figures)} kills, seed {args.seed}, {machine_description()}\n\n{table(figures)}")
    print(f"\n{len(faults)} faults" if faults else "\nall ended as the untouched ones did")
    if args.json:
        result = {"seed": args.seed, "machine": machine_description(), "figures": figures, "faults": faults}
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
    return 1 if faults else 0


def all_accounts(seed: int, points: int, loops: int) -> Iterator[Account]:
    with tempfile.TemporaryDirectory(prefix="moot-chaos-") as folder:
        if points > 0:
            with chaos_in(Path(folder) / "runs") as chaos:
                yield from accounts(chaos.run, plan(seed, points))
        if loops > 0:
            model = make_tiny_model(Path(folder) / "model")
            with moot_in(Path(folder) / "loops") as moot:
                loop = LoopChaos(moot, model)
                loop.untouched()
                yield from accounts(loop.run, [plan_loop(seed + number) for number in range(loops)])


if __name__ == "__main__":
    raise SystemExit(main())
