"""Reasons: sentences and figures that say what pruning changed inside the model.

Each sentence is read out from the numbers of this run.
"""

import base64
import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunelit.report.page.changes import Changes
from prunelit.report.page.runs import Run
from prunelit.report.page.texts import cut, join
from prunelit.report.results import Result

_SPACES = {
    "embedding": "final hidden states",
    "logit": "logits",
    "probability": "next-token probabilities",
}
# Parts of the names of figures, the most telling first.
_TELLING = ("cosines", "spaces", "distribution", "first_divergence", "kl", "perturbations")
_LAST = ("scores", "sparsity")
_SHOWN = 6
_CURVES = 3
_WIDE = 2.2  # times as wide as high: a phone scrolls the figure
_SAME = 0.005  # a smaller difference of two sparsities is none
Row = Mapping[str, str]


@dataclass(frozen=True)
class Figure:
    """A figure on the page, with a sentence on its numbers; without an image if that says all."""

    name: str
    sentence: str
    uri: str = ""
    wide: bool = False


def explain_run(run: Run, changes: Sequence[Changes]) -> list[str]:
    """Say in sentences how far the pruned model is from the dense one.

    Args:
        run: of the results.
        changes: of the tasks with items.
    """
    texts = [_cosines(run), _divergence(run), _perplexity(run), *map(_parting, changes)]
    return [text for text in texts if text]


def _cosines(run: Run) -> str:
    found = {name: run.find(f"{name}_cosine", "pair") for name in _SPACES}
    own = {name: one.value for name, one in found.items() if one and math.isfinite(one.value)}
    if len(own) < 2:
        return ""
    parts = [f"{value:.2f} of the {_SPACES[name]}" for name, value in own.items()]
    least = min(own, key=lambda name: own[name])
    return (
        f"The cosine between dense and pruned is {join(parts)}: the {_SPACES[least]} change the "
        "most."
    )


def _divergence(run: Run) -> str:
    kl = run.find("kl_dense_pruned", "pair")
    if kl is None or math.isnan(kl.value):
        return ""
    text = f"The KL divergence from the dense model is {kl.value:.3g} nats a token"
    if (ruler := run.find("ruler_kl", "pair")) is not None:
        text += f", nearest to a rounding to {ruler.details.get('rung')}"
    if (same := run.find("top1_agreement", "pair")) is not None:
        text += f"; the most probable token is the same for {same.value:.0%} of the tokens"
    return f"{text}."


def _perplexity(run: Run) -> str:
    pair = [run.find("perplexity", model) for model in ("dense", "pruned")]
    if pair[0] is None or pair[1] is None:
        return ""
    dense, pruned = pair[0].value, pair[1].value
    if not (math.isfinite(dense) and math.isfinite(pruned) and dense > 0):
        return f"Perplexity is {dense:.3g} before and {pruned:.3g} after."
    word = "rises" if pruned > dense else "falls" if pruned < dense else "stays"
    return f"Perplexity {word} from {dense:.3g} to {pruned:.3g} ({pruned / dense:.2f} times)."


def _parting(changes: Changes) -> str:
    if changes.parts is None:
        return ""
    return (
        f"The texts of {changes.task} part after {changes.parts:g} equal tokens in the median; "
        f"{changes.equal:.0%} of them never part."
    )


def choose_figures(run: Run, budget: int) -> tuple[list[Figure], list[str]]:
    """Choose the most telling figures of a run.

    Args:
        run: of the figures.
        budget: bytes of all figures together.

    Returns:
        The figures, and the names of those that are left out.
    """
    folder = run.folder / "figures"
    paths = [path for path in sorted(folder.glob("*.png")) if path.stem != "retained"]
    paths.sort(key=lambda path: _rank(path.stem))
    chosen: list[Figure] = []
    left: list[str] = []
    for path in paths:
        if path.stem == "sparsity" and (sentence := _flat_sparsity(path.with_suffix(".csv"))):
            chosen.append(Figure(path.stem, sentence))
            continue
        size = path.stat().st_size * 4 // 3
        if sum(bool(figure.uri) for figure in chosen) == _SHOWN or size > budget:
            left.append(path.name)
            continue
        budget -= size
        content = path.read_bytes()
        width, height = (int.from_bytes(content[n : n + 4], "big") for n in (16, 20))  # of a PNG
        uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        sentence = _read_out(path.with_suffix(".csv"))
        chosen.append(Figure(path.stem, sentence, uri, wide=width > _WIDE * height))
    return chosen, left


def _rank(name: str) -> int:
    if name in _LAST:
        return len(_TELLING) + 1 + _LAST.index(name)
    return next((n for n, word in enumerate(_TELLING) if word in name), len(_TELLING))


def _flat_sparsity(path: Path) -> str:
    """Say the share that all matrices lost; empty if it is not the same."""
    rows = _read_rows(path)
    own = [_number(row.get("sparsity")) for row in rows]
    return _sparsity(rows) if rows and max(own) - min(own) < _SAME else ""


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Read the numbers of a figure; none if there is no file, or it holds no table."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error):
        return []


def _read_out(path: Path) -> str:
    """Say in one sentence what the numbers of a figure show."""
    if not path.is_file():
        return "The run has no numbers of this figure."
    rows = _read_rows(path)
    if not rows:
        return f"{path.name} holds no numbers."
    for columns, sentence in _SENTENCES:
        if {*columns} <= rows[0].keys() and (text := sentence(rows)):
            return text
    return f"{path.name} has its {len(rows):,} numbers."


