from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.activations import Moments, SquaredNorm, Statistic
from prunelit.errors import InputError
from prunelit.pruners import RIA, DSnoT, Magnitude, Wanda
from prunelit.sparsity import SemiStructured, Sparsity, Unstructured


def exchange(
    weight: np.ndarray, x: np.ndarray, keep: np.ndarray, group: int, steps: int
) -> np.ndarray:
    """Row by row and weight by weight, in float64."""
    mean, variance, norm = x.mean(0), x.var(0), np.sqrt(np.square(x).mean(0))
    keep = keep.copy()
    for row, own in zip(weight, keep, strict=True):
        moved: set[int] = set()
        first = abs((row * mean)[~own].sum())
        for _ in range(steps):
            error = (row * mean)[~own].sum()
            if abs(error) <= 0.1 * first:
                break
            helps = np.sign(error) * row * mean
            columns = [i for i in range(len(row)) if i not in moved]
            away = [j for j in columns if own[j] and helps[j] < 0]
            back = [
                i
                for i in columns
                if not own[i] and helps[i] > 0 and any(i // group == j // group for j in away)
            ]
            if not back:
                break
            comes = max(back, key=lambda i: helps[i] / variance[i])
            goes = min(
                (j for j in away if j // group == comes // group),
                key=lambda j: abs(row[j]) * norm[j],
            )
            if abs(error - row[comes] * mean[comes] + row[goes] * mean[goes]) >= abs(error):
                break
            own[comes], own[goes] = True, False
            moved |= {comes, goes}
    return keep


@pytest.fixture
def layer() -> tuple[np.ndarray, np.ndarray]:
    """Inputs (200, 32) whose means are not 0, and a weight (16, 32)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 32)) * rng.uniform(0.5, 2, 32) + rng.normal(size=32)
    return x, rng.normal(size=(16, 32))


def filled(pruner: DSnoT, x: np.ndarray) -> Statistic:
    statistic = pruner.statistic(torch.nn.Linear(x.shape[1], 1))
    statistic.update(torch.from_numpy(x))
    return statistic


@pytest.mark.parametrize("sparsity", [Unstructured(0.5), SemiStructured(2, 4)])
@pytest.mark.parametrize("steps", [1, 50])
def test_exchanges_are_those_of_plain_code(
    sparsity: Sparsity, steps: int, layer: tuple[np.ndarray, np.ndarray]
) -> None:
    x, weight = layer
    dense, norm = torch.from_numpy(weight).float(), SquaredNorm(32)
    norm.update(torch.from_numpy(x))
    keep = Wanda(sparsity).prune_weight(dense, norm).numpy() != 0
    pruner = DSnoT(sparsity, exchanges=steps)
    found = pruner.prune_weight(dense, filled(pruner, x)).numpy()
    group = sparsity.group if isinstance(sparsity, SemiStructured) else 32
    expected = exchange(weight, x, keep, group, steps)
    np.testing.assert_array_equal(found, np.where(expected, weight, 0).astype(np.float32))
    assert (expected != keep).any(1).sum() >= 8
    assert (expected.reshape(-1, group).sum(1) == group // 2).all()


def test_outputs_keep_their_means(layer: tuple[np.ndarray, np.ndarray]) -> None:
    x, weight = layer
    dense, norm = torch.from_numpy(weight).float(), SquaredNorm(32)
    norm.update(torch.from_numpy(x))
    pruner = DSnoT(Unstructured(0.5))
    after = pruner.prune_weight(dense, filled(pruner, x)).numpy()
    before = Wanda(Unstructured(0.5)).prune_weight(dense, norm).numpy()
    shifts = [np.abs(x.mean(0) @ (weight - pruned).T) for pruned in (before, after)]
    assert (shifts[1] <= shifts[0] + 1e-5).all()
    assert shifts[1].sum() < 0.25 * shifts[0].sum()


def test_the_first_mask_is_that_of_the_method(layer: tuple[np.ndarray, np.ndarray]) -> None:
    """A threshold that every row is below leaves the mask as it is."""
    x, weight = layer
    dense, norm = torch.from_numpy(weight).float(), SquaredNorm(32)
    norm.update(torch.from_numpy(x))
    sparsity = Unstructured(0.5, within="row")
    hessian = x.T @ x / len(x)
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(32)
    saliency = np.square(weight) / np.diag(np.linalg.inv(hessian))
    order = np.argsort(saliency, axis=1)
    kept = np.ones(weight.shape, dtype=bool)
    np.put_along_axis(kept, order[:, :16], False, axis=1)
    expected = {
        "wanda": Wanda(sparsity).prune_weight(dense, norm).numpy() != 0,
        "magnitude": Magnitude(sparsity).prune_weight(dense, norm).numpy() != 0,
        "ria": RIA(sparsity).prune_weight(dense, norm).numpy() != 0,
        "sparsegpt": kept,
    }
    for start, mask in expected.items():
        pruner = DSnoT(sparsity, start=start, threshold=1.0)  # type: ignore[arg-type]
        found = pruner.prune_weight(dense, filled(pruner, x)).numpy()
        np.testing.assert_array_equal(found != 0, mask, err_msg=start)


def test_an_input_that_does_not_vary() -> None:
    statistic = Moments(8)
    statistic.update(torch.ones(5, 8))
    pruned = DSnoT(Unstructured(0.5)).prune_weight(torch.randn(4, 8), statistic)
    assert ((pruned == 0).sum(1) == 4).all()


def test_later_rounds_only_add(
    family: str,
    make_model: Callable[..., PreTrainedModel],
    input_ids: Tensor,
    rounds_only_add: Callable[..., None],
) -> None:
    rounds_only_add(make_model(family), DSnoT(Unstructured(0.7)), input_ids)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"start": "random"}, "`start` wanda, magnitude, ria or sparsegpt but got 'random'"),
        ({"exchanges": 0}, "`exchanges` of at least 1"),
    ],
)
def test_bad_settings(options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        DSnoT(Unstructured(0.5), **options)  # type: ignore[arg-type]
