"""The logit space by the Gram matrix of an unembedding, against logits in float64."""

import pytest
import torch
from torch import Tensor

from prunelit.errors import InputError
from prunelit.metrics import LogitGram, deviations
from prunelit.metrics.spaces import logit_gram
from prunelit.metrics.spaces.deviation import LOGIT_SPACE, logit_space_deviations
from prunelit.metrics.spaces.logit_pair import LogitPair


def embeddings(step: float, size: int = 24) -> tuple[Tensor, Tensor]:
    """(50, D) float32, which differ by about `step` of their size."""
    generator = torch.Generator().manual_seed(3)
    dense, noise = torch.randn(2, 50, size, generator=generator, dtype=torch.float64)
    return dense.float(), (dense.float().double() + step * noise).float()


@pytest.fixture
def head() -> tuple[Tensor, Tensor]:
    """Weight (V, D) and bias (V,)."""
    generator = torch.Generator().manual_seed(4)
    return torch.randn(300, 24, generator=generator), torch.randn(300, generator=generator)


@pytest.mark.parametrize("step", [1.0, 1e-3, 1e-6])
@pytest.mark.parametrize(("biased", "scale"), [(False, 1.0), (True, 1.0), (True, 0.3)])
def test_it_is_the_logit_space_of_float64_logits(
    head: tuple[Tensor, Tensor],
    step: float,
    biased: bool,
    scale: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logit_gram, "_ENTRIES", 24 * 70)  # several chunks of the vocabulary
    weight, bias = head
    h, other = embeddings(step)
    pair = LogitGram(weight, bias if biased else None, scale).compare(h, other)
    shift = bias.double() if biased else 0.0
    z, difference = ((x @ weight.double().T) * scale for x in (h.double(), (other.double() - h)))
    z = z + scale * shift
    found = logit_space_deviations(pair)
    norm = z.square().sum(-1)
    share = (z * difference).sum(-1) / norm
    rest = (difference - share[:, None] * z).square().sum(-1) / norm
    expected = {
        "logit_cosine": torch.nn.functional.cosine_similarity(z, z + difference),
        "logit_cosine_estimate": 1 - rest / 2,
        "logit_mse": difference.square().mean(-1),
        "logit_parallel": share.abs(),
        "logit_orthogonal": rest.sqrt(),
        "logit_std": difference.std(-1, correction=0),
    }
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    # 1 - cosine has its digits too: sin^2 / (1 + cosine).
    sine = rest / ((1 + share).square() + rest)
    torch.testing.assert_close(
        pair.vectors.squared_orthogonal / pair.vectors.length.square(), sine, rtol=1e-9, atol=0
    )


def test_a_change_along_the_logits_has_an_orthogonal_part_of_rounding_alone(
    head: tuple[Tensor, Tensor],
) -> None:
    h, _ = embeddings(1.0)
    pair = LogitGram(head[0]).compare(h, 2 * h)
    assert pair.vectors.orthogonal.max() < 1e-14
    assert pair.vectors.parallel.tolist() == pytest.approx([1] * 50, rel=1e-14)
    assert (pair.vectors.cosine - 1).abs().max() < 1e-15


def test_zero_and_short_vectors_are_those_of_logits(head: tuple[Tensor, Tensor]) -> None:
    h, other = embeddings(0.5)
    h[0] = 0
    other[1] = 0
    h[2] = other[2] = 0
    other[3] = 1e-3 * h[3]
    other[4] = h[4]
    z, y = (x.double() @ head[0].double().T for x in (h, other))
    found = logit_space_deviations(LogitGram(head[0]).compare(h, other))
    expected = logit_space_deviations(LogitPair(z, y))
    # The orthogonal part of row 3 is 0: a difference of two squares leaves 1e-8.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-7)
    assert found["logit_cosine"][[0, 1, 2, 4]].tolist() == [0, 0, 1, 1]
    assert found["logit_orthogonal"][[0, 2, 4]].tolist() == [torch.inf, 0, 0]


@pytest.mark.parametrize("step", [0.5, 1e-6, 0.0])
def test_deviations_take_the_logit_space_and_nothing_else_from_it(
    head: tuple[Tensor, Tensor], step: float
) -> None:
    h, other = embeddings(step)
    logits = [x @ head[0].T for x in (h, other)]
    plain = deviations(h, other, *logits, subset=torch.arange(9))
    gram = LogitGram(head[0])
    found = deviations(h, other, *logits, subset=torch.arange(9), gram=gram)
    assert list(found) == list(plain)
    exact = logit_space_deviations(gram.compare(h, other))
    for name, value in plain.items():
        assert torch.equal(found[name], exact.get(name, value)), name
    assert tuple(exact) == LOGIT_SPACE
    if step == 0:
        assert not found["kl_dense_pruned"].any()


def test_refusals(head: tuple[Tensor, Tensor]) -> None:
    weight, bias = head
    gram = LogitGram(weight)
    with pytest.raises(InputError, match=r"embeddings of shape \(N, 24\) but got \(50, 8\)"):
        gram.compare(*embeddings(1.0, size=8))
    with pytest.raises(InputError, match=r"a bias of shape \(V,\) but got \(300, 24\) and \(3,\)"):
        LogitGram(weight, bias[:3])
    z = torch.ones(50, 300)
    with pytest.raises(InputError, match="Expected embeddings of both models with `gram`"):
        deviations(None, None, z, z, gram=gram)
