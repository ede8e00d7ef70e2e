"""All deviations of the pruned from the dense model, token by token."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import InputError, check_positive
from prunelit.metrics.spaces.buffers import Buffers, rows_per_chunk
from prunelit.metrics.spaces.embedding import embedding_pair
from prunelit.metrics.spaces.estimates import (
    cosine_estimate,
    kl_estimate,
    probability_cosine_estimate,
)
from prunelit.metrics.spaces.logit import (
    logit_cosine,
    logit_mse,
    logit_orthogonal,
    logit_parallel,
    logit_std,
    logit_std_p,
    logit_std_top,
)
from prunelit.metrics.spaces.logit_gram import LogitGram
from prunelit.metrics.spaces.logit_pair import LogitPair, check_subset
from prunelit.metrics.spaces.probability import (
    js,
    kl,
    probability_cosine,
    top1_agreement,
    topk_overlap,
)
from prunelit.metrics.spaces.quick_pair import QuickPair
from prunelit.metrics.spaces.vector_pair import VectorPair, check_shapes

# The quantities that need only sums over the vocabulary, which a `LogitGram` gives.
LOGIT_SPACE = (
    "logit_cosine",
    "logit_cosine_estimate",
    "logit_mse",
    "logit_parallel",
    "logit_orthogonal",
    "logit_std",
)


@checked
@torch.no_grad()
def deviations(
    dense_hidden: Tensor | None,
    pruned_hidden: Tensor | None,
    dense_logits: Tensor,
    pruned_logits: Tensor,
    *,
    temperature: float = 1.0,
    subset: Tensor | None = None,
    targets: Tensor | None = None,
    gram: LogitGram | None = None,
    buffers: Buffers | None = None,
) -> dict[str, Tensor]:
    """Compare embeddings, logits and probabilities of the same tokens.

    It computes in float64 and works on a few tokens at a time: beside its arguments it needs about
    60 MB on a CPU for any number of tokens.

    Formula:
        See the function of each quantity: ``embedding_cosine``, ``logit_mse``, ``kl``, ...

    Source:
        arXiv:2603.24652.

    Args:
        dense_hidden: (..., D), embeddings of the dense model. None for both leaves out the
            quantities of embeddings, such as for models of different widths.
        pruned_hidden: (..., D).
        dense_logits: (..., V), logits of the dense model for the same tokens.
        pruned_logits: (..., V).
        temperature: T of the softmax.
        subset: (S,) distinct token ids. Adds the logit and probability quantities on these columns,
            with `subspace_` before their names. If S is smaller than k, the top k are all S tokens,
            and the overlap is 1 for any logits.
        targets: (...,) token ids. Adds `dense_log_probability` and `pruned_log_probability`, in
            nats, of one token after each.
        gram: of the unembedding of both models. It gives the quantities of `LOGIT_SPACE` from the
            embeddings, without the rounding of the logits.
        buffers: memory to use again in many calls. None allocates and frees it.

    Returns:
        Name to (...,) float64. Divergences are in nats, `logit_mse` in logit units squared,
        `logit_std*` in logit units, `*_parallel` and `*_orthogonal` relative to the dense norm,
        `top*` in [0, 1]. Each `*_estimate` has the unit of the exact value of the same name.

    Raises:
        InputError: if the shapes do not fit, the temperature is not positive, the token ids of the
            subset are not distinct, embeddings for `gram` are missing, or the device (MPS) has no
            float64.

    Example:
        >>> import torch
        >>> from prunelit.metrics import deviations
        >>> h, z = torch.ones(2, 4), torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
        >>> values = deviations(h, 2 * h, z, 2 * z)  # two tokens, D = 4, V = 3
        >>> values["embedding_cosine"], values["logit_cosine"]
        (tensor([1., 1.], dtype=torch.float64), tensor([1., 1.], dtype=torch.float64))
        >>> values["kl_dense_pruned"]
        tensor([0.1601, 0.1601], dtype=torch.float64)
    """
    check_shapes(dense_logits, pruned_logits)
    tokens = dense_logits.shape[:-1]
    values = {}
    if dense_hidden is not None and pruned_hidden is not None:
        values = _embedding_deviations(dense_hidden, pruned_hidden, tokens)
    elif dense_hidden is not pruned_hidden:
        raise InputError("Expected embeddings of both models, or None for both, but got one.")
    vectors = None
    if gram is not None:
        if dense_hidden is None or pruned_hidden is None:
            raise InputError("Expected embeddings of both models with `gram` but got none.")
        hidden = (x.reshape(-1, x.shape[-1]) for x in (dense_hidden, pruned_hidden))
        vectors = gram.compare(*hidden).vectors
    check_positive("temperature", temperature)
    buffers = buffers or Buffers()
    dense, pruned = (x.reshape(-1, x.shape[-1]) for x in (dense_logits, pruned_logits))
    pair = QuickPair(dense, pruned, temperature, buffers, vectors)
    found = _of_logits(pair, dense, pruned, buffers, () if gram is None else LOGIT_SPACE)
    if targets is not None:
        names = ("dense_log_probability", "pruned_log_probability")
        found |= zip(names, pair.log_probability(targets.reshape(-1)), strict=True)
    if subset is not None:
        check_subset(subset, dense.shape[-1])
        ids = subset.to(dense.device).long()
        dense, pruned = (x.index_select(-1, ids) for x in (dense, pruned))
        pair = QuickPair(dense, pruned, temperature, buffers)
        inside = _of_logits(pair, dense, pruned, buffers)
        found |= {f"subspace_{name}": value for name, value in inside.items()}
    return values | {name: value.reshape(tokens) for name, value in found.items()}


def _of_logits(
    pair: QuickPair,
    dense: Tensor,
    pruned: Tensor,
    buffers: Buffers,
    right: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return the quantities of (n, V) logits; those of a token that needs it by a `LogitPair`.

    The quantities in `right` need no other pair.
    """
    found = logit_deviations(pair)
    for rows in (~pair.exact).nonzero()[:, 0].split(rows_per_chunk(dense)):
        if len(rows):
            careful = LogitPair(dense[rows], pruned[rows], pair.temperature, buffers)
            for name, value in logit_deviations(careful).items():
                if name not in right:
                    found[name] = found[name].index_copy(0, rows, value)
    return found


