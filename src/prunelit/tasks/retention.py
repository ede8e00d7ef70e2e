"""The result `retained`: the share of a task's main score that the pruned model keeps."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from prunelit.metrics.retained import RESAMPLES, estimate_retained
from prunelit.report.results import Result

# The uses of a model that tasks measure.
Use = Literal["multiple choice", "retrieval", "generation", "similarity"]


def score_details(use: Use, primary: str | None) -> dict[str, Any]:
    """Details that every result of a task with a main score has, see `report/main_scores.py`.

    Args:
        use: the use of the model that the task measures.
        primary: the metric by which models are compared; None if there is none.
    """
    return {"use": use, "primary": primary}


def retained_results(
    task: str,
    columns: Mapping[str, Tensor],
    chance: Tensor | float,
    details: dict[str, Any],
    answers: str | None = None,
) -> list[Result]:
    """Compute the result `retained` of a task, see `prunelit.metrics.retained`.

    Args:
        task: name of the task.
        columns: score of each item, (n,), in [0, 1], by `dense/<metric>` and `pruned/<metric>`.
        chance: expected score of random guessing, (n,) or one number for all items.
        details: details of the task's other results, including `score_details`.
        answers: `open`, `fixed`, or None for those among which a guess is random.

    Returns:
        One result, with the scores of both models in its details; an empty list if the task has no
        main score or the run has no dense model.
    """
    metric = details["primary"]
    if metric is None or f"dense/{metric}" not in columns:
        return []
    dense, pruned = (columns[f"{model}/{metric}"].double() for model in ("dense", "pruned"))
    level = torch.as_tensor(chance, dtype=torch.float64).expand(len(dense))
    found = estimate_retained(dense.numpy(), pruned.numpy(), level.numpy())
    interval = None if math.isnan(found.low) else [found.low, found.high]
    own = {
        "score": metric,
        "dense": dense.mean().item(),
        "pruned": pruned.mean().item(),
        "chance": level.mean().item(),
        "answers": answers,
        "interval_95": interval,
        "resamples": RESAMPLES,
    }
    if found.reason is not None:
        own["no_error_bar"] = found.reason
    value, error = found.value, found.standard_error
    return [Result(task, "retained", "pair", value, error, len(dense), {**details, **own})]
