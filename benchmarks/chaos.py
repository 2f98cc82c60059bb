"""What a death costs: processes of runs of 200 debates killed at seeded moments, on a local cluster of three nodes.

    python benchmarks/chaos.py [--points 100] [--seed 1] [--json FILE]

Every five kills share a run; a kill of the driver, or of the head with it, is followed by `moot resume`. A service
that no kill reaches counts what it is asked. Told, for each kind of process: kills, after how many of them the run had
to be submitted again, how many asks were asked again beside those in flight at the kill, and the seconds from the kill
until all that was in flight is on record.

Exit status 1: a run did not end as the untouched one did, a reply on record was lost, doubled or asked for again, or
more was asked again than was in flight.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import msgspec

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from engine.folder import machine_description  # noqa: E402
from tests.integration.chaos import chaos_in  # noqa: E402
from tests.integration.chaos_account import Figures, plan, table  # noqa: E402


def main() -> int:
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("--points", type=int, default=100)
    told.add_argument("--seed", type=int, default=1)
    told.add_argument("--json", type=Path)
    args = told.parse_args()
    figures: list[Figures] = []
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="moot-chaos-") as folder, chaos_in(Path(folder)) as chaos:
        for number, points in enumerate(plan(args.seed, args.points)):
            account = chaos.run(f"run-{number}", points)
            figures += account.figures
            faults += account.faults
            for item in account.figures:
                print(msgspec.json.encode(item).decode(), file=sys.stderr)
            for fault in account.faults:
                print(fault, file=sys.stderr)
    print(f"{len(figures)} kills, seed {args.seed}, {machine_description()}\n\n{table(figures)}")
    print(f"\n{len(faults)} faults" if faults else "\nall runs ended as the untouched one did")
    if args.json:
        result = {"seed": args.seed, "machine": machine_description(), "figures": figures, "faults": faults}
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
