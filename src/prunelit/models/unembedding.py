"""The unembedding of a pair of models, where both have the same one."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from prunelit.metrics.spaces.logit_gram import LogitGram
from prunelit.models.architecture import logit_factor
from prunelit.models.fingerprint import tensor_state
from prunelit.models.parallel import is_split
from prunelit.models.views import original

# The state of the head of a dense model, and its matrix.
_GRAMS: WeakKeyDictionary[PreTrainedModel, tuple[list[Any], LogitGram]] = WeakKeyDictionary()


@torch.no_grad()
def shared_gram(dense: PreTrainedModel, pruned: PreTrainedModel) -> LogitGram | None:
    """Return the Gram matrix of the unembedding of two models, if it gives their logit space.

    It does where the logits of both are the same linear map of the embedding, in float32: a plain
    `Linear` with equal weights, which may be followed by a scale. Each call compares the weights,
    which takes as long as the logits of a few tokens; the matrix is built once for a dense model.

    Args:
        dense: the reference; its blocks may wait in stores.
        pruned: the model under test.

    Returns:
        None if a head was trained or pruned, has an adapter, caps the logits, has another dtype or
        a weight that is not finite, or if several ranks share it.
    """
    factor = logit_factor(dense)
    heads = [model.get_output_embeddings() for model in (dense, pruned)]
    if factor is None or factor != logit_factor(pruned) or is_split(dense) or is_split(pruned):
        return None
    if not all(_is_plain(head) for head in heads):
        return None
    own, others = ([head.weight, head.bias] for head in heads)  # type: ignore[union-attr]
    for one, other in zip(own, others, strict=True):
        if (one is None) != (other is None):
            return None
        alike = one is None or (one.shape, one.device) == (other.shape, other.device)
        if not (alike and (one is None or torch.equal(one, other))):
            return None
    state = [factor, *(tensor_state(part) for part in own if part is not None)]
    known = _GRAMS.get(original(dense))
    if known is None or known[0] != state:
        known = _GRAMS[original(dense)] = state, LogitGram(*own, scale=factor)
    return known[1] if known[1].finite else None


def _is_plain(head: nn.Module | None) -> bool:
    """Return True for a linear map in float32 that nothing has changed."""
    return (
        type(head) is nn.Linear
        and "forward" not in vars(head)
        and type(head.weight.data) is torch.Tensor
        and head.weight.dtype == torch.float32
    )
