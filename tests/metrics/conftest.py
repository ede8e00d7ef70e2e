from collections.abc import Callable

import pytest
import torch
from torch import Tensor

MakeLogits = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture
def make_logits() -> MakeLogits:
    """`make_logits(shape, step)`: peaked dense logits and pruned ones that differ by about `step`.

    The difference has a mean, which softmax ignores, and grows with the logit.
    """

    def make(
        shape: tuple[int, ...] = (3, 5, 300),
        step: float = 0.5,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        dense = 3 * torch.randn(shape, dtype=torch.float64, generator=generator) - 4
        noise = torch.randn(shape, dtype=torch.float64, generator=generator)
        return dense.to(dtype), (dense + step * (noise + 0.2 * dense)).to(dtype)

    return make
