"""Log-likelihoods of given tokens, unembedding only the positions that are scored."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import final_hidden, unembed

# Positions unembedded at a time: bounds the (positions, V) float32 logits.
CHUNK = 128


def log_likelihoods(model: PreTrainedModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probability of each target token.

    Args:
        model: a causal LM.
        hidden: (N, D), final embeddings of the positions before the targets.
        targets: (N,) token ids, or (N, K) with several a position.

    Returns:
        (N,) or (N, K) float64, nats.

    Raises:
        InputError: if the model's logits are not numbers.
    """
    pieces = []
    with torch.autocast(hidden.device.type, enabled=False):
        for h, ids in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            # float32 log-softmax, as in lm-evaluation-harness: with V = 49152 it lies about 1e-5
            # nats a token above the exact value, the same for dense and pruned.
            scores = unembed(model, h).log_softmax(1)
            pieces.append(scores.gather(1, ids.view(len(ids), -1)).view(ids.shape).double())
    result = torch.cat(pieces)
    if result.isnan().any():
        raise InputError(
            f"Expected numbers as log-probabilities but {type(model).__name__} gives NaN: load it "
            "in another dtype."
        )
    return result


def window_nll(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Negative log-likelihood of tokens 2 to L of each window, given the tokens before.

    Args:
        model: a causal LM.
        input_ids: (B, L), no padding.

    Returns:
        (B, L - 1) float64, nats.
    """
    hidden = final_hidden(model, input_ids, torch.ones_like(input_ids))[:, :-1]
    scores = log_likelihoods(model, hidden.flatten(0, 1), input_ids[:, 1:].flatten())
    return -scores.view(hidden.shape[:2])
