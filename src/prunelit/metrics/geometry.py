"""Angles and parts of a perturbation, in any space."""

import torch
from torch import Tensor

from prunelit.metrics.pair import dot


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine over the last dimension.

    Of two zero vectors it is 1 (they are equal), of a zero and another vector 0.

    Args:
        a: (..., N).
        b: (..., N).

    Returns:
        (...), in [-1, 1].
    """
    norms = a.norm(dim=-1), b.norm(dim=-1)
    product = norms[0] * norms[1]
    angle = (dot(a, b) / torch.where(product == 0, 1, product)).clamp(-1, 1)
    return torch.where((norms[0] == 0) & (norms[1] == 0), 1.0, angle)


def parts(a: Tensor, difference: Tensor) -> tuple[Tensor, Tensor]:
    """Norms of the parts of `difference` along and orthogonal to `a`, relative to the norm of `a`.

    Args:
        a: (..., N), not 0.
        difference: (..., N).

    Returns:
        Parallel and orthogonal part, (...) each.
    """
    norm = a.norm(dim=-1)
    along = dot(a, difference) / norm.square()
    # Subtracting squared norms would lose a small orthogonal part to cancellation.
    orthogonal = torch.addcmul(difference, a, along[..., None], value=-1).norm(dim=-1)
    return along.abs(), orthogonal / norm
