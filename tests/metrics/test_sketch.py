"""Streaming statistics, compared with NumPy on all values at once."""

import numpy as np
import pytest
import torch
from torch import Tensor

from prunelit.metrics.sketch import Sketch

SHARES = [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0]


def drawn(seed: int, sign: bool = False) -> Tensor:
    """(50, 3, 7), of very different sizes, with gaps: place 2 has no token in most items."""
    rng = np.random.default_rng(seed)
    values = np.exp(rng.normal(-3, 3, size=(50, 3, 7)))
    if sign:
        values *= rng.choice([-1, 1], size=values.shape)
    values[rng.random(values.shape) < 0.2] = np.nan
    values[5:, 2] = np.nan
    values[0, 0, 0] = 0
    return torch.from_numpy(values)


@pytest.mark.parametrize("sign", [False, True])
def test_equals_numpy_for_any_batches(sign: bool) -> None:
    values = drawn(0, sign)
    sketch = Sketch(3)
    for piece in values.split(7):
        sketch.update(piece)
    for place in range(3):
        x = values[:, place].numpy()
        items = np.array([row[~np.isnan(row)].mean() for row in x if not np.isnan(row).all()])
        tokens = x[~np.isnan(x)]
        assert sketch.n[place] == len(items)
        assert sketch.tokens[place] == len(tokens)
        close = pytest.approx
        assert sketch.mean[place].item() == close(items.mean(), rel=1e-12)
        error = items.std(ddof=1) / len(items) ** 0.5
        assert sketch.standard_error[place].item() == close(error, rel=1e-9)
        error = tokens.std(ddof=1) / len(tokens) ** 0.5
        assert sketch.token_error[place].item() == close(error, rel=1e-9)
        assert sketch.rms[place].item() == close((tokens**2).mean() ** 0.5, rel=1e-12)
        assert sketch.lowest[place].item() == tokens.min()
        assert sketch.highest[place].item() == tokens.max()
        expected = np.quantile(tokens, SHARES, method="inverted_cdf")
        found = sketch.quantiles(SHARES)[:, place].numpy()
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e-13, 1e-9, 1.0, 1e12, 1e290])
@pytest.mark.parametrize("sign", [1, -1])
def test_quantiles_of_values_of_any_size(scale: float, sign: int) -> None:
    values = sign * scale * torch.linspace(1, 100, 1000, dtype=torch.float64)
    sketch = Sketch(1)
    sketch.update(values[None, None])
    expected = np.quantile(values.numpy(), SHARES, method="inverted_cdf")
    np.testing.assert_allclose(sketch.quantiles(SHARES)[:, 0].numpy(), expected, rtol=0.02, atol=0)


def test_zeros_and_the_smallest_number_are_told_apart() -> None:
    sketch = Sketch(2)
    tiny = 5e-324
    values = torch.tensor([[[0.0, tiny, 1e-12, 1.0], [-1.0, -tiny, 0.0, tiny]]]).double()
    values[0, 0, 1], values[0, 1, 1], values[0, 1, 3] = tiny, -tiny, tiny
    sketch.update(values)
    found = sketch.quantiles([0.25, 0.5, 0.75, 1])
    assert found[0, 0] == 0
    assert 0 < found[1, 0] < 1e-300
    assert found[2, 0].item() == pytest.approx(1e-12, rel=0.02)
    assert found[1, 1] <= 0 == found[2, 1]


def test_near_one_resolves_the_distance_to_one() -> None:
    values = 1 - drawn(1).clamp(max=2)
    sketch = Sketch.of("embedding_cosine", 3)
    assert sketch.near_one
    sketch.update(values)
    tokens = values[:, 0][~values[:, 0].isnan()].numpy()
    expected = np.quantile(1 - tokens, SHARES[1:-1], method="inverted_cdf")[::-1]
    found = 1 - sketch.quantiles([1 - share for share in SHARES[1:-1]][::-1])[:, 0].numpy()
    # Quantiles of 1 - x count from the other side, at most one token further.
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=0.1)
    assert not Sketch.of("kl_dense_pruned", 3).near_one


def test_merged_sketches_equal_one_sketch_of_all_values() -> None:
    values = drawn(2, sign=True)
    whole, first, second = Sketch(3), Sketch(3), Sketch(3)
    whole.update(values)
    first.update(values[:20])
    second.update(values[20:])
    first.merge(second)
    first.merge(Sketch(3))
    for name in ("n", "tokens", "lowest", "highest"):
        assert torch.equal(getattr(first, name), getattr(whole, name)), name
    for name in ("mean", "standard_error", "token_error", "rms"):
        torch.testing.assert_close(getattr(first, name), getattr(whole, name), rtol=1e-12, atol=0)
    assert torch.equal(first.quantiles(SHARES), whole.quantiles(SHARES))


def test_places_without_tokens_have_no_value() -> None:
    sketch = Sketch(2)
    sketch.update(torch.tensor([[[1.0, 2.0], [torch.nan, torch.nan]]]))
    for value in (sketch.mean, sketch.lowest, sketch.highest, sketch.quantiles([0.5])[0]):
        assert value.isnan().tolist() == [False, True]
    assert sketch.standard_error.isnan().all()  # a single item


def test_infinite_values_are_infinite() -> None:
    sketch = Sketch(1)
    sketch.update(torch.tensor([[[torch.inf]], [[1.0]]]))
    assert sketch.mean.item() == torch.inf
    assert sketch.highest.item() == torch.inf
    assert sketch.quantiles([0.5]).item() == pytest.approx(1, rel=0.02)


def test_infinite_and_huge_values_are_in_the_quantiles() -> None:
    sketch = Sketch(1)
    sketch.update(torch.tensor([[[1.0, torch.inf, torch.inf, torch.inf]]], dtype=torch.float64))
    assert sketch.quantiles([0.25, 0.5, 0.99])[:, 0].tolist() == pytest.approx(
        [1, torch.inf, torch.inf], rel=0.02
    )
    huge = torch.linspace(1e5, 1e6, 1001, dtype=torch.float64)
    sketch = Sketch(1)
    sketch.update(huge[None, None])
    assert sketch.quantiles([0.5])[0, 0].item() == pytest.approx(5.5e5, rel=0.02)
    sketch.update(-torch.full((1, 1, 2000), torch.inf, dtype=torch.float64))
    assert sketch.quantiles([0.5])[0, 0].item() == -torch.inf
