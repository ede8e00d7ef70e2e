"""Optimal brain surgeon: remove weights and update the others of the row to compensate."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from prunelit.activations import Gram
from prunelit.errors import InputError
from prunelit.models.finite import all_finite

log = logging.getLogger(__name__)

# Factors of the damping, tried in this order in float32, then in float64.
_LADDER = (1.0, 10.0, 100.0)

# Larger triangular matrices are inverted by halves.
_LEAF = 100

# Number of columns that are updated one by one, before one product updates the rest of the block.
_INNER = 16

# Choose the weights of some columns to keep: (index of the first column, present values (C, O),
# saliencies (C, O)) -> (C, O) bool, True keeps.
Choose = Callable[[int, Tensor, Tensor], Tensor]


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Compute the upper Cholesky factor U of the inverse of a damped Hessian, H^-1 = U^T U.

    If the matrix is not positive definite, the damping is raised, then float64 is tried. A damping
    above the asked one is logged.

    Args:
        gram: (I, I), symmetric; a zero on the diagonal is an input that is always 0.
        damping: lambda, a share of the mean diagonal.

    Returns:
        (I, I), upper triangular, float32.

    Raises:
        InputError: if the matrix is still not positive definite.
    """
    for dtype in (torch.float32, torch.float64):
        diagonal = gram.diagonal().to(dtype)
        for factor in _LADDER:
            # With rows and columns in reverse order, Cholesky gives H = R R^T with R upper. U is
            # the inverse of R, so the less accurate H^-1 is not needed.
            damped = gram.flip(0, 1).to(dtype)
            damped.diagonal()[damped.diagonal() == 0] = 1
            damped.diagonal().add_(factor * damping * diagonal.mean())
            lower, failed = torch.linalg.cholesky_ex(damped)
            if failed or not all_finite(_invert_lower_(lower)):
                continue
            if factor > 1 or dtype is torch.float64:
                log.warning("Damping was raised to %g in %s.", factor * damping, dtype)
            return lower.flip(0, 1).float()
    raise InputError(
        f"The Hessian of the inputs is not positive definite, even with a damping of "
        f"{_LADDER[-1] * damping:g} in float64: give more calibration tokens or raise `damping`."
    )


def shared_factor(statistic: Gram, damping: float) -> tuple[Tensor, Tensor]:
    """Compute the `inverse_factor` of a Gram matrix, once for all maps that read these inputs.

    Returns:
        The factor, (I, I), and a mask of the inputs that are always 0, (I,) bool.
    """
    key = ("factor", damping)
    if key not in statistic.memo:
        gram = statistic.value
        statistic.memo[key] = inverse_factor(gram, damping), gram.diagonal() == 0
    return statistic.memo[key]


def _invert_lower_(matrix: Tensor) -> Tensor:
    """Replace a lower triangular matrix by its inverse.

    It works by halves, so that most of the work is matrix products.
    """
    size, half = len(matrix), len(matrix) // 2
    if size <= _LEAF:
        identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        return matrix.copy_(torch.linalg.solve_triangular(matrix, identity, upper=False))
    first, second = _invert_lower_(matrix[:half, :half]), _invert_lower_(matrix[half:, half:])
    below = matrix[half:, :half]
    # The halves of the first inverse that are not 0 suffice.
    middle = half // 2
    product = torch.cat([below @ first[:, :middle], below[:, middle:] @ first[middle:, middle:]], 1)
    torch.mm(second[: size - half], product, out=below)
    below.neg_()
    return matrix


def compensate(
    weight: Tensor, factor: Tensor, choose: Choose, chunk: int, block_size: int
) -> Tensor:
    """Remove weights column by column and update the columns after (arXiv:2301.00774, alg. 1).

    Args:
        weight: (O, I), float32; not edited.
        factor: (I, I), of `inverse_factor`.
        choose: called once for every `chunk` columns, after the updates of the columns before.
        chunk: number of columns that are chosen together; divides `block_size`.
        block_size: number of columns that are updated first, before one product updates the rest
            of the matrix.

    Returns:
        (O, I), removed entries exactly 0.
    """
    # One column of the weight is one contiguous row here.
    columns = weight.T.contiguous()
    diagonal = factor.diagonal()[:, None]
    # Columns that are chosen together have all earlier updates at that time.
    inner = chunk * max(1, _INNER // chunk) if chunk % _INNER else _INNER
    for begin in range(0, len(columns), block_size):
        end = min(begin + block_size, len(columns))
        # Update of all columns for each unit removed from one: 1 for itself, 0 for those before.
        updates = factor[begin:end] / diagonal[begin:end]
        lost, gone = torch.empty_like(columns[begin:end]), torch.empty_like(columns[begin:end])
        for first in range(begin, end, inner):
            last = min(first + inner, end)
            here = slice(first - begin, last - begin)
            work = columns[first:last]
            rows = zip(
                work.unbind(),
                lost[here].unbind(),
                gone[here].unbind(),
                updates[here, first:last].unbind(),
                strict=True,
            )
            for index, (column, loss, leaves, update) in enumerate(rows, start=first):
                if (index - begin) % chunk == 0:
                    part = slice(index, min(index + chunk, end))
                    saliency = (columns[part] / diagonal[part]).square()
                    gone[index - begin : part.stop - begin] = ~choose(
                        index, columns[part], saliency
                    )
                torch.mul(column, leaves, out=loss)
                work.addr_(update, loss, alpha=-1)
            columns[last:end].addmm_(updates[here, last:end].T, lost[here], alpha=-1)
        columns[end:].addmm_(updates[:, end:].T, lost, alpha=-1)
    return columns.T.contiguous()
