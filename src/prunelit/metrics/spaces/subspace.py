"""The logits on a few tokens that differ from row to row: the answer options of questions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prunelit.errors import InputError
from prunelit.metrics.spaces.deviation import logit_deviations
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.topk import top_indices

Subsets = Sequence[Sequence[int]]

SUBSPACE = (
    "logit_cosine",
    "logit_cosine_estimate",
    "logit_std",
    "logit_std_p",
    "probability_cosine",
    "probability_cosine_estimate",
    "kl_dense_pruned",
    "kl_dense_pruned_estimate",
    "kl_pruned_dense",
    "kl_pruned_dense_estimate",
    "top1_agreement",
)


def subspace_deviations(
    dense: Tensor, pruned: Tensor, options: Subsets, *, temperature: float = 1.0
) -> dict[str, Tensor]:
    """Compare logits on the options of each row, with probabilities renormalised among them.

    Where all rows have the same subset, `prunelit.metrics.deviations` gives more of them.

    Args:
        dense: (N, V), logits.
        pruned: (N, V).
        options: N lists of distinct token ids.
        temperature: T of the softmax.

    Returns:
        Name, one of `SUBSPACE`, to (N,) float64; divergences in nats.

    Raises:
        InputError: if the token ids of a row are not distinct or not in [0, V).
    """
    rows = []
    for z, z_pruned, ids in zip(dense, pruned, options, strict=True):
        found = logit_deviations(LogitPair(z, z_pruned, temperature).restrict(torch.tensor(ids)))
        rows.append(torch.stack([found[name] for name in SUBSPACE]))
    return dict(zip(SUBSPACE, torch.stack(rows).unbind(1), strict=True))


def score_options(
    logits: Tensor,
    options: Subsets,
    labels: Sequence[int],
    *,
    width: int,
    top_k: int,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """What one model says on the options, and what else it finds likely.

    Args:
        logits: (N, V).
        options: N lists of distinct token ids.
        labels: N places of the right option.
        width: W, at least the number of options of any row.
        top_k: K, number of top tokens, cut to V.
        temperature: T of the softmax.

    Returns:
        `option_log_likelihood` (N, W), nats, on the full vocabulary, NaN after the last option;
        and (N,) each `prediction`, the place of the most likely option; `acc`, whether it is right;
        `option_mass`, the probability of all options together; `log_likelihood_right` and
        `log_likelihood_wrong`, of the right option and the mean of the others; and the most likely
        tokens, highest first, `top_id` and `top_probability`, (N, min(K, V)).

    Raises:
        InputError: if the logits are not numbers.
    """
    # float32, as everywhere where log-likelihoods are read.
    log_p = (logits / temperature).log_softmax(-1)
    if log_p.isnan().any():
        raise InputError(
            "A model gives NaN where a log-probability is expected: load it in another dtype."
        )
    index = torch.tensor(
        [[*ids, *[-1] * (width - len(ids))] for ids in options], device=logits.device
    )
    scores = log_p.gather(-1, index.clamp(min=0)).double().masked_fill(index < 0, torch.nan)
    label = torch.tensor(labels, device=logits.device)[:, None]
    chosen = scores.masked_fill(index < 0, -torch.inf).argmax(1)
    top = top_indices(logits, top_k)
    return {
        "option_log_likelihood": scores,
        "prediction": chosen,
        "acc": (chosen == label[:, 0]).double(),
        "option_mass": scores.exp().nansum(1),
        "log_likelihood_right": scores.gather(1, label)[:, 0],
        "log_likelihood_wrong": scores.scatter(1, label, torch.nan).nanmean(1),
        "top_id": top,
        "top_probability": log_p.gather(-1, top).exp().double(),
    }
