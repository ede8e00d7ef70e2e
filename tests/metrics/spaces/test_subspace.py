"""Logits of the options of each question, compared with NumPy row by row."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from prunelit import InputError
from prunelit.metrics import deviations
from prunelit.metrics.spaces.subspace import SUBSPACE, score_options, subspace_deviations

OPTIONS = [[5, 9, 200], [7, 3], [299, 0, 1, 2]]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_comparison_is_that_of_the_renormalised_options(
    make_logits: Callable, temperature: float
) -> None:
    dense, pruned = make_logits((3, 300))
    found = subspace_deviations(dense, pruned, OPTIONS, temperature=temperature)
    assert tuple(found) == SUBSPACE
    for row, ids in enumerate(OPTIONS):
        z, w = dense[row, ids].double().numpy(), pruned[row, ids].double().numpy()
        p, q = softmax(z / temperature), softmax(w / temperature)
        expected = {
            "logit_cosine": z @ w / np.linalg.norm(z) / np.linalg.norm(w),
            "logit_std": (w - z).std(),
            "logit_std_p": np.sqrt(p @ (w - z - p @ (w - z)) ** 2),
            "kl_dense_pruned_estimate": p @ (w - z - p @ (w - z)) ** 2 / 2 / temperature**2,
            "kl_pruned_dense_estimate": q @ (w - z - q @ (w - z)) ** 2 / 2 / temperature**2,
            "probability_cosine": p @ q / np.linalg.norm(p) / np.linalg.norm(q),
            "kl_dense_pruned": (p * np.log(p / q)).sum(),
            "kl_pruned_dense": (q * np.log(q / p)).sum(),
            "top1_agreement": float(z.argmax() == w.argmax()),
        }
        for name, value in expected.items():
            assert float(found[name][row]) == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_one_subset_for_all_rows_is_that_of_deviations(make_logits: Callable) -> None:
    dense, pruned = make_logits((6, 300))
    ids = [4, 250, 8, 77]
    found = subspace_deviations(dense, pruned, [ids] * 6)
    every = deviations(dense, pruned, dense, pruned, subset=torch.tensor(ids))
    for name in SUBSPACE:
        torch.testing.assert_close(found[name], every[f"subspace_{name}"])


def test_scores_of_one_model(make_logits: Callable) -> None:
    logits, _ = make_logits((3, 300))
    labels = [2, 0, 1]
    found = score_options(logits, OPTIONS, labels, width=5, top_k=4, temperature=0.8)
    for row, (ids, label) in enumerate(zip(OPTIONS, labels, strict=True)):
        log_p = log_softmax(logits[row].double().numpy() / 0.8)
        own = log_p[ids]
        scores = found["option_log_likelihood"][row]
        np.testing.assert_allclose(scores[: len(ids)], own, rtol=1e-5)
        assert scores[len(ids) :].isnan().all()
        assert found["prediction"][row] == own.argmax()
        assert found["acc"][row] == float(own.argmax() == label)
        assert float(found["option_mass"][row]) == pytest.approx(np.exp(own).sum(), rel=1e-5)
        assert float(found["log_likelihood_right"][row]) == pytest.approx(own[label], rel=1e-5)
        wrong = np.delete(own, label).mean()
        assert float(found["log_likelihood_wrong"][row]) == pytest.approx(wrong, rel=1e-5)
        top = np.argsort(-log_p)[:4]
        assert found["top_id"][row].tolist() == top.tolist()
        np.testing.assert_allclose(found["top_probability"][row], np.exp(log_p[top]), rtol=1e-5)


def test_an_option_that_is_excluded_is_not_chosen(make_logits: Callable) -> None:
    logits, _ = make_logits((3, 300))
    logits[1, 7] = -torch.inf
    found = score_options(logits, OPTIONS, [0, 0, 0], width=4, top_k=1)
    assert found["prediction"][1] == 1
    assert found["log_likelihood_right"][1] == -torch.inf


def test_a_model_without_numbers_is_refused(make_logits: Callable) -> None:
    logits, _ = make_logits((3, 300))
    logits[2, 40] = torch.nan
    with pytest.raises(InputError, match="log-probabilities but got NaN"):
        score_options(logits, OPTIONS, [0, 0, 0], width=4, top_k=1)


def test_options_that_share_a_token_are_refused(make_logits: Callable) -> None:
    dense, pruned = make_logits((1, 300))
    with pytest.raises(InputError, match="distinct"):
        subspace_deviations(dense, pruned, [[4, 4]])
