"""Results about answers that change from the dense to the pruned model."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunelit.metrics.flips import FLIPS, answer_flips, mcnemar
from prunelit.report.results import Result
from prunelit.tasks.item_table import ItemTable


def flip_results(
    task: str, chosen: Mapping[str, Tensor], right: Tensor, details: dict[str, Any]
) -> list[Result]:
    """Summarise the answers that change.

    Args:
        task: name of the task.
        chosen: number of the answer to each item, (n,), by model.
        right: number of the right answer, (n,).
        details: of the task's other results.

    Returns:
        `agreement`, `flips_to_wrong`, `flips_to_right` and `mcnemar_p`; an empty list if the run
        has no dense model.
    """
    if len(chosen) < 2:
        return []
    columns = answer_flips(chosen["dense"], chosen["pruned"], right)
    table = ItemTable(len(right))
    table.assign(torch.arange(table.size), columns)
    to_wrong, to_right = (int(columns[name].sum()) for name in FLIPS[1:])
    counts = {
        "flips_to_wrong": to_wrong,
        "flips_to_right": to_right,
        "no_error_bar": "a p-value",
    }
    p = mcnemar(to_wrong, to_right)
    return [
        *table.pair_results(task, list(FLIPS), details),
        Result(task, "mcnemar_p", "pair", p, math.nan, table.size, {**details, **counts}),
    ]
