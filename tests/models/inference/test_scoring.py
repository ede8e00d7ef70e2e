from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import final_hidden
from prunelit.models.inference import scoring
from prunelit.models.inference.scoring import log_likelihoods, window_nll

MakeModel = Callable[..., PreTrainedModel]


def oracle(model: PreTrainedModel, ids: Tensor) -> np.ndarray:
    """(T - 1,) log-probability of tokens 2 to T of one unpadded sequence, from full logits."""
    logits = model(ids[None]).logits[0].double().numpy()
    return log_softmax(logits, axis=-1)[np.arange(len(ids) - 1), ids[1:].numpy()]


@pytest.fixture(autouse=True)
def _no_grad() -> object:
    with torch.no_grad():
        yield


def test_window_nll_is_the_log_softmax_of_full_logits(
    make_model: MakeModel, family: str, input_ids: Tensor
) -> None:
    model = make_model(family)
    nll = window_nll(model, input_ids)
    assert nll.shape == (6, 19)
    assert nll.dtype == torch.float64
    for row, ids in enumerate(input_ids):
        np.testing.assert_allclose(nll[row].numpy(), -oracle(model, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_do_not_matter(
    model: PreTrainedModel, input_ids: Tensor, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    expected = window_nll(model, input_ids)
    monkeypatch.setattr(scoring, "CHUNK", chunk)
    torch.testing.assert_close(window_nll(model, input_ids), expected, rtol=1e-6, atol=1e-6)


def test_log_likelihoods_stay_float32_under_autocast(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    hidden = final_hidden(model, input_ids, torch.ones_like(input_ids))[:, :-1].flatten(0, 1)
    targets = input_ids[:, 1:].flatten()
    expected = log_likelihoods(model, hidden, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(log_likelihoods(model, hidden, targets), expected)


def test_log_probabilities_of_all_tokens_sum_to_one(model: PreTrainedModel) -> None:
    hidden = torch.randn(1, 32).expand(300, 32)
    total = log_likelihoods(model, hidden, torch.arange(300)).exp().sum().item()
    assert total == pytest.approx(1, abs=1e-6)


def test_several_targets_at_a_position(model: PreTrainedModel, input_ids: Tensor) -> None:
    ids = input_ids[:1]
    full = log_softmax(model(ids).logits[0].double().numpy(), axis=-1)
    hidden = final_hidden(model, ids, torch.ones_like(ids))[0]
    targets = torch.arange(60).view(20, 3)
    scores = log_likelihoods(model, hidden, targets)
    assert scores.dtype == torch.float64
    np.testing.assert_allclose(
        scores.numpy(), np.take_along_axis(full, targets.numpy(), 1), rtol=1e-5
    )


def test_logits_that_are_not_numbers_are_refused(make_model: MakeModel) -> None:
    model = make_model("llama")
    with pytest.raises(InputError, match="LlamaForCausalLM gives NaN"):
        log_likelihoods(model, torch.full((2, 32), torch.nan), torch.tensor([1, 2]))


def test_the_exact_sum_over_a_large_vocabulary_is_in_float64(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = 4 * torch.randn(8, 50_000, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(scoring, "unembed", lambda _, hidden: logits[: len(hidden)])
    targets = torch.arange(8)
    expected = log_softmax(logits.double().numpy(), axis=-1)[targets, targets]
    found = log_likelihoods(model, torch.zeros(8, 32), targets, exact=True)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-7)
