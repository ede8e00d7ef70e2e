import pytest
import torch

from prunelit.metrics.spaces.embedding import (
    EmbeddingCosine,
    embedding_cosine,
    embedding_orthogonal,
    embedding_parallel,
)
from prunelit.metrics.spaces.vector_pair import VectorPair


@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computes_in_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(shape, generator=generator).to(dtype)
    pruned = dense + 0.1 * torch.randn(shape, generator=generator).to(dtype)
    exact = VectorPair(dense.double(), pruned.double())
    for function, expected in (
        (embedding_cosine, exact.cosine),
        (embedding_parallel, exact.parallel),
        (embedding_orthogonal, exact.orthogonal),
    ):
        found = function(dense, pruned)
        assert found.dtype == torch.float64
        assert found.shape == shape[:-1]
        assert torch.equal(found, expected)


def test_metric_is_the_mean_over_tokens() -> None:
    dense = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    pruned = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    metric = EmbeddingCosine()
    metric.update(dense, pruned)
    assert metric.compute().item() == pytest.approx(0, abs=1e-15)
    metric.update(dense[:1], pruned[:1])
    assert metric.compute().item() == pytest.approx(0.25, abs=1e-15)