def _curves(rows: Sequence[Row]) -> str:
    """Name both ends of the curves that change the most."""
    curves: dict[str, list[Row]] = {}
    for row in rows:
        if math.isfinite(_number(row["mean"])):
            curves.setdefault(row["curve"], []).append(row)

    def change(curve: str) -> float:
        ends = [_number(curves[curve][place]["mean"]) for place in (0, -1)]
        return abs(ends[1] - ends[0])

    chosen = sorted(curves, key=change, reverse=True)[:_CURVES]
    parts = []
    for curve in (one for one in curves if one in chosen):
        first, last = curves[curve][0], curves[curve][-1]
        parts.append(
            f"{curve.replace('_', ' ').replace('/', ', ')} goes from {_short(first['mean'])} at "
            f"{first['axis']} {first['x']} to {_short(last['mean'])} at {last['axis']} {last['x']}"
        )
    return _sentence("; ".join(parts))


def _spread(rows: Sequence[Row]) -> str:
    own = [row for row in rows if row["compared"] == "pruned"]
    if not own:
        return ""
    middle, high = (
        min(own, key=lambda row, share=share: abs(_number(row["share"]) - share))
        for share in (0.5, 0.95)
    )
    return (
        f"The KL is at most {_short(middle['kl'])} nats for {_number(middle['share']):.0%} of the "
        f"tokens, and at most {_short(high['kl'])} for {_number(high['share']):.0%}."
    )


def _scores(rows: Sequence[Row]) -> str:
    pairs: dict[str, dict[str, float]] = {}
    for row in rows:
        key = f"{row['metric']} of {row['task']}"
        pairs.setdefault(key, {})[row["model"]] = _number(row["value"])
    full = {key: own for key, own in pairs.items() if {"dense", "pruned"} <= own.keys()}
    if not full:
        return ""
    worst = min(full, key=lambda key: full[key]["pruned"] - full[key]["dense"])
    own = full[worst]
    word = "falls" if own["pruned"] < own["dense"] else "does not fall"
    return f"The largest change is that {worst} {word}: {own['dense']:.2f} → {own['pruned']:.2f}."


def _sparsity(rows: Sequence[Row]) -> str:
    own = [(row["name"], _number(row["sparsity"])) for row in rows]
    least, most = min(own, key=lambda one: one[1]), max(own, key=lambda one: one[1])
    if most[1] - least[1] < _SAME:
        return f"Each of the {len(own)} weight matrices lost {most[1]:.0%} of its weights."
    return (
        f"{most[0]} lost the most of its weights, {most[1]:.1%}; {least[0]} lost the least, "
        f"{least[1]:.1%}."
    )


def _values(rows: Sequence[Row]) -> str:
    """Name the lowest and the highest value of a table with a column `value`."""
    own = [row for row in rows if math.isfinite(_number(row["value"]))]
    if not own:
        return ""
    names = [name for name in own[0] if not math.isfinite(_number(own[0][name]))]
    ends = [pick(own, key=lambda row: _number(row["value"])) for pick in (min, max)]
    least, most = (
        f"{_short(row['value'])} ({', '.join(row[name] for name in names)})" for row in ends
    )
    return f"The values go from {least} to {most}."


# Columns of a table of numbers, and the function that reads it out.
_SENTENCES: tuple[tuple[tuple[str, ...], Callable[[Sequence[Row]], str]], ...] = (
    (("curve", "axis", "x", "mean"), _curves),
    (("compared", "share", "kl"), _spread),
    (("task", "metric", "model", "value"), _scores),
    (("name", "sparsity"), _sparsity),
    (("value",), _values),
)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _short(text: str) -> str:
    return f"{_number(text):.3g}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def warn(run: Run) -> list[str]:
    """List what makes a score say less than it seems to.

    Args:
        run: of the results.
    """
    found = [_constant(result) for result in run.results if "class" in result.details]
    found += [_cut_texts(result) for result in run.results if result.metric == "end_of_text"]
    found += [_doubts(run, task) for task in run.tasks]
    found += overlap_sentences(run.overlaps)
    for verdict in run.verdicts:
        if verdict.word == "no lead":
            found.append(
                f"{verdict.task}: the dense model is not above its floor, so there is nothing that "
                "pruning could lose."
            )
    return [text for text in found if text]


def overlap_sentences(overlaps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say which tasks have items that are in the calibration text.

    Args:
        overlaps: see `prunelit.callbacks.overlap.find_overlaps`.
    """
    return [
        f"{task}: {own['items']:,} of {own['n']:,} items are in the calibration text, which makes "
        f"a pruned model look better; the first is {cut(str(own['first']), 60)!r}."
        for task, own in overlaps.items()
    ]


def _constant(result: Result) -> str:
    answer = result.details["class"]
    if result.metric != f"chosen/{answer}" or result.model == "difference" or result.value < 0.9:
        return ""
    return (
        f"{result.task}: the {result.model} model answers {answer!r} for {result.value:.0%} of the "
        f"{result.n} items."
    )


def _cut_texts(result: Result) -> str:
    if result.model == "difference" or not result.value <= 0.95:
        return ""
    most = result.details.get("max_new_tokens")
    limit = f"{most} new tokens" if most else "the limit of new tokens"
    return (
        f"{result.task}: {1 - result.value:.0%} of the {result.model} model's texts were cut at "
        f"{limit}."
    )


def _doubts(run: Run, task: str) -> str:
    parts = []
    for model in ("dense", "pruned"):
        result = run.find(run.primary(task) or "", model, task)
        if result is not None and (count := result.details.get("doubts")):
            parts.append(f"{count} of the {model} model's")
    if not parts:
        return ""
    return f"{task}: texts that were judged wrong but may be right: {', '.join(parts)}."