def _embedding_deviations(
    dense: Tensor, pruned: Tensor, tokens: tuple[int, ...]
) -> dict[str, Tensor]:
    """Return the quantities of (..., D) embeddings, each (...,); `tokens` is the shape (...,)."""
    if dense.shape[:-1] != tokens:
        raise InputError(
            f"Expected embeddings and logits of the same tokens but got logits of {tuple(tokens)} "
            f"tokens and embeddings of {tuple(dense.shape[:-1])}."
        )
    return embedding_deviations(embedding_pair(dense, pruned))


def embedding_deviations(embeddings: VectorPair) -> dict[str, Tensor]:
    """All quantities of (..., D) embeddings: name to (...,) float64."""
    return {
        "embedding_cosine": embeddings.cosine,
        "embedding_cosine_estimate": cosine_estimate(embeddings),
        "embedding_parallel": embeddings.parallel,
        "embedding_orthogonal": embeddings.orthogonal,
    }


def check_not_nan(values: Mapping[str, Tensor]) -> None:
    """Refuse deviations that are NaN, which a mean over tokens would skip.

    Args:
        values: tensors by name, as `deviations` returns them.

    Raises:
        InputError: naming the first one.
    """
    for name, value in values.items():
        if value.isnan().any():
            raise InputError(
                f"Expected a number for `{name}` of every token but got NaN: load the model in "
                "another dtype."
            )


def logit_space_deviations(pair: LogitPair) -> dict[str, Tensor]:
    """The quantities of `LOGIT_SPACE`, of logits or by a `LogitGram`: name to (N,) float64."""
    return {
        "logit_cosine": logit_cosine(pair),
        "logit_cosine_estimate": cosine_estimate(pair.vectors),
        "logit_mse": logit_mse(pair),
        "logit_parallel": logit_parallel(pair),
        "logit_orthogonal": logit_orthogonal(pair),
        "logit_std": logit_std(pair),
    }


def logit_deviations(pair: LogitPair) -> dict[str, Tensor]:
    """All logit and probability quantities of (N, V) logits: name to (N,) float64."""
    return {
        **logit_space_deviations(pair),
        "logit_std_p": logit_std_p(pair),
        "logit_std_top5": logit_std_top(pair, 5),
        "logit_std_top10": logit_std_top(pair, 10),
        "probability_cosine": probability_cosine(pair),
        "probability_cosine_estimate": probability_cosine_estimate(pair),
        "kl_dense_pruned": kl(pair, "dense_pruned"),
        "kl_dense_pruned_estimate": kl_estimate(pair, "dense_pruned"),
        "kl_pruned_dense": kl(pair, "pruned_dense"),
        "kl_pruned_dense_estimate": kl_estimate(pair, "pruned_dense"),
        "js": js(pair),
        "top1_agreement": top1_agreement(pair),
        "top5_overlap": topk_overlap(pair, 5),
        "top10_overlap": topk_overlap(pair, 10),
    }
