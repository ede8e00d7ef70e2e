"""The row that says how much of a task's score is retained, by which data sets are compared."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from prunelit.metrics.retained import RESAMPLES, estimate_retained
from prunelit.report.results import Result

# What a task reads a model for.
Reading = Literal["multiple choice", "retrieval", "generation", "similarity"]


def read_by(reading: Reading, primary: str | None) -> dict[str, Any]:
    """What the details of a task's rows say of its score, see `prunelit.report.readings`.

    Args:
        reading: what it reads a model for.
        primary: the metric that models are compared by; None where there is none.
    """
    return {"reading": reading, "primary": primary}


def retained_rows(
    task: str,
    columns: Mapping[str, Tensor],
    chance: Tensor | float,
    details: dict[str, Any],
) -> list[Result]:
    """The row `retained` of a task, see `prunelit.metrics.retained`.

    Args:
        task: its name.
        columns: by `dense/<metric>` and `pruned/<metric>` the score of each item, (n,).
        chance: expected score of a model that guesses, (n,) or the same for all.
        details: of the task's other rows, those of `read_by` among them; the score is from 0 to 1.

    Returns:
        One row, or none without a reference; the scores of both models are in its details.
    """
    metric = details["primary"]
    if metric is None or f"dense/{metric}" not in columns:
        return []
    dense, pruned = (columns[f"{model}/{metric}"].double() for model in ("dense", "pruned"))
    level = torch.as_tensor(chance, dtype=torch.float64).expand(len(dense))
    found = estimate_retained(dense.numpy(), pruned.numpy(), level.numpy())
    interval = None if math.isnan(found.low) else [found.low, found.high]
    own = {
        "dense": dense.mean().item(),
        "pruned": pruned.mean().item(),
        "chance": level.mean().item(),
        "interval_95": interval,
        "resamples": RESAMPLES,
    }
    return [
        Result(
            task,
            "retained",
            "pair",
            found.value,
            found.standard_error,
            len(dense),
            {**details, **own},
        )
    ]
