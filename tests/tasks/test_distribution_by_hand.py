"""The task `Distribution` against NumPy, token by token."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunelit.tasks import ModelPair
from prunelit.tasks.distribution import DELTA_PERCENT, KL_PERCENT

MakeModel = Callable[..., PreTrainedModel]
Measure = Callable[..., Any]


@torch.no_grad()
def numpy_values(
    dense: PreTrainedModel, pruned: PreTrainedModel, ids: torch.Tensor
) -> dict[str, np.ndarray]:
    """(W, L - 1) values, one window at a time, in float64."""
    found: dict[str, list[np.ndarray]] = {}
    for window in ids:
        log_p, log_q = (
            log_softmax(m(input_ids=window[None]).logits[0, :-1].double().numpy(), -1)
            for m in (dense, pruned)
        )
        p, q = np.exp(log_p), np.exp(log_q)
        true = window[1:, None].numpy()
        a, b = (np.take_along_axis(x, true, -1)[:, 0] for x in (log_p, log_q))
        values = {
            "kl_dense_pruned": (p * (log_p - log_q)).sum(-1),
            "kl_pruned_dense": (q * (log_q - log_p)).sum(-1),
            "kl_dense_pruned_estimate": half_variance(p, log_q - log_p),
            "kl_pruned_dense_estimate": half_variance(q, log_q - log_p),
            "delta_p": np.exp(b) - np.exp(a),
            "top1_agreement": (p.argmax(-1) == q.argmax(-1)).astype(float),
            "delta_nll": a - b,
            "dense/nll": -a,
            "pruned/nll": -b,
        }
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: np.stack(value) for name, value in found.items()}


def half_variance(weights: np.ndarray, change: np.ndarray) -> np.ndarray:
    mean = (weights * change).sum(-1, keepdims=True)
    return (weights * (change - mean) ** 2).sum(-1) / 2


def standard_error(values: np.ndarray) -> float:
    return values.std(ddof=1) / math.sqrt(len(values))


def test_every_figure_is_that_of_numpy_token_by_token(
    family: str, distribution: Measure, make_model: MakeModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    dense, pruned = make_model(family, seed=0), make_model(family, seed=1)
    rows, task, table = distribution(ModelPair(pruned, dense, tokenizer), floor=False)
    expected = numpy_values(dense, pruned, task.collate(range(7))["input_ids"])
    for name in set(expected) - {"delta_nll", "dense/nll", "pruned/nll"}:
        row, values = rows[name], expected[name]
        assert row.value == pytest.approx(values.mean(), rel=1e-4, abs=1e-7), name
        assert row.standard_error == pytest.approx(standard_error(values.mean(1)), rel=1e-3)
        tokens = row.details["standard_error_tokens"]
        assert tokens == pytest.approx(standard_error(values.flatten()), rel=1e-3)
        assert (row.n, row.details["tokens"]) == (7, 7 * 11)
    kl, delta = expected["kl_dense_pruned"].flatten(), expected["delta_p"].flatten()
    assert rows["kl_dense_pruned_max"].value == pytest.approx(kl.max(), rel=1e-4)
    assert rows["delta_p_max"].value == pytest.approx(delta.max(), rel=1e-3)
    assert rows["delta_p_min"].value == pytest.approx(delta.min(), rel=1e-3)
    assert rows["delta_p_rms"].value == pytest.approx(math.sqrt((delta**2).mean()), rel=1e-4)
    for name, values, percents in (
        ("kl_dense_pruned", kl, KL_PERCENT),
        ("delta_p", delta, DELTA_PERCENT),
    ):
        for percent in percents:
            exact = np.percentile(values, percent, method="inverted_cdf")
            found = rows[f"{name}_q{percent:g}"]
            assert found.value == pytest.approx(exact, rel=0.021, abs=1e-8), (name, percent)
            assert math.isnan(found.standard_error)
    ratio, change = rows["perplexity_ratio"], expected["delta_nll"]
    both = [math.exp(expected[f"{m}/nll"].mean()) for m in ("pruned", "dense")]
    assert ratio.value == pytest.approx(both[0] / both[1], rel=1e-4)
    assert ratio.standard_error == pytest.approx(
        ratio.value * standard_error(change.mean(1)), rel=1e-3
    )
    assert ratio.details["standard_error_tokens"] == pytest.approx(
        ratio.value * standard_error(change.flatten()), rel=1e-3
    )
    models = {r.model: r for r in task.report(table).results if r.metric == "nll"}
    assert models["dense"].value == pytest.approx(expected["dense/nll"].mean(), rel=1e-4)
    assert models["difference"].value == pytest.approx(change.mean(), abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    ("own", "other"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_the_dtype_floor_is_that_of_a_model_loaded_so(
    own: torch.dtype,
    other: torch.dtype,
    batch_size: int,
    folder: Path,
    distribution: Measure,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=own)
    dense.save_pretrained(folder / "again")  # of bfloat16, what is left of the weights
    twin = AutoModelForCausalLM.from_pretrained(folder / "again", dtype=other)
    rows, task, _ = distribution(ModelPair(dense, dense, tokenizer), batch_size=batch_size)
    expected = numpy_values(dense, twin, task.collate(range(3))["input_ids"])
    name = str(other).removeprefix("torch.")
    values = expected["kl_dense_pruned"]
    # A window alone and two in a batch differ by rounding, which in bfloat16 is no trifle.
    near = 2e-2 if own == torch.float32 else 0.3
    assert rows[f"floor_{name}/kl_dense_pruned"].value == pytest.approx(values.mean(), rel=near)
    assert {metric.partition("/")[0] for metric in rows if "/" in metric} == {
        "floor_batch",
        f"floor_{name}",
    }
