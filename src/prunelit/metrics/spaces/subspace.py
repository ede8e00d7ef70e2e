"""Compare the logits of the answer options of questions, a few tokens each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import InputError
from prunelit.metrics.spaces.deviation import logit_deviations
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.probability import log_probability
from prunelit.metrics.spaces.topk import top_indices
from prunelit.metrics.spaces.vector_pair import check_shapes

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


@checked
def subspace_deviations(
    dense: Tensor, pruned: Tensor, options: Subsets, *, temperature: float = 1.0
) -> dict[str, Tensor]:
    """Compare the logits of each question's options, with probabilities renormalised among them.

    If all questions have the same options, `prunelit.metrics.deviations` gives more quantities.

    Formula:
        See the function of each quantity; V is the number of options.

    Source:
        arXiv:2603.24652, subspace analysis.

    Args:
        dense: (N, V), logits.
        pruned: (N, V).
        options: N lists of distinct token ids.
        temperature: T of the softmax.

    Returns:
        Name, one of `SUBSPACE`, to (N,) float64; divergences in nats.

    Raises:
        InputError: if the shapes do not fit, there is no question, or the token ids of a question
            are not distinct or not in [0, V).

    Example:
        >>> import torch
        >>> from prunelit.metrics import subspace_deviations
        >>> dense = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])  # two questions, V = 3
        >>> pruned = torch.tensor([[2.0, 1.0, 9.0], [0.0, 1.0, 2.0]])
        >>> subspace_deviations(dense, pruned, options=[[0, 1], [1, 2]])["kl_dense_pruned"]
        tensor([0., 0.], dtype=torch.float64)
    """
    check_shapes(dense, pruned)
    if dense.ndim != 2 or not len(dense) or len(options) != len(dense):
        raise InputError(
            f"Expected logits of shape (N, V) and options of N questions, at least one, but got "
            f"{tuple(dense.shape)} and {len(options)}."
        )
    rows = []
    for z, z_pruned, ids in zip(dense, pruned, options, strict=True):
        if not all(0 <= one < len(z) for one in ids):
            raise InputError(f"Expected token ids in [0, {len(z)}) but got the options {[*ids]}.")
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
    """Score the options of each question with one model, and list its most likely tokens.

    Args:
        logits: (N, V).
        options: N lists of distinct token ids.
        labels: N indices of the right option.
        width: W, at least the number of options of any question.
        top_k: K, number of top tokens; V tokens if V is smaller.
        temperature: T of the softmax.

    Returns:
        `option_log_likelihood` (N, W), nats, on the full vocabulary, NaN after the last option.
        (N,) each: `prediction`, the index of the most likely option; `acc`, 1 if it is right;
        `option_mass`, the probability of all options together; `log_likelihood_right`, of the right
        option; `log_likelihood_wrong`, the mean of the others. (N, min(K, V)) each: `top_id` and
        `top_probability`, of the most likely tokens, highest first.

    Raises:
        InputError: if the logits hold NaN.
    """
    index = torch.tensor(
        [[*ids, *[-1] * (width - len(ids))] for ids in options], device=logits.device
    )
    top = top_indices(logits, top_k)
    ids = torch.cat([index.clamp(min=0), top], 1)
    log_p, top_log_p = log_probability(logits, ids, temperature).split([width, top.shape[1]], 1)
    if log_p.isnan().any():
        raise InputError(
            "Expected numbers as log-probabilities but got NaN: load the model in another dtype."
        )
    scores = log_p.masked_fill(index < 0, torch.nan)
    label = torch.tensor(labels, device=logits.device)[:, None]
    chosen = scores.masked_fill(index < 0, -torch.inf).argmax(1)
    return {
        "option_log_likelihood": scores,
        "prediction": chosen,
        "acc": (chosen == label[:, 0]).double(),
        "option_mass": scores.exp().nansum(1),
        "log_likelihood_right": scores.gather(1, label)[:, 0],
        "log_likelihood_wrong": scores.scatter(1, label, torch.nan).nanmean(1),
        "top_id": top,
        "top_probability": top_log_p.exp(),
    }
