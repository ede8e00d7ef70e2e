"""Print what is kept of each use without some of the experts, as a table.

    python benchmarks/experts.py FOLDER...

Each folder is that of a sweep, such as `runs/experts` of `configs/experts.yaml`. The table of
`docs/explanation/experts.md` is one of these.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from scipy.stats import t

from prunelit.report.results import read_results

USES = ("multiple choice", "retrieval", "generation")
MARKS = {"keeps": " keeps", "cannot tell": " ?", "loses": ""}


def perplexity_ratio(folder: Path) -> str:
    """Format the ratio of the perplexities, with a 95% interval over the windows."""
    (found,) = [
        result
        for result in read_results(folder / "results.jsonl")
        if (result.task, result.metric, result.model) == ("perplexity", "nll", "difference")
    ]
    half = float(t.ppf(0.975, found.n - 1)) * found.standard_error
    low, value, high = (math.exp(found.value + side * half) for side in (-1, 0, 1))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def kept(verdict: dict[str, Any]) -> str:
    """Format the share of the dense lead over chance that is kept, with its bounds."""
    # Adding 0 makes a minus of -0.0 vanish.
    low, value, high = (round(verdict[name], 2) + 0.0 for name in ("low", "value", "high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]{MARKS[verdict['verdict']]}"


def main() -> None:
    """Print a line for each variant that is found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    lines: list[tuple[str, float, str]] = []
    for folder in parser.parse_args().folders:
        for file in folder.rglob("verdicts.json"):
            method, _, ratio = file.parent.name.rpartition("_")
            tasks = {one["use"]: one for one in json.loads(file.read_text())["tasks"]}
            cells = [perplexity_ratio(file.parent), *(kept(tasks[use]) for use in USES)]
            line = f"| `{method}` | {float(ratio):.1%} | {' | '.join(cells)} |"
            lines.append((method, float(ratio), line))
    print("| method | experts gone | perplexity, times |", " | ".join(USES), "|")
    print("| --- | --- | --- | --- | --- | --- |")
    for _, _, line in sorted(lines):
        print(line)


if __name__ == "__main__":
    main()
