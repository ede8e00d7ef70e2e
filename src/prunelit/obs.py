"""Optimal brain surgeon: remove weights and let the others of the row make up for it."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from prunelit.errors import InputError

log = logging.getLogger(__name__)

# Damping goes up tenfold a step; in float64 the whole ladder is tried again.
_LADDER = (1.0, 10.0, 100.0)

# Chooses what stays of some columns: (index of the first, their present values (C, O), their
# saliencies (C, O)) -> (C, O) bool.
Choose = Callable[[int, Tensor, Tensor], Tensor]


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor U of the inverse of a damped Hessian, H^-1 = U^T U.

    Where the matrix is not positive definite, damping is raised, then float64 is tried; a value
    above the asked one is logged.

    Args:
        gram: (I, I), symmetric; inputs with a zero diagonal are dead.
        damping: lambda, as a share of the mean diagonal.

    Returns:
        (I, I), upper triangular, float32.

    Raises:
        InputError: if the ladder does not help.
    """
    identity = torch.eye(len(gram), device=gram.device)
    for dtype in (torch.float32, torch.float64):
        diagonal = gram.diagonal().to(dtype)
        for factor in _LADDER:
            # From last to first, Cholesky gives H = R R^T with R upper: U is the inverse of R, and
            # H^-1 itself, which is less accurate, is never formed.
            damped = gram.flip(0, 1).to(dtype)
            damped.diagonal()[damped.diagonal() == 0] = 1
            damped.diagonal().add_(factor * damping * diagonal.mean())
            lower, failed = torch.linalg.cholesky_ex(damped)
            if failed:
                continue
            root = lower.flip(0, 1)
            upper = torch.linalg.solve_triangular(root, identity.to(dtype), upper=True)
            if not torch.isfinite(upper).all():
                continue
            if factor > 1 or dtype is torch.float64:
                log.warning("Damping was raised to %g in %s.", factor * damping, dtype)
            return upper.float()
    raise InputError(
        f"The Hessian of the inputs is not positive definite, even with a damping of "
        f"{_LADDER[-1] * damping:g} in float64: give more calibration tokens or raise `damping`."
    )


def compensate(
    weight: Tensor, factor: Tensor, choose: Choose, chunk: int, block_size: int
) -> Tensor:
    """Remove weights column by column and update the columns after it (arXiv:2301.00774, alg. 1).

    Args:
        weight: (O, I), float32; not edited.
        factor: (I, I), of `inverse_factor`.
        choose: asked once for every `chunk` columns, when the updates of the earlier ones are in.
        chunk: columns that are chosen together; divides `block_size`.
        block_size: columns that are updated one by one before the rest is, by one product.

    Returns:
        (O, I), removed entries exactly 0.
    """
    # One column of the weight is one contiguous row here.
    columns = weight.T.contiguous()
    diagonal = factor.diagonal()[:, None]
    updates = factor / diagonal  # of the later columns, for each unit removed from a column
    for begin in range(0, len(columns), block_size):
        end = min(begin + block_size, len(columns))
        work = columns[begin:end]
        lost, gone = torch.empty_like(work), torch.empty_like(work)
        rows = zip(
            work.unbind(),
            lost.unbind(),
            gone.unbind(),
            updates[begin:end, begin:end].unbind(),
            strict=True,
        )
        for i, (column, loss, leaves, update) in enumerate(rows):
            if i % chunk == 0:
                part = slice(i, min(i + chunk, end - begin))
                saliency = (work[part] / diagonal[begin:end][part]).square()
                gone[part] = ~choose(begin + i, work[part], saliency)
            torch.mul(column, leaves, out=loss)
            work[i + 1 :].addr_(update[i + 1 :], loss, alpha=-1)
        work.masked_fill_(gone.bool(), 0.0)
        columns[end:].addmm_(updates[begin:end, end:].T, lost, alpha=-1)
    return columns.T
