"""Public metrics with wrong arguments: one sentence or a number that means something."""

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import prunelit.metrics
from prunelit import InputError

from .test_wrong_arguments import WRONG

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 1.0, 2.0, 3.0]])
PAIR = prunelit.metrics.LogitPair(LOGITS, LOGITS.flip(0))
VECTORS = prunelit.metrics.VectorPair(LOGITS, LOGITS.flip(0))
IDS, SCORES = torch.tensor([0, 1]), np.array([1.0, 0.5, 0.75])
TWO = {"dense": LOGITS, "pruned": LOGITS.flip(0)}


def chunks() -> Any:
    yield torch.arange(2), LOGITS


# A right call of every public function and class.
RIGHT: dict[str, dict[str, Any]] = {
    "answer_flips": {"dense": IDS, "pruned": IDS, "label": IDS},
    "brier_scores": {"scores": LOGITS, "label": IDS},
    "calibration_errors": {"scores": TWO, "label": IDS, "bins": 5},
    "calibration_gaps": {"scores": LOGITS, "label": IDS, "bins": 5},
    "calibration_noise": {"scores": LOGITS, "bins": 5},
    "chance_ndcg": {"grades": [2, 1], "found": 3, "documents": 9},
    "cosine_estimate": {"pair": VECTORS},
    "deviations": {
        "dense_hidden": LOGITS,
        "pruned_hidden": LOGITS,
        "dense_logits": LOGITS,
        "pruned_logits": LOGITS.flip(0),
        "temperature": 2.0,
        "subset": IDS,
    },
    "distinct": {"tokens": [1, 2, 1], "n": 2},
    "estimate_pass_at_k": {"samples": 4, "right": 1, "k": 2},
    "estimate_retained": {"dense": SCORES, "pruned": SCORES, "chance": SCORES / 4},
    "find_first_divergence": {"dense": IDS, "pruned": IDS},
    "forecast_survival": {"keep": np.array([[1.0, 0.5], [0.5, np.nan]])},
    "jackknife_error": {"without": torch.tensor([1.0, 2.0])},
    "kaplan_meier": {"last": np.array([0, 1]), "diverged": np.array([True, False]), "steps": 3},
    "keep_probability": {
        "dense_logits": LOGITS,
        "pruned_logits": LOGITS,
        "tokens": IDS,
        "temperature": 1.0,
    },
    "list_agreement": {"one": [1, 2, 3], "other": [1, 3, 4]},
    "list_metrics": {
        "ranked": [7, 3],
        "grades": {3: 1},
        "depth": 10,
        "recall_at": [5, 10],
        "mrr_at": 5,
        "missing_grades": [2],
    },
    "mcnemar": {"to_wrong": 1, "to_right": 2},
    "measure_validity": {"dz": SCORES, "exact": SCORES, "estimate": SCORES},
    "place_on_ruler": {"kl": 0.1},
    "rank_documents": {
        "queries": LOGITS,
        "chunks": chunks,
        "depth": 2,
        "centre": True,
        "excluded": [0, -1],
    },
    "repetition_rate": {"tokens": [1, 2, 1], "n": 2},
    "spearman": {"one": torch.rand(5), "other": torch.rand(5)},
    "subspace_deviations": {**TWO, "options": [[0, 1], [1, 2]], "temperature": 1.0},
    "LogitGram": {"weight": LOGITS, "bias": IDS.double(), "scale": 2.0},
    "LogitPair": {**TWO, "temperature": 1.0, "buffers": None},
    "VectorPair": {**TWO, "buffers": None},
    "Sketch": {"places": 2, "near_one": False},
    "ProbabilityCosine": {"temperature": 2.0},
    "ProbabilityKL": {"direction": "dense_pruned", "temperature": 2.0},
    **{f"embedding_{name}": TWO for name in ("cosine", "orthogonal", "parallel")},
    **{f"logit_{name}": {"pair": PAIR} for name in ("cosine", "mse", "orthogonal", "parallel")},
    **{name: {"pair": PAIR} for name in ("js", "logit_std", "logit_std_p", "probability_cosine")},
    **{name: {"pair": PAIR} for name in ("probability_cosine_estimate", "top1_agreement")},
    **{name: {"pair": PAIR, "direction": "dense_pruned"} for name in ("kl", "kl_estimate")},
    **{name: {"pair": PAIR, "k": 2} for name in ("logit_std_top", "topk_overlap")},
    **{name: {} for name in ("Buffers", "EmbeddingCosine", "LogitCosine", "LogitMSE")},
    "Top1Agreement": {},
}
every_call = pytest.mark.parametrize("name", RIGHT)


