"""How long `moot --help` takes, as a shell sees it: the median of five fresh processes, after one that warms the disk.

    python benchmarks/cli_startup.py [--limit 0.3] [--json FILE]

Exit status 1: the median is above the limit.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "moot --help": ["-m", "engine", "--help"],
    "bare interpreter": ["-c", "pass"],  # what no command line can go below
}


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, timeout=60)
    return time.perf_counter() - start


def measure(arguments: list[str], num_runs: int) -> list[float]:
    seconds(arguments)
    return [seconds(arguments) for _ in range(num_runs)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--limit", type=float, default=0.3, help="seconds that the median of moot --help may take")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    runs = {name: measure(arguments, options.runs) for name, arguments in COMMANDS.items()}
    rows = {
        name: {"median_s": statistics.median(all_s), "min_s": min(all_s), "max_s": max(all_s), "all_s": all_s}
        for name, all_s in runs.items()
    }
    print("| command | median | fastest | slowest |\n|---|---|---|---|")
    for name, row in rows.items():
        print(f"| `{name}` | {row['median_s']:.3f} s | {row['min_s']:.3f} s | {row['max_s']:.3f} s |")
    if options.json:
        machine = {"python": platform.python_version(), "platform": platform.platform()}
        options.json.write_text(
            json.dumps({"limit_s": options.limit, "machine": machine, "rows": rows}, indent=2) + "\n"
        )
    return int(statistics.median(runs["moot --help"]) > options.limit)


if __name__ == "__main__":
    sys.exit(main())
