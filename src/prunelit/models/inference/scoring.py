"""Compute log-likelihoods of given tokens; only the positions that predict them are unembedded."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.metrics.spaces.probability import log_probability
from prunelit.models.architecture import final_hidden, unembed

# Positions to unembed at a time, which bounds the (positions, V) float32 logits.
CHUNK = 128


def log_likelihoods(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, *, exact: bool = False
) -> Tensor:
    """Compute the log-probability of each target token.

    Args:
        model: a causal LM.
        hidden: (N, D), final embeddings of the positions before the targets.
        targets: (N,) token ids, or (N, K) for several targets per position.
        exact: compute in float64. Otherwise all is in float32, as in lm-evaluation-harness: with
            V = 49152 the result is about 1e-5 nats per token too high.

    Returns:
        (N,) or (N, K) float64, nats.

    Raises:
        InputError: if the logits hold NaN.
    """
    pieces = []
    with torch.autocast(hidden.device.type, enabled=False):
        for h, ids in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            logits, columns = unembed(model, h), ids.view(len(ids), -1)
            if exact:
                chosen = log_probability(logits, columns)
            else:
                chosen = logits.log_softmax(1).gather(1, columns).double()
            pieces.append(chosen.view(ids.shape))
    result = torch.cat(pieces)
    check_log_probability(model, result)
    return result


def check_log_probability(model: PreTrainedModel, values: Tensor) -> None:
    """Refuse log-probabilities that are NaN.

    Raises:
        InputError: naming the class of the model.
    """
    if values.isnan().any():
        raise InputError(
            f"Expected numbers as log-probabilities but {type(model).__name__} gives NaN: load it "
            "in another dtype."
        )


def window_nll(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Compute the negative log-likelihood of tokens 2 to L of each window.

    Args:
        model: a causal LM.
        input_ids: (B, L), without padding.

    Returns:
        (B, L - 1) float64, nats.
    """
    hidden = final_hidden(model, input_ids, torch.ones_like(input_ids))[:, :-1]
    scores = log_likelihoods(model, hidden.flatten(0, 1), input_ids[:, 1:].flatten(), exact=True)
    return -scores.view(hidden.shape[:2])
