"""Run the small form of every benchmark, and compare its ratios with those of the last release.

    python benchmarks/all.py                    lists the benchmarks, and why some are left out
    python benchmarks/all.py --quick            about five minutes on two idle cores
    python benchmarks/all.py --quick --store    three times as long; writes `ratios.json`
    python benchmarks/all.py --quick --only compare pruning         these alone, also with --store

A ratio is a cost over another cost of the same moment, so that less is better and the speed of the
machine matters little. Seconds are never compared. A benchmark with a ratio that is worse than the
stored one by a tenth is repeated, up to three times in all. A ratio that is worse in all three
fails, and the status is then 1. So it is if a benchmark ends with an error, or if a stored ratio is
no longer measured. What `--store` writes is a median. All runs on one thread.
"""

import argparse
import importlib
import json
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
STORED = FOLDER / "ratios.json"
REPEATS = 3
WORSE = 1.1  # times the stored ratio
LEFT_OUT = {
    "coverage": "simulates bounds; it has no cost to compare",
    "engines": "holds the engines of serving",
    "experts": "prints the results of a sweep; it has no cost to compare",
    "forecast": "measures what is forecast; it has no cost to compare",
    "gpu": "needs a GPU",
    "gpu_runs": "holds the models of gpu",
    "placements": "is arithmetic; it has no cost to compare",
    "recovery": "takes minutes: six trainings of two processes, whose noise hides a small model",
    "serving": "needs engines that prunelit does not need",
    "streamed": "needs gigabytes of disk",
    "timing": "holds the clock of the others",
}

Quick = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Row:
    """One ratio.

    Args:
        name: of the benchmark and of its ratio.
        stored: ratio of the last release; None if it has none.
        found: what was measured, once a repeat.
        error: of the benchmark, if it ended with one.
    """

    name: str
    stored: float | None
    found: Sequence[float]
    error: str = ""

    @property
    def verdict(self) -> str:
        """`as before`, `better`, `new`, or what fails: `WORSE`, `GONE`, `ERROR`."""
        if self.error:
            return "ERROR"
        if not self.found:
            return "GONE"
        if self.stored is None:
            return "new"
        if len(self.found) == REPEATS and is_worse(self.stored, self.found):
            return "WORSE"
        return "better" if statistics.median(self.found) * WORSE < self.stored else "as before"

    def __str__(self) -> str:
        stored = "" if self.stored is None else f"{self.stored:.3f}"
        now = ", ".join(f"{value:.3f}" for value in self.found) or self.error
        return f"{self.name:<44}{stored:>8}   {now:<22}{self.verdict}"


def is_worse(stored: float | None, found: Sequence[float]) -> bool:
    """Return True if a ratio was worse than the stored one by a tenth whenever it was measured."""
    return stored is not None and all(value > WORSE * stored for value in found)


def compare(name: str, quick: Quick, stored: Mapping[str, float], least: int = 1) -> list[Row]:
    """Measure a benchmark, again while one of its ratios is worse, up to three times.

    Args:
        name: of the benchmark.
        quick: measures its ratios.
        stored: its ratios of the last release.
        least: how often it is measured, whatever is found.
    """
    found: dict[str, list[float]] = {key: [] for key in stored}
    try:
        for repeat in range(1, REPEATS + 1):
            for key, value in quick().items():
                found.setdefault(key, []).append(value)
            measured = [key for key, own in found.items() if own]
            worse = any(is_worse(stored.get(key), found[key]) for key in measured)
            if repeat >= least and not worse:
                break
    except Exception as error:  # noqa: BLE001 - the next benchmark still runs
        traceback.print_exc()
        return [Row(name, None, [], f"{type(error).__name__}: {error}"[:60])]
    return [Row(f"{name}: {key}", stored.get(key), own) for key, own in found.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all, print a table, and return 1 if a row fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="measure; else the benchmarks are listed"
    )
    parser.add_argument("--store", action="store_true", help="write the ratios instead of judging")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of --store, 3 at most")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these benchmarks alone")
    options = parser.parse_args(arguments)
    every = sorted({file.stem for file in FOLDER.glob("*.py")} - {"all"} - set(LEFT_OUT))
    if unknown := set(options.only or ()) - set(every):
        parser.error(f"Expected names among {', '.join(every)} but got {', '.join(unknown)}.")
    if not options.quick:
        for name in every:
            print(f"{name:<16}has a small form")
        for name, reason in LEFT_OUT.items():
            print(f"{name:<16}left out: {reason}")
        return 0
    torch.set_num_threads(1)
    kept = json.loads(STORED.read_text()) if STORED.exists() else {"ratios": {}}
    rows: list[Row] = []
    start = time.perf_counter()
    for name in options.only or every:
        print(f"== {name}", flush=True)
        quick: Quick = importlib.import_module(name).quick
        stored = {} if options.store else kept["ratios"].get(name, {})
        rows += compare(name, quick, stored, options.repeats if options.store else 1)
    print(f"\n{'cost over cost, less is better':<44}{'stored':>8}   {'now':<22}verdict")
    for row in rows:
        print(row)
    failed = [row for row in rows if row.verdict.isupper()]
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(failed)} of {len(rows)} ratios fail; {minutes:.1f} minutes.")
    if kept.get("torch", version("torch")) != version("torch"):
        print(f"Stored with torch {kept['torch']}, measured with {version('torch')}.")
    if options.store and not failed:
        ratios = {name: own for name, own in kept["ratios"].items() if name in every}
        ratios |= {name: {} for name in options.only or every}
        for row in rows:
            name, _, key = row.name.partition(": ")
            ratios[name][key] = round(statistics.median(row.found), 3)
        around: dict[str, Any] = {"prunelit": version("prunelit"), "torch": version("torch")}
        around["machine"] = f"{platform.system()} {platform.machine()}"
        around["ratios"] = dict(sorted(ratios.items()))
        STORED.write_text(json.dumps(around, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
