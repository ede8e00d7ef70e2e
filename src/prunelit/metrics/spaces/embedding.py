"""How far the embedding h, the hidden state of a token, moves.

The functions take (..., D) embeddings of the dense and of the pruned model, any float type, compute
in float64 and return one float64 value per token, (...,). Zero vectors: see `VectorPair`.
"""

from torch import Tensor

from prunelit.metrics.spaces.token_mean import TokenMean
from prunelit.metrics.spaces.vector_pair import VectorPair


def embedding_pair(dense: Tensor, pruned: Tensor) -> VectorPair:
    """Both embeddings in float64, which costs little at D entries a token.

    Raises:
        InputError: if the shapes differ.
    """
    return VectorPair(dense.double(), pruned.double())


def embedding_cosine(dense: Tensor, pruned: Tensor) -> Tensor:
    """cos(h, h')."""
    return embedding_pair(dense, pruned).cosine


def embedding_parallel(dense: Tensor, pruned: Tensor) -> Tensor:
    """Norm of the part of h' - h along h, relative to the norm of h."""
    return embedding_pair(dense, pruned).parallel


def embedding_orthogonal(dense: Tensor, pruned: Tensor) -> Tensor:
    """Norm of the part of h' - h orthogonal to h, relative to the norm of h."""
    return embedding_pair(dense, pruned).orthogonal


class EmbeddingCosine(TokenMean):
    """Mean of `embedding_cosine` over tokens; update with (..., D) embeddings.

    Args:
        kwargs: see `torchmetrics.Metric`.
    """

    is_differentiable = True
    higher_is_better = True

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return embedding_cosine(dense, pruned)
