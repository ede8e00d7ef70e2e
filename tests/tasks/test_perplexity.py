"""Perplexity against a computation with full logits, and its error by numeric derivatives."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.report.results import Result
from prunelit.tasks import ItemTable, ModelPair, Perplexity


def nll_of_windows(model: PreTrainedModel, ids: torch.Tensor) -> np.ndarray:
    """(windows,) mean over all tokens but the first, from all logits at once."""
    with torch.no_grad():
        logits = model(input_ids=ids).logits.double()
    log_p = torch.log_softmax(logits[:, :-1], -1)
    return -log_p.gather(2, ids[:, 1:, None])[..., 0].mean(1).numpy()


@pytest.fixture
def measured(
    material: Path, make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Result], np.ndarray, np.ndarray]:
    dense, pruned = make_model("llama", seed=0), make_model("llama", seed=1)
    task = Perplexity(str(material / "text.jsonl"), length=20, limit=11, batch_size=4)
    task.read()
    size = task.prepare(tokenizer)
    table = ItemTable(size)
    with torch.no_grad():
        for batch in task.batches(size, 0, 1):
            table.assign(batch["indices"], task.step(ModelPair(pruned, dense, tokenizer), batch))
    ids = task.collate(range(size))["input_ids"]
    return task.report(table).results, nll_of_windows(dense, ids), nll_of_windows(pruned, ids)


def test_values_are_those_of_the_full_logits(
    measured: tuple[list[Result], np.ndarray, np.ndarray],
) -> None:
    rows, dense, pruned = measured
    values = {(row.metric, row.model): row.value for row in rows}
    assert values == pytest.approx(
        {
            ("nll", "dense"): dense.mean(),
            ("nll", "pruned"): pruned.mean(),
            ("nll", "difference"): (pruned - dense).mean(),
            ("perplexity", "dense"): math.exp(dense.mean()),
            ("perplexity", "pruned"): math.exp(pruned.mean()),
            ("perplexity", "difference"): math.exp(pruned.mean()) - math.exp(dense.mean()),
        },
        rel=1e-5,
        abs=1e-5,
    )
    assert {row.n for row in rows} == {11}
    assert {row.details["tokens"] for row in rows} == {11 * 19}


def test_errors_are_first_order(measured: tuple[list[Result], np.ndarray, np.ndarray]) -> None:
    rows, dense, pruned = measured
    means = np.array([dense.mean(), pruned.mean()])
    covariance = np.cov(dense, pruned) / len(dense)
    functions: dict[str, Callable[[np.ndarray], float]] = {
        "dense": lambda m: math.exp(m[0]),
        "pruned": lambda m: math.exp(m[1]),
        "difference": lambda m: math.exp(m[1]) - math.exp(m[0]),
    }
    step = 1e-5
    for model, function in functions.items():
        slope = np.array(
            [(function(means + d) - function(means - d)) / (2 * step) for d in step * np.eye(2)]
        )
        expected = math.sqrt(slope @ covariance @ slope)
        row = next(r for r in rows if (r.metric, r.model) == ("perplexity", model))
        assert row.standard_error == pytest.approx(expected, rel=1e-4)
    nll = next(r for r in rows if (r.metric, r.model) == ("nll", "difference"))
    assert nll.standard_error == pytest.approx(
        (pruned - dense).std(ddof=1) / math.sqrt(11), rel=1e-4
    )


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(
    material: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    task = Perplexity(str(material / "text.jsonl"), length=20, limit=2)
    task.read()
    task.prepare(tokenizer)
    table = ItemTable(2)
    with torch.no_grad():
        table.assign(
            torch.arange(2), task.step(ModelPair(model, None, tokenizer), task.collate([0, 1]))
        )
    rows = task.report(table).results
    assert [row.model for row in rows] == ["pruned", "pruned"]
    assert rows[1].value == pytest.approx(model.config.vocab_size, rel=1e-6)
