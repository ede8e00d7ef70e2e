"""Items that got worse or better, as the page shows them."""

import shlex
from collections.abc import Sequence
from typing import Any

from prunelit.errors import InputError, visible
from prunelit.report.page.changes import Change, Changes, find_changes
from prunelit.report.page.runs import Run
from prunelit.report.page.texts import cut, mark_difference


def find_all_changes(run: Run) -> tuple[list[Changes], list[str]]:
    """Find the changes of all tasks with items, and say which items cannot be read."""
    found, unreadable = [], []
    for task in run.tasks:
        if run.primary(task) is None or not run.items_path(task).is_file():
            continue
        try:
            found.append(find_changes(run, task))
        except InputError as error:
            unreadable.append(str(error))
    return found, unreadable


def view_changes(run: Run, changes: Changes, budget: int) -> dict[str, Any]:
    """Prepare the items of a task for the page.

    Args:
        run: of the items.
        changes: of the task.
        budget: bytes of the items that got worse, and of those that got better.
    """
    worse, better = (_fit(items, budget) for items in (changes.worse, changes.better))
    return {
        "task": changes.task,
        "worse": {"count": changes.count(), "items": worse, "all": len(changes.worse)},
        "better": {
            "count": changes.count(better=True),
            "items": better,
            "all": len(changes.better),
        },
        "command": f"prunelit worse {shlex.quote(run.name)} --task {shlex.quote(changes.task)}",
    }


def _fit(changes: Sequence[Change], budget: int) -> list[dict[str, Any]]:
    """Prepare items for the page until their bytes are used up."""
    items: list[dict[str, Any]] = []
    for number, change in enumerate(changes):
        dense, pruned = mark_difference(cut(change.dense), cut(change.pruned))
        prompt = cut(change.prompt.strip())
        texts = (prompt, change.target, change.dense[:1300], change.pruned[:1300], change.name)
        budget -= 600 + sum(len(visible(text).encode("utf-8", "replace")) for text in texts)
        if budget < 0:
            break
        items.append(
            {
                "loss": number,
                "place": change.place,
                "part": change.part,
                "name": cut(change.name, 80),
                "prompt": prompt,
                "short": cut(" ".join(prompt.split()), 160),
                "target": cut(change.target, 300),
                "dense": dense,
                "pruned": pruned,
                "note": change.note,
            }
        )
    return items
