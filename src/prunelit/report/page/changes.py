"""Items that got worse, and items that got better."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prunelit.errors import InputError
from prunelit.report.page.runs import Run
from prunelit.report.page.texts import first_difference, shorten_alike

_SEVERAL = 5  # documents of a list


@dataclass(frozen=True)
class Change:
    """One item whose score is not the same for both models.

    Args:
        place: number of the item in the data.
        name: the item as its data set names it.
        prompt: without what all prompts of the task have in common.
        target: the right answer; empty if there is none.
        dense: answer of the dense model.
        pruned: answer of the pruned model.
        drop: score of the dense model minus that of the pruned one.
        part: number of equal tokens before the answers part, or of equal characters.
        note: the scores or the place where the texts part, in words.
    """

    place: int
    name: str
    prompt: str
    target: str
    dense: str
    pruned: str
    drop: float
    part: int
    note: str


@dataclass(frozen=True)
class Changes:
    """The items of a task that got worse or better.

    Args:
        task: name of the task.
        score: its main score.
        n: number of items that both models answered.
        flips: True if an item is right or wrong, with nothing between.
        worse: largest loss first, then in the order of the data.
        better: largest gain first.
        parts: median number of equal tokens before two texts part; None if no texts were written.
        equal: share of the texts that never part; None if no texts were written.
    """

    task: str
    score: str
    n: int
    flips: bool
    worse: list[Change]
    better: list[Change]
    parts: float | None
    equal: float | None

    def count(self, better: bool = False) -> str:
        """Say how many items changed."""
        number = len(self.better if better else self.worse)
        if self.flips:
            words = "wrong and became right" if better else "right and became wrong"
            return f"{number:,} of {self.n:,} items {'was' if number == 1 else 'were'} {words}"
        word = "higher" if better else "lower"
        have = "has" if number == 1 else "have"
        return f"{number:,} of {self.n:,} items {have} a {word} {self.score}"


def find_changes(run: Run, task: str) -> Changes:
    """Compare the items of a task, pair by pair.

    Args:
        run: of the results.
        task: a task that writes items.

    Raises:
        InputError: if the task has no items, or these name no score.
    """
    rows, score = run.items(task), run.primary(task)
    path = str(run.items_path(task))
    if not rows:
        raise InputError(
            f"The task {task!r} has no items: there is no {path!r}, or the run is of an earlier "
            "version. Repeat it with `prunelit validate`."
        )
    single = str(score).removeprefix("balanced_")  # the mean over answers is no score of an item
    column = next((c for c in (f"right_{single}", score) if c in rows[0]), None)
    if column is None or "model" not in rows[0] or not {"item", "query"} & rows[0].keys():
        raise InputError(
            f"The items of {task!r} cannot be compared: {path!r} has no columns `model`, "
            f"`item`, and `right_{score}` or `{score}`."
        )
    pairs = [pair for pair in _pairs(rows) if _is_scored(pair, column)]
    prompts = shorten_alike([_prompt(dense) for dense, _ in pairs])
    changes = [_change(n, *pair, column, prompts[n]) for n, pair in enumerate(pairs)]
    flips = all(isinstance(pair[0][column], bool) for pair in pairs)
    texts = [dense for dense, _ in pairs if dense.get("first_divergence") is not None]
    return Changes(
        task,
        str(score),
        len(pairs),
        flips,
        sorted((one for one in changes if one.drop > 0), key=lambda one: -one.drop),
        sorted((one for one in changes if one.drop < 0), key=lambda one: one.drop),
        statistics.median(row["first_divergence"] for row in texts) if texts else None,
        sum(not row["diverged"] for row in texts) / len(texts) if texts else None,
    )


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    found: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        key = (row.get("item", row.get("query")), row.get("sample"))
        found.setdefault(key, {})[row["model"]] = row
    return [(own["dense"], own["pruned"]) for own in found.values() if len(own) == 2]


def _is_scored(pair: tuple[Mapping[str, Any], ...], column: str) -> bool:
    """Return True if both scores are numbers; nDCG is not defined without a relevant document."""
    return all(
        isinstance(row[column], bool | int | float) and row[column] == row[column] for row in pair
    )


def _prompt(row: Mapping[str, Any]) -> str:
    return str(row.get("prompt", row.get("text", "")))


def _answer(row: Mapping[str, Any]) -> str:
    if "first" in row:
        more = " ..." if len(row["first"]) > _SEVERAL else ""
        return ", ".join(map(str, row["first"][:_SEVERAL])) + more
    return str(row.get("output", row.get("answer", "")))


def _change(
    place: int, dense: Mapping[str, Any], pruned: Mapping[str, Any], column: str, prompt: str
) -> Change:
    texts = _answer(dense), _answer(pruned)
    part = first_difference(*texts)
    sample = f", sample {dense['sample']}" if dense.get("sample") else ""
    if "rank" in dense:
        note = f"rank {dense['rank']} → {pruned['rank']}"
    elif dense.get("first_divergence") is not None:
        part = dense["first_divergence"]
        note = f"the texts part after {part} equal token{'' if part == 1 else 's'}"
    elif isinstance(dense[column], bool):
        note = ""
    else:
        note = f"{column} {dense[column]:.2f} → {pruned[column]:.2f}"
    name = dense.get("id") or dense.get("query") or dense.get("item", place)
    return Change(
        place,
        f"{name}{sample}",
        prompt,
        "" if dense.get("target") is None else str(dense["target"]),
        *texts,
        float(dense[column]) - float(pruned[column]),
        part,
        note,
    )
