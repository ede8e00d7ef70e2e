"""Reconstruction of a linear map: its error by the Gram matrix, and the best weights of a mask."""

import torch
from torch import Tensor

from prunelit.activations import Gram
from prunelit.errors import InputError

# Up to so many inputs, the best weights are solved for row by row; above, by iteration.
_DIRECT = 512

_ENTRIES = 2**24  # of the matrices that are factorised together

# Iterations of conjugate gradients, at most, and the residual at which a row is done.
_STEPS, _RESIDUAL = 100, 1e-4


def unit_gram(statistic: Gram, damping: float) -> tuple[Tensor, Tensor]:
    """Scale a Gram matrix to a diagonal of 1 and damp it, once for all maps that read these inputs.

    With the weights times `scale`, it gives the error of the same outputs. Its condition does not
    depend on the size of the inputs.

    Args:
        statistic: the inputs.
        damping: added to the diagonal.

    Returns:
        The matrix, (I, I), and `scale`, (I,), root mean squares of the inputs. An input that is
        always 0 has a scale of 0.
    """
    key = ("unit", damping)
    if key not in statistic.memo:
        gram = statistic.value
        scale = gram.diagonal().sqrt()
        inverse = torch.where(scale > 0, 1 / scale, 0.0)
        gram = gram.mul_(inverse).mul_(inverse[:, None])
        gram.fill_diagonal_(1 + damping)
        statistic.memo[key] = gram, scale
    return statistic.memo[key]


def squared_error(gram: Tensor, change: Tensor) -> float:
    """Sum the squared errors of all outputs of a map whose weights change, (O, I)."""
    return float(((change @ gram) * change).sum(dtype=torch.float64))


def solve_on_support(gram: Tensor, weight: Tensor, keep: Tensor, start: Tensor) -> Tensor:
    """Find the weights of a mask whose outputs are nearest to those of `weight`.

    Each row w solves ``min (w - p) H (w - p)^T`` over p that are 0 outside its mask. Few inputs are
    solved for exactly, by Cholesky. Many would take rows times I^3 operations: there, conjugate
    gradients run for all rows at once, until the residual of each is 1e-4 of its right side, or for
    100 iterations.

    Args:
        gram: H, (I, I), positive definite.
        weight: w, (O, I).
        keep: (O, I) bool, True keeps.
        start: (O, I), where the iterations begin.

    Returns:
        (O, I), entries outside the mask exactly 0.
    """
    right = (weight @ gram) * keep
    if len(gram) > _DIRECT:
        return _iterate(gram, right, keep, start * keep)
    rows = max(1, _ENTRIES // gram.numel())
    parts = zip(right.split(rows), keep.split(rows), strict=True)
    return torch.cat([_solve(gram, *part) for part in parts])


def _solve(gram: Tensor, right: Tensor, keep: Tensor) -> Tensor:
    """Solve on the support directly; outside of it the matrix is the identity."""
    matrix = gram * (keep[:, :, None] & keep[:, None, :])
    matrix.diagonal(dim1=1, dim2=2).masked_fill_(~keep, 1.0)
    return torch.cholesky_solve(right[:, :, None], factorise(matrix))[:, :, 0] * keep


def factorise(matrix: Tensor) -> Tensor:
    """Return the lower Cholesky factor of a damped Gram matrix, or of several.

    Raises:
        InputError: if the damping is too small for float32.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed.any():
        raise InputError(
            "The Gram matrix of the inputs is not positive definite: give more calibration tokens "
            "or raise `damping`."
        )
    return factor


def _iterate(gram: Tensor, right: Tensor, keep: Tensor, found: Tensor) -> Tensor:
    """Solve on the support by conjugate gradients, each row with its own step."""
    tiny = torch.finfo(gram.dtype).tiny
    left = right - (found @ gram) * keep
    direction, size = left, left.square().sum(1)
    limit = _RESIDUAL**2 * right.square().sum(1)
    for _ in range(_STEPS):
        if (size <= limit).all():
            break
        image = (direction @ gram) * keep
        step = size / (direction * image).sum(1).clamp(min=tiny)
        found = found + step[:, None] * direction
        left = left - step[:, None] * image
        before, size = size, left.square().sum(1)
        direction = left + (size / before.clamp(min=tiny))[:, None] * direction
    return found
