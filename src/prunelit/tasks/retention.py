"""The result `retained`: the share of a task's main score that the pruned model keeps."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunelit.metrics.retained import retained_share
from prunelit.report.results import Result
from prunelit.report.score_test import PairedScores
from prunelit.report.verdicts import Use


def score_details(use: Use | None, primary: str | None) -> dict[str, Any]:
    """Details that every result of a task with a main score has, see `report/main_scores.py`.

    Args:
        use: the use of the model that the task measures.
        primary: the metric by which models are compared; None if there is none.
    """
    return {"use": use, "primary": primary}


def paired_scores(
    columns: Mapping[str, Tensor],
    metric: str | None,
    chance: Tensor | float,
    weights: Tensor | None = None,
) -> PairedScores | None:
    """Pair the scores of both models, item by item.

    Args:
        columns: score of each item, (n,), in [0, 1], by `dense/<metric>` and `pruned/<metric>`.
        metric: the main score of the task.
        chance: expected score of random guessing, (n,) or one number for all items.
        weights: of the items, (n,), with the mean 1; None weighs all alike.

    Returns:
        The scores; None if the task has no main score or the run has no dense model.
    """
    if metric is None or f"dense/{metric}" not in columns:
        return None
    dense, pruned = (columns[f"{model}/{metric}"].double() for model in ("dense", "pruned"))
    floor = torch.as_tensor(chance, dtype=torch.float64).expand(len(dense))
    own = None if weights is None else weights.numpy()
    return PairedScores(dense.numpy(), pruned.numpy(), floor.numpy(), weights=own)


def jackknife_scores(dense: tuple[float, Tensor], pruned: tuple[float, Tensor]) -> PairedScores:
    """Pair the pseudo-values of a score that is no mean of items. Its floor is 0.

    Formula:
        ``G value - (G - 1) value_g`` for each of G groups of items

    Source:
        Tukey 1958, Bias and confidence in not-quite large samples.

    Args:
        dense: the score of the dense model, and its values without each group, (G,).
        pruned: the same of the pruned model, with the same groups.
    """
    own = [
        (len(without) * value - (len(without) - 1) * without).double().numpy()
        for value, without in (dense, pruned)
    ]
    return PairedScores(*own, floor=0 * own[0], bounded=False)


def retained_results(
    task: str,
    scores: PairedScores | None,
    details: dict[str, Any],
    answers: str | None = None,
) -> list[Result]:
    """Compute the result `retained` of a task, see `prunelit.metrics.retained`.

    Args:
        task: name of the task.
        scores: of both models, see `paired_scores`.
        details: details of the task's other results, including `score_details`.
        answers: `open`, `fixed`, or None for those among which a guess is random.

    Returns:
        One result, with the scores of both models in its details; an empty list without scores.
    """
    if scores is None:
        return []
    found = retained_share(scores)
    dense, pruned, floor = (float(column.mean()) for column in scores.weighted())
    own: dict[str, Any] = {
        "score": details["primary"],
        "dense": dense,
        "pruned": pruned,
        "chance": floor,
        "answers": answers,
        "lower_95": found.low if math.isfinite(found.low) else None,
        "upper_95": found.high if math.isfinite(found.high) else None,
    }
    if found.reason is not None:
        own["no_error_bar"] = found.reason
    value, error = found.value, found.standard_error
    return [Result(task, "retained", "pair", value, error, len(scores), {**details, **own})]