def call(name: str, given: dict[str, Any]) -> Any:
    return getattr(prunelit.metrics, name)(**given)


def test_every_public_name_has_a_right_call() -> None:
    assert {*RIGHT, "TokenMean"} == {*prunelit.metrics.__all__}


@every_call
def test_right_arguments_and_numbers_of_numpy(name: str) -> None:
    numpy = {int: np.int64, float: np.float32}
    given = {key: numpy.get(type(value), lambda v: v)(value) for key, value in RIGHT[name].items()}
    for found, other in zip(*(flat(call(name, one)) for one in (RIGHT[name], given)), strict=True):
        torch.testing.assert_close(found, other, equal_nan=True, rtol=1e-6, atol=1e-7)


def flat(found: Any) -> list[Tensor]:
    """Return the numbers of a value, in order."""
    if isinstance(found, dict):
        return [one for value in found.values() for one in flat(value)]
    if isinstance(found, tuple):
        return [one for value in found for one in flat(value)]
    numbers = isinstance(found, float | Tensor)
    return [torch.as_tensor(found, dtype=torch.float64)] if numbers else []


@every_call
def test_values_of_another_type(name: str) -> None:
    complaints = []
    for argument, right in RIGHT[name].items():
        default = inspect.signature(getattr(prunelit.metrics, name)).parameters[argument].default
        for wrong in WRONG:
            if wrong is default or (type(wrong) is type(right) and not isinstance(right, str)):
                continue
            try:
                call(name, {**RIGHT[name], argument: wrong})
            except InputError:
                continue
            except Exception as error:  # noqa: BLE001 - each other one is a complaint
                complaints.append(f"{argument}={wrong!r:.30}: {type(error).__name__} {error}")
            else:
                whole = isinstance(right, float) and isinstance(wrong, int)
                if not (whole or wrong is None or isinstance(wrong, list | dict)):
                    complaints.append(f"{argument}={wrong!r:.30} is taken")
    assert not complaints, "\n".join(complaints)


@every_call
def test_arrays_of_another_length_or_rank(name: str) -> None:
    arrays = {key: v for key, v in RIGHT[name].items() if isinstance(v, Tensor | np.ndarray)}
    for argument, right in arrays.items():
        if name in ("jackknife_error", "forecast_survival", "calibration_noise"):
            continue  # one array alone has any length
        for wrong in (right[:-1], right[:1], right[None], right[..., None], right[:0]):
            if (name, argument) == ("deviations", "subset") and wrong.ndim == 1 and len(wrong):
                continue  # a subset has any size
            if (name, argument) == ("rank_documents", "queries") and wrong.ndim == 2:
                continue
            with pytest.raises(InputError):
                call(name, {**RIGHT[name], argument: wrong})


