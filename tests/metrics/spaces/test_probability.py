import math

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from prunelit.errors import InputError
from prunelit.metrics.spaces import buffers
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.probability import (
    ProbabilityCosine,
    ProbabilityKL,
    Top1Agreement,
    js,
    kl,
    log_probability,
    probability_cosine,
    top1_agreement,
    topk_overlap,
)

INF = math.inf


def probabilities(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    return scipy.special.softmax(logits.double().numpy() / temperature, axis=-1)


@pytest.mark.parametrize("shape", [(300,), (4, 300), (2, 3, 300), (4, 30_000)])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("step", [0.01, 0.5, 3.0])
def test_divergences_against_scipy(
    make_logits, shape: tuple[int, ...], temperature: float, step: float
) -> None:
    dense, pruned = make_logits(shape, step)
    pair = LogitPair(dense, pruned, temperature)
    p, q = (probabilities(x, temperature).reshape(-1, shape[-1]) for x in (dense, pruned))
    jensen = scipy.spatial.distance.jensenshannon(p, q, axis=-1) ** 2
    cosine = [1 - scipy.spatial.distance.cosine(a, b) for a, b in zip(p, q, strict=True)]
    for found, expected in (
        (kl(pair, "dense_pruned"), scipy.stats.entropy(p, q, axis=-1)),
        (kl(pair, "pruned_dense"), scipy.special.rel_entr(q, p).sum(-1)),
        (js(pair), jensen),
        (probability_cosine(pair), cosine),
    ):
        assert found.dtype == torch.float64
        assert found.shape == shape[:-1]
        np.testing.assert_allclose(found.reshape(-1).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_float64_is_exact_to_many_digits(make_logits) -> None:
    dense, pruned = make_logits(step=1e-4, dtype=torch.float64)
    pair = LogitPair(dense, pruned)
    p, q = probabilities(dense), probabilities(pruned)
    expected = scipy.special.rel_entr(p, q).sum(-1)
    assert expected.max() < 1e-6
    np.testing.assert_allclose(kl(pair, "dense_pruned").numpy(), expected, rtol=0, atol=1e-14)
    jensen = (scipy.special.rel_entr(p, (p + q) / 2) + scipy.special.rel_entr(q, (p + q) / 2)) / 2
    np.testing.assert_allclose(js(pair).numpy(), jensen.sum(-1), rtol=0, atol=1e-14)


def test_log_probability_is_that_of_float64(make_logits, monkeypatch) -> None:
    monkeypatch.setattr(buffers, "_CPU_ENTRIES", 2 * 300)
    logits, _ = make_logits((5, 300))
    ids = torch.tensor([[0, 7], [299, 299], [5, 6], [1, 2], [30, 40]])
    expected = (logits.double() / 0.7).log_softmax(-1).gather(-1, ids)
    found = log_probability(logits, ids, temperature=0.7)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)
    logits[1, 3] = torch.nan
    assert log_probability(logits, ids).isnan().any(-1).tolist() == [False, True, *[False] * 3]


def test_jensen_shannon_of_distant_distributions() -> None:
    dense, pruned = (torch.tensor(z).double() for z in ([21.0, 0.0, 3.0], [0.0, 22.0, 4.0]))
    p, q = probabilities(dense), probabilities(pruned)
    expected = scipy.spatial.distance.jensenshannon(p, q) ** 2
    assert js(LogitPair(dense, pruned)).item() == pytest.approx(expected, rel=1e-13)


def test_one_token_counts_as_in_a_batch(make_logits) -> None:
    # `batchmean` of torch's kl_div divides a (V,) tensor by V.
    dense, pruned = make_logits((4, 300))
    for direction in ("dense_pruned", "pruned_dense"):
        batch = kl(LogitPair(dense, pruned), direction)
        alone = [kl(LogitPair(*rows), direction) for rows in zip(dense, pruned, strict=True)]
        assert batch.min() > 0.01
        torch.testing.assert_close(torch.stack(alone), batch)


def test_direction_names_the_weights() -> None:
    dense = torch.tensor([0.9, 0.05, 0.05]).log()
    pruned = torch.tensor([0.5, 0.25, 0.25]).log()
    pair = LogitPair(dense, pruned)
    forward = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.05 / 0.25)
    backward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.25 / 0.05)
    assert kl(pair, "dense_pruned").item() == pytest.approx(forward, abs=1e-6)
    assert kl(pair, "pruned_dense").item() == pytest.approx(backward, abs=1e-6)
    swapped = LogitPair(pruned, dense)
    assert kl(swapped, "pruned_dense").item() == pytest.approx(forward, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_equal_logits_are_exactly_equal(make_logits, dtype, temperature: float) -> None:
    dense, _ = make_logits((6, 30_000), dtype=dtype)
    pair = LogitPair(dense, dense.clone(), temperature)
    for zero in (kl(pair, "dense_pruned"), kl(pair, "pruned_dense"), js(pair)):
        assert (zero == 0).all()
    for one in (probability_cosine(pair), top1_agreement(pair), topk_overlap(pair, 10)):
        assert (one == 1).all()


def test_divergences_are_never_negative(make_logits) -> None:
    for step in (1e-7, 1e-6, 1e-5, 1e-4):
        pair = LogitPair(*make_logits((20, 3000), step))
        for value in (kl(pair, "dense_pruned"), kl(pair, "pruned_dense"), js(pair)):
            assert (value >= 0).all()
            assert (value < 1e-6).all()


def test_a_common_shift_changes_nothing(make_logits) -> None:
    dense, _ = make_logits()
    pair = LogitPair(dense, dense + 8)
    for value in (kl(pair, "dense_pruned"), kl(pair, "pruned_dense"), js(pair)):
        assert (value < 2e-6).all()
    torch.testing.assert_close(probability_cosine(pair), torch.ones(3, 5).double())


def test_opposite_certainties() -> None:
    pair = LogitPair(torch.tensor([300.0, 0.0, 0.0]), torch.tensor([0.0, 300.0, 0.0]))
    assert kl(pair, "dense_pruned").item() == pytest.approx(300)
    assert js(pair).item() == pytest.approx(math.log(2), rel=1e-4)
    assert probability_cosine(pair).item() == pytest.approx(0, abs=1e-100)
    assert top1_agreement(pair) == 0


def test_tokens_that_both_models_exclude_count_for_nothing(make_logits) -> None:
    dense, pruned = make_logits((4, 300), dtype=torch.float64)
    kept = LogitPair(dense[:, 50:].clone(), pruned[:, 50:].clone())
    dense[:, :50] = pruned[:, :50] = -INF
    pair = LogitPair(dense, pruned)
    for direction in ("dense_pruned", "pruned_dense"):
        torch.testing.assert_close(kl(pair, direction), kl(kept, direction))
    torch.testing.assert_close(js(pair), js(kept))
    torch.testing.assert_close(probability_cosine(pair), probability_cosine(kept))
    torch.testing.assert_close(topk_overlap(pair, 5), topk_overlap(kept, 5))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_token_that_one_model_excludes(make_logits, temperature: float) -> None:
    dense, pruned = make_logits((3, 40))
    pruned[0, 7] = -INF
    dense[1, 9] = -INF
    pair = LogitPair(dense, pruned, temperature)
    p, q = probabilities(dense, temperature), probabilities(pruned, temperature)
    forward, backward = kl(pair, "dense_pruned").numpy(), kl(pair, "pruned_dense").numpy()
    np.testing.assert_allclose(forward, scipy.special.rel_entr(p, q).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(backward, scipy.special.rel_entr(q, p).sum(-1), rtol=1e-5)
    assert np.isinf(forward).tolist() == [True, False, False]
    assert np.isinf(backward).tolist() == [False, True, False]
    jensen = scipy.spatial.distance.jensenshannon(p, q, axis=-1) ** 2
    np.testing.assert_allclose(js(pair).numpy(), jensen, rtol=1e-5)
    cosine = [1 - scipy.spatial.distance.cosine(a, b) for a, b in zip(p, q, strict=True)]
    np.testing.assert_allclose(probability_cosine(pair).numpy(), cosine, rtol=1e-5)


def test_excluding_a_token_is_infinite_however_improbable_it_was() -> None:
    # Its dense probability, e^-800, is 0 in float64.
    pair = LogitPair(torch.tensor([0.0, -800.0]), torch.tensor([0.0, -INF]))
    assert kl(pair, "dense_pruned") == INF
    assert kl(pair, "pruned_dense") == 0
    assert js(pair) == 0


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("shape", [(300,), (4, 300), (2, 3, 300)])
def test_ranks_against_numpy(make_logits, shape: tuple[int, ...], k: int) -> None:
    dense, pruned = make_logits(shape)
    pair = LogitPair(dense, pruned)
    z, y = (np.argsort(-x.numpy().reshape(-1, shape[-1]), axis=-1) for x in (dense, pruned))
    overlap = [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(z, y, strict=True)]
    assert topk_overlap(pair, k).shape == shape[:-1]
    np.testing.assert_allclose(topk_overlap(pair, k).reshape(-1).numpy(), overlap)
    np.testing.assert_array_equal(top1_agreement(pair).reshape(-1).numpy(), z[:, 0] == y[:, 0])


def test_agreement_of_equal_logits_is_that_of_argmax() -> None:
    # bfloat16 logits often tie, and argmax takes the first of them.
    dense, pruned = torch.tensor([[1.0, 5.0, 2.0, 5.0]]), torch.tensor([[1.0, 5.0, 2.0, 6.0]])
    assert top1_agreement(LogitPair(dense, pruned)) == 0
    assert top1_agreement(LogitPair(dense, torch.tensor([[1.0, 6.0, 2.0, 5.0]]))) == 1


def test_overlap_of_fewer_tokens_than_k(make_logits) -> None:
    assert (topk_overlap(LogitPair(*make_logits((4, 3))), 5) == 1).all()


def test_bfloat16_logits_are_compared_in_float64(make_logits) -> None:
    dense, pruned = make_logits(dtype=torch.bfloat16)
    low, high = LogitPair(dense, pruned), LogitPair(dense.double(), pruned.double())
    assert torch.equal(kl(low, "dense_pruned"), kl(high, "dense_pruned"))
    assert torch.equal(js(low), js(high))


@pytest.mark.parametrize("direction", ["dense_pruned", "pruned_dense"])
def test_kl_metric(make_logits, direction) -> None:
    dense, pruned = make_logits()
    metric = ProbabilityKL(direction, temperature=0.5)
    metric.update(dense, pruned)
    expected = kl(LogitPair(dense, pruned, 0.5), direction).mean()
    torch.testing.assert_close(metric.compute(), expected)


def test_cosine_and_agreement_metrics(make_logits) -> None:
    dense, pruned = make_logits()
    cosine, agreement = ProbabilityCosine(temperature=0.5), Top1Agreement()
    cosine.update(dense, pruned)
    agreement.update(dense, pruned)
    expected = probability_cosine(LogitPair(dense, pruned, 0.5)).mean()
    torch.testing.assert_close(cosine.compute(), expected)
    share = (dense.argmax(-1) == pruned.argmax(-1)).double().mean()
    assert 0 < share < 1
    torch.testing.assert_close(agreement.compute(), share)


def test_other_directions_are_refused(make_logits) -> None:
    message = 'Expected `direction` "dense_pruned" or "pruned_dense" but got \'forward\''
    with pytest.raises(InputError, match=message):
        ProbabilityKL("forward")  # type: ignore[arg-type]
    message = "Expected `direction` of kl as 'dense_pruned' or 'pruned_dense' but got 'forward'"
    with pytest.raises(InputError, match=message):
        kl(LogitPair(*make_logits()), "forward")  # type: ignore[arg-type]
