"""Test items whose text is in the calibration text of the run."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from prunelit.core.datamodule import PruneData
from prunelit.core.new.overlap import find_overlap
from prunelit.report.items import read_items
from prunelit.report.page.texts import shorten_alike


def find_overlaps(
    data: PruneData, tokenizer: PreTrainedTokenizerBase, items: Path
) -> dict[str, dict[str, Any]]:
    """Find the test items whose text is in the calibration text.

    The calibration text is that of the token windows that a method looked at. An item at the border
    of two windows is not found, so that the counts are lower bounds. What all prompts of a task
    have in common, such as a template, does not count.

    Args:
        data: prepared.
        tokenizer: of the windows.
        items: folder of the tasks' items.

    Returns:
        By the task's name: `items`, the number of items found, `n`, that of all, and `first`, the
        text of one. Tasks without such an item are left out.
    """
    if data.calibration_tokens is None:
        return {}
    documents = tokenizer.batch_decode(data.calibration_tokens, skip_special_tokens=True)
    found = {}
    for name in data.tasks:
        path = items / f"{name}.parquet"
        rows = read_items(path) if path.is_file() else []
        prompts = {
            row.get("item", row.get("query")): str(row.get("prompt", row.get("text", "")))
            for row in rows
        }
        texts = shorten_alike(list(prompts.values()))
        if numbers := find_overlap(texts, documents):
            first = " ".join(texts[numbers[0]].split())
            found[name] = {"items": len(numbers), "n": len(texts), "first": first}
    return found
