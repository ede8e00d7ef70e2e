"""Measure how far the embedding h, the final hidden state of a token, moves.

The functions take (..., D) embeddings of the dense and of the pruned model in any float type. They
compute in float64 and return one float64 value per token, (...,). `VectorPair` defines the values
for zero vectors.
"""

from torch import Tensor

from prunelit.arguments import checked
from prunelit.metrics.spaces.token_mean import TokenMean
from prunelit.metrics.spaces.vector_pair import VectorPair


def embedding_pair(dense: Tensor, pruned: Tensor) -> VectorPair:
    """Pair two embeddings.

    Raises:
        InputError: if the shapes differ.
    """
    return VectorPair(dense, pruned)


@checked
def embedding_cosine(dense: Tensor, pruned: Tensor) -> Tensor:
    """Cosine similarity of the embeddings, in [-1, 1]; 1 means no change of direction.

    Formula:
        ``cos(h, h') = <h, h'> / (|h| |h'|)``

    Source:
        arXiv:2603.24652, embedding space.

    Args:
        dense: (..., D), embeddings h of the dense model.
        pruned: (..., D), embeddings h' of the pruned model.

    Returns:
        (...,) float64, one value per token.

    Raises:
        InputError: if the shapes differ.

    Example:
        >>> import torch
        >>> from prunelit.metrics import embedding_cosine
        >>> embedding_cosine(torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0]))
        tensor(0.9600, dtype=torch.float64)
    """
    return embedding_pair(dense, pruned).cosine


@checked
def embedding_parallel(dense: Tensor, pruned: Tensor) -> Tensor:
    """Length of the change along the dense embedding, relative to its norm; 0 means none.

    Formula:
        ``|<h' - h, h>| / |h|^2``

    Source:
        arXiv:2603.24652: the part of the change that leaves the cosine as it is.

    Args:
        dense: (..., D), embeddings h of the dense model.
        pruned: (..., D), embeddings h' of the pruned model.

    Returns:
        (...,) float64, one value per token, without a unit.

    Raises:
        InputError: if the shapes differ.

    Example:
        >>> import torch
        >>> from prunelit.metrics import embedding_parallel
        >>> embedding_parallel(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 1.0]))
        tensor(0.5000, dtype=torch.float64)
    """
    return embedding_pair(dense, pruned).parallel


@checked
def embedding_orthogonal(dense: Tensor, pruned: Tensor) -> Tensor:
    """Length of the change orthogonal to the dense embedding, relative to its norm; 0 means none.

    Formula:
        ``|dh - h <dh, h> / |h|^2| / |h|`` with ``dh = h' - h``

    Source:
        arXiv:2603.24652: the part of the change that lowers the cosine.

    Args:
        dense: (..., D), embeddings h of the dense model.
        pruned: (..., D), embeddings h' of the pruned model.

    Returns:
        (...,) float64, one value per token, without a unit.

    Raises:
        InputError: if the shapes differ.

    Example:
        >>> import torch
        >>> from prunelit.metrics import embedding_orthogonal
        >>> embedding_orthogonal(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 1.0]))
        tensor(0.5000, dtype=torch.float64)
    """
    return embedding_pair(dense, pruned).orthogonal


class EmbeddingCosine(TokenMean):
    """Mean of `embedding_cosine` over tokens, in [-1, 1]; 1 means no change, higher is better.

    Formula:
        ``mean over tokens of cos(h, h')``

    Source:
        arXiv:2603.24652, embedding space.

    Args:
        kwargs: see `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from prunelit.metrics import EmbeddingCosine
        >>> metric = EmbeddingCosine()
        >>> dense = torch.tensor([[3.0, 4.0], [1.0, 0.0]])  # two tokens, D = 2
        >>> pruned = torch.tensor([[4.0, 3.0], [2.0, 0.0]])
        >>> metric.update(dense, pruned)
        >>> metric.compute()
        tensor(0.9800, dtype=torch.float64)
    """

    is_differentiable = True
    higher_is_better = True

    def token_values(self, dense: Tensor, pruned: Tensor) -> Tensor:
        return embedding_cosine(dense, pruned)
