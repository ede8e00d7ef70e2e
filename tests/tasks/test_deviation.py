"""The task `Deviation` against NumPy and against `prunelit.compare`."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit import compare
from prunelit.metrics.spaces.deviation import LOGIT_SPACE
from prunelit.report.results import Result
from prunelit.tasks import Deviation, ItemTable, ModelPair


@pytest.fixture
def pair(
    make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> ModelPair:
    return ModelPair(make_model("llama", seed=1), make_model("llama", seed=0), tokenizer)


@torch.no_grad()
def measure(
    material: Path, pair: ModelPair, temperature: float = 1.0, logit_gram: bool = True
) -> tuple[dict[str, Result], torch.Tensor]:
    """Rows by metric, and the (5, 12) windows."""
    task = Deviation(
        str(material / "text.jsonl"),
        length=12,
        limit=5,
        batch_size=2,
        temperature=temperature,
        logit_gram=logit_gram,
    )
    task.read()
    size = task.prepare(pair.tokenizer)
    table = ItemTable(size)
    for batch in task.batches(size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    rows = task.report(table).results
    assert {row.model for row in rows} == {"pair"}
    return {row.metric: row for row in rows}, task.collate(range(size))["input_ids"]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_errors_are_those_of_numpy_window_by_window(
    material: Path, pair: ModelPair, temperature: float
) -> None:
    rows, ids = measure(material, pair, temperature)
    assert pair.dense is not None
    with torch.no_grad():
        z, z_pruned = (m(input_ids=ids).logits.double().numpy() for m in (pair.dense, pair.pruned))
    log_p, log_q = log_softmax(z / temperature, -1), log_softmax(z_pruned / temperature, -1)
    expected = {
        "kl_dense_pruned": (np.exp(log_p) * (log_p - log_q)).sum(-1),
        "kl_pruned_dense": (np.exp(log_q) * (log_q - log_p)).sum(-1),
        "logit_mse": ((z_pruned - z) ** 2).mean(-1),
        "top1_agreement": (z.argmax(-1) == z_pruned.argmax(-1)).astype(float),
    }
    for metric, values in expected.items():
        windows = values.mean(1)
        row = rows[metric]
        assert row.n == 5
        assert row.value == pytest.approx(windows.mean(), rel=1e-4), metric
        error = windows.std(ddof=1) / math.sqrt(5)
        assert row.standard_error == pytest.approx(error, rel=1e-3), metric
        assert row.details["temperature"] == temperature


def test_it_reports_what_compare_reports(material: Path, pair: ModelPair) -> None:
    rows, ids = measure(material, pair)
    assert pair.dense is not None
    expected = compare(pair.dense, pair.pruned, ids, batch_size=2)
    assert expected.pop("n") == 60
    assert {name: row.value for name, row in rows.items()} == pytest.approx(expected, rel=1e-6)


def test_a_model_does_not_deviate_from_itself(material: Path, pair: ModelPair) -> None:
    rows, _ = measure(material, ModelPair(pair.pruned, pair.pruned, pair.tokenizer))
    for metric, row in rows.items():
        same = 1 if any(word in metric for word in ("cosine", "agreement", "overlap")) else 0
        assert row.value == pytest.approx(same, abs=1e-6), metric


def test_it_needs_the_reference() -> None:
    assert Deviation.needs_reference


@torch.no_grad()
def test_models_that_are_nearly_equal_have_the_logit_space_of_float64(
    material: Path, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> None:
    dense, pruned = make_model("llama"), make_model("llama")
    pruned.model.norm.weight[::2] *= 1 + 1e-6
    pair = ModelPair(pruned, dense, tokenizer)
    rows, ids = measure(material, pair)
    plain, _ = measure(material, pair, logit_gram=False)
    hidden = [model.model(input_ids=ids).last_hidden_state.double() for model in (dense, pruned)]
    exact = ((hidden[1] - hidden[0]) @ dense.lm_head.weight.double().T).square().mean().item()
    assert rows["logit_mse"].value == pytest.approx(exact, rel=1e-9)
    assert abs(plain["logit_mse"].value / exact - 1) > 1e-3  # rounding of logits in float32
    assert rows["logit_mse"].value != 0
    for metric, row in plain.items():
        assert rows[metric].value == pytest.approx(row.value, rel=1e-9) or metric in LOGIT_SPACE