@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [
        ("answer_flips", {"dense": torch.tensor([0.0, math.nan])}, "`dense` but some are NaN"),
        ("brier_scores", {"label": torch.tensor([0, 4])}, r"`label` in \[0, 4\) but got 4"),
        ("brier_scores", {"label": torch.tensor([-1, 0])}, r"`label` in \[0, 4\) but got -1"),
        ("brier_scores", {"label": torch.tensor([0.0, 1.0])}, "whole numbers as `label`"),
        ("brier_scores", {"scores": LOGITS * math.nan}, "row 0 is"),
        ("brier_scores", {"scores": LOGITS - math.inf}, "a finite log-likelihood"),
        ("calibration_gaps", {"label": torch.tensor([9, 0])}, r"`label` in \[0, 4\)"),
        ("calibration_errors", {"label": torch.tensor([9, 0])}, r"`label` in \[0, 4\)"),
        ("calibration_noise", {"bins": 0}, "`bins` of at least 1"),
        ("calibration_gaps", {"bins": 0}, "`bins` of at least 1"),
        ("chance_ndcg", {"grades": []}, "at least one relevant document"),
        ("chance_ndcg", {"grades": [0]}, "at least one relevant document"),
        ("chance_ndcg", {"documents": 0}, "`documents` of at least 1"),
        ("chance_ndcg", {"found": 4}, "`found` from 0 to 3"),
        ("distinct", {"n": 0}, "`n` of at least 1"),
        ("repetition_rate", {"n": -1}, "`n` of at least 1"),
        ("estimate_retained", {"dense": SCORES * math.nan}, "`dense` but some are NaN"),
        ("find_first_divergence", {"dense": torch.tensor([0.0, 1.0])}, "whole numbers"),
        ("forecast_survival", {"keep": np.array([[1.5]])}, r"in \[0, 1\]"),
        ("forecast_survival", {"keep": np.array([1.0])}, r"shape \(n, S\)"),
        ("jackknife_error", {"without": torch.ones(2, 2)}, "a vector"),
        ("kaplan_meier", {"last": np.array([0.0, math.nan])}, "`last` but some are NaN"),
        ("kaplan_meier", {"steps": 0}, "`steps` of at least 1"),
        ("keep_probability", {"tokens": torch.tensor([0, 4])}, r"`tokens` in \[0, 4\)"),
        ("keep_probability", {"temperature": math.inf}, "above 0 and finite"),
        ("list_agreement", {"one": [], "other": []}, "at least 1"),
        ("list_agreement", {"one": [1, 2]}, "one length"),
        ("list_agreement", {"one": [1, 1, 2]}, "each document once"),
        ("list_metrics", {"ranked": [1, 1]}, "each document once"),
        ("list_metrics", {"ranked": [*range(11)]}, "`depth` is 10, the list has 11"),
        ("list_metrics", {"grades": {}, "missing_grades": []}, "at least one relevant"),
        ("list_metrics", {"grades": {1: 0}}, "from 1"),
        ("list_metrics", {"grades": {1: 2**63}}, "below 2.63"),
        ("list_metrics", {"recall_at": [0]}, "ranks from 1"),
        ("list_metrics", {"recall_at": [50]}, "ranks from 1 to `depth`"),
        ("list_metrics", {"depth": 5, "recall_at": [5]}, "`depth` is 5"),
        ("mcnemar", {"to_wrong": -1}, "`to_wrong` of at least 0"),
        ("mcnemar", {"to_right": -1}, "`to_right` of at least 0"),
        ("place_on_ruler", {"kl": math.nan}, "at least 0"),
        ("rank_documents", {"queries": LOGITS * math.nan}, "`queries` but some are NaN"),
        ("rank_documents", {"queries": LOGITS[:, :2]}, r"embeddings of shape \(2, 2\)"),
        ("rank_documents", {"excluded": [0]}, "one excluded document for each"),
        ("rank_documents", {"chunks": lambda: iter(())}, "at least one document"),
        ("rank_documents", {"depth": 0}, "`depth` of at least 1"),
        ("subspace_deviations", {"options": [[0, 1]]}, "N questions"),
        ("subspace_deviations", {"options": [[0, 1], [1, 2**70]]}, r"token ids in \[0, 4\)"),
        ("subspace_deviations", {"options": [[0, 1], []]}, "at least one"),
        ("Sketch", {"places": 0}, "`places` of at least 1"),
        ("VectorPair", {"dense": LOGITS * 1j}, "real numbers"),
        ("LogitPair", {"temperature": math.nan}, "`temperature` above 0"),
        ("ProbabilityKL", {"temperature": -1.0}, "`temperature` above 0"),
    ],
)
def test_numbers_without_a_meaning(name: str, wrong: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        call(name, {**RIGHT[name], **wrong})


def test_what_is_not_defined_is_nan() -> None:
    assert math.isnan(prunelit.metrics.jackknife_error(torch.tensor([3.0])))
    assert math.isnan(prunelit.metrics.jackknife_error(torch.zeros(0)))
    for other in (torch.ones(3), torch.tensor([1.0, math.nan, 2.0])):
        value, without = prunelit.metrics.spearman(torch.arange(3), other)
        assert math.isnan(value)
        assert without.shape == (3,)
    assert math.isnan(prunelit.metrics.spearman(torch.ones(1), torch.ones(1))[0])
    assert math.isnan(prunelit.metrics.list_agreement([4], [4])["rank_correlation"])


def test_a_sketch_takes_what_has_its_places() -> None:
    sketch = prunelit.metrics.Sketch(places=3)
    with pytest.raises(InputError, match=r"\(B, 3, T\) but got \(2, 1, 4\)"):
        sketch.update(torch.ones(2, 1, 4))
    with pytest.raises(InputError, match="3 places of the same quantity but got one of 1"):
        sketch.merge(prunelit.metrics.Sketch(places=1))
    with pytest.raises(InputError, match="shares"):
        sketch.quantiles([1.5])
