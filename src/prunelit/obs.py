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
    """The upper Cholesky factor of the inverse of a damped Hessian.

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
    for dtype in (torch.float32, torch.float64):
        hessian = gram.to(dtype)
        diagonal = hessian.diagonal()
        for factor in _LADDER:
            damped = hessian.clone()
            damped.diagonal()[diagonal == 0] = 1
            damped.diagonal().add_(factor * damping * diagonal.mean())
            lower, failed = torch.linalg.cholesky_ex(damped)
            if failed:
                continue
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if failed or not torch.isfinite(upper).all():
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
    diagonal = factor.diagonal()
    for begin in range(0, len(columns), block_size):
        end = min(begin + block_size, len(columns))
        work = columns[begin:end]
        inner = factor[begin:end, begin:end]
        errors = torch.empty_like(work)
        keep = torch.empty_like(work, dtype=torch.bool)
        for i, scale in enumerate(diagonal[begin:end].tolist()):
            if i % chunk == 0:
                part = work[i : i + chunk]
                saliency = (part / diagonal[begin + i : begin + i + len(part), None]).square()
                keep[i : i + chunk] = choose(begin + i, part, saliency)
            torch.div(work[i].masked_fill(keep[i], 0.0), scale, out=errors[i])
            work[i].masked_fill_(~keep[i], 0.0)
            work[i + 1 :].addr_(inner[i, i + 1 :], errors[i], alpha=-1)
        columns[end:].addmm_(factor[begin:end, end:].T, errors, alpha=-1)
    return columns.T
