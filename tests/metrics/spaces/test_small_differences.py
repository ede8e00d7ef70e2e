"""Two models that differ by rounding have their true distance, however small it is."""

from collections.abc import Sequence
from decimal import Decimal, localcontext

import pytest
import torch

from prunelit.metrics import deviations
from prunelit.metrics.spaces.probability import log_probability

SIZE = 150  # of the vocabulary


def log_softmax(logits: Sequence[float]) -> list[Decimal]:
    exact = [Decimal(z) for z in logits]
    total = sum(z.exp() for z in exact).ln()
    return [z - total for z in exact]


def divergences(dense: Sequence[float], pruned: Sequence[float]) -> dict[str, float]:
    """With 60 digits, from the definitions."""
    with localcontext() as context:
        context.prec = 60
        log_p, log_q = log_softmax(dense), log_softmax(pruned)
        p, q = [x.exp() for x in log_p], [x.exp() for x in log_q]
        log_m = [((x + y) / 2).ln() for x, y in zip(p, q, strict=True)]
        both = list(zip(p, q, log_p, log_q, log_m, strict=True))
        return {
            "kl_dense_pruned": float(sum(x * (a - b) for x, _, a, b, _ in both)),
            "kl_pruned_dense": float(sum(y * (b - a) for _, y, a, b, _ in both)),
            "js": float(sum(x * (a - m) + y * (b - m) for x, y, a, b, m in both) / 2),
        }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0])
def test_divergences_have_nine_digits(dtype: torch.dtype, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, SIZE, generator=generator, dtype=torch.float64)
    dense = (3 * noise[0]).to(dtype)
    pruned = (dense.double() + size * noise[1]).to(dtype)
    hidden = torch.ones(4)
    found = deviations(hidden, hidden, dense, pruned)
    expected = divergences(dense.tolist(), pruned.tolist())
    assert 0 < expected["kl_dense_pruned"] < 10 * size**2
    assert {name: found[name].item() for name in expected} == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0, 1e-12, 1e-7, 1e-3])
def test_no_cosine_is_above_one_and_equal_logits_have_no_distance(
    dtype: torch.dtype, size: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    dense = (5 * torch.randn(64, 300, generator=generator)).to(dtype)
    pruned = (dense * (1 + size)).to(dtype)
    found = deviations(dense, pruned, dense, pruned, subset=torch.arange(7))
    for name, values in found.items():
        if name.endswith("cosine"):
            assert values.max() <= 1, name
        if name.startswith("kl") or name == "js":
            assert values.min() >= 0, name
    if size == 0:
        assert all((found[name] == 1).all() for name in found if name.endswith("cosine"))
        assert (found["kl_dense_pruned"] == 0).all()
        assert (found["kl_pruned_dense"] == 0).all()
        assert (found["js"] == 0).all()
        assert (found["logit_mse"] == 0).all()


def test_a_log_probability_is_that_of_the_definition() -> None:
    logits = 9 * torch.randn(1, SIZE, generator=torch.Generator().manual_seed(2))
    with localcontext() as context:
        context.prec = 60
        expected = [float(x) for x in log_softmax(logits[0].tolist())]
    found = log_probability(logits, torch.arange(SIZE)[None])
    assert found[0].tolist() == pytest.approx(expected, rel=1e-14)
