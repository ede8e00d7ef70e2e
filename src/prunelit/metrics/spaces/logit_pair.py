"""The logits of both models on the same tokens, with the intermediates that metrics share."""

from functools import cached_property

import torch
from torch import Tensor

from prunelit.arguments import checked
from prunelit.errors import InputError, check_positive
from prunelit.metrics.spaces.buffers import Buffers
from prunelit.metrics.spaces.topk import top_indices
from prunelit.metrics.spaces.vector_pair import VectorPair, dot

TOP = 10

# Stands for an infinite log ratio. e^-50 vanishes beside 1, and 50 times a probability of 0 is 0,
# where infinity would give NaN.
_FAR = 50.0


@checked
class LogitPair:
    """Logits of the dense and of the pruned model for every token.

    Everything is computed in float64. Each intermediate of size V is computed at most once, on
    first use. Give a few tokens at a time to bound the memory.

    A logit of -inf means that the model excludes the token. Tokens that both models exclude are
    left out. If only one model excludes a token, the KL divergence that gives this token weight is
    infinite, and so is its estimate; the logit space is compared on the other tokens.

    Args:
        dense: (..., V) logits, any float type.
        pruned: (..., V) logits.
        temperature: T of the softmax. The logit space is compared without it.
        buffers: memory for intermediates of size V. Give it only if no gradient is needed.

    Raises:
        InputError: if the shapes differ, the temperature is not positive, or the device has no
            float64.

    Example:
        >>> import torch
        >>> from prunelit.metrics import LogitPair, kl, logit_mse
        >>> pair = LogitPair(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0]]))
        >>> logit_mse(pair)
        tensor([0.6667], dtype=torch.float64)
        >>> kl(pair, "dense_pruned")
        tensor([0.2662], dtype=torch.float64)
    """

    def __init__(
        self,
        dense: Tensor,
        pruned: Tensor,
        temperature: float = 1.0,
        buffers: Buffers | None = None,
    ) -> None:
        check_positive("temperature", temperature)
        self._all = VectorPair(dense, pruned, buffers)
        self._buffers = buffers
        self.dense = self._all.dense
        self.pruned = self._all.pruned
        self.temperature = float(temperature)

    def restrict(self, token_ids: Tensor) -> "LogitPair":
        """Keep only the tokens of a subset; their probabilities are renormalised to sum to 1.

        Args:
            token_ids: (S,) distinct token ids.

        Raises:
            InputError: if they are not a vector of distinct integers in [0, V).
        """
        check_subset(token_ids, self.dense.shape[-1])
        ids = token_ids.to(self.dense.device).long()
        dense, pruned = (logits.index_select(-1, ids) for logits in (self.dense, self.pruned))
        return LogitPair(dense, pruned, self.temperature)

    @cached_property
    def excluded(self) -> Tensor | None:
        """(..., V) bool, True where one or both logits are -inf; None if all are finite."""
        # This sum is needed anyway. If it is finite, the usual case, no other check is needed.
        if self._all.total.isfinite().all():
            return None
        excluded = self.dense.isneginf() | self.pruned.isneginf()
        return excluded if excluded.any() else None

    @cached_property
    def vectors(self) -> VectorPair:
        """Both logit vectors, with 0 at excluded tokens."""
        if self.excluded is None:
            return self._all
        return VectorPair(
            self.dense.masked_fill(self.excluded, 0), self.pruned.masked_fill(self.excluded, 0)
        )

    @cached_property
    def size(self) -> Tensor:
        """(...,), number of tokens of the vocabulary that are not excluded."""
        if self.excluded is None:
            return torch.full_like(self._all.total, self.dense.shape[-1])
        return (~self.excluded).sum(-1).double()

    @cached_property
    def dense_top(self) -> Tensor:
        """(..., min(10, V)), token ids of the highest dense logits, highest first."""
        return top_indices(self.dense, TOP)

    @cached_property
    def pruned_top(self) -> Tensor:
        """(..., min(10, V)), token ids of the highest pruned logits, highest first."""
        return top_indices(self.pruned, TOP)

    def top(self, k: int) -> tuple[Tensor, Tensor]:
        """Token ids of the k highest dense and of the k highest pruned logits.

        Args:
            k: number of tokens in [1, 10]; V tokens if V is smaller.

        Returns:
            Two (..., min(k, V)) tensors, highest first.

        Raises:
            InputError: if `k` is not in [1, 10].
        """
        if not 1 <= k <= TOP:
            raise InputError(f"Expected `k` in [1, {TOP}] but got {k}.")
        return self.dense_top[..., :k], self.pruned_top[..., :k]

    @cached_property
    def top_difference(self) -> Tensor:
        """(..., min(10, V)), difference of the logits of `dense_top`."""
        return self.vectors.difference.gather(-1, self.dense_top)

    @cached_property
    def _scaled(self) -> tuple[Tensor, Tensor]:
        if self.temperature == 1:
            return self.dense, self.pruned
        return (
            torch.div(self.dense, self.temperature, out=self._out("dense_scaled")),
            torch.div(self.pruned, self.temperature, out=self._out("pruned_scaled")),
        )

    @cached_property
    def dense_probability(self) -> Tensor:
        """(..., V), p."""
        return torch.softmax(self._scaled[0], -1, out=self._out("dense_probability"))

    @cached_property
    def pruned_probability(self) -> Tensor:
        """(..., V), p'."""
        return torch.softmax(self._scaled[1], -1, out=self._out("pruned_probability"))

    @cached_property
    def log_ratio(self) -> Tensor:
        """(..., V), u = log(p' / p).

        It is the difference of the logits minus the difference of their log-sum-exps. It is exactly
        0 for equal logits, and its means under p and p' are near 0, so that a shift of all logits
        causes no cancellation in its moments. It is -50 or 50 for a token that one model excludes,
        and 0 for a token that both exclude.

        A log-sum-exp is rounded to about 1e-15. A KL is as small as that where only rounding tells
        the two models apart. There the mean of e^u - 1 under p, exactly 0, shows the error of u.
        """
        dense, pruned = self._scaled
        shift = _log_sum_exp(pruned, self.pruned_probability, self.pruned_top) - _log_sum_exp(
            dense, self.dense_probability, self.dense_top
        )
        out = self._out("log_ratio")
        same = self.temperature == 1
        difference = self._all.difference if same else torch.sub(pruned, dense, out=out)
        ratio = torch.sub(difference, shift, out=out)
        low, high = (bound.detach() for bound in ratio.aminmax(dim=-1, keepdim=True))
        if (near := (low > -1) & (high < 1)).any():
            excess = torch.expm1(ratio.detach(), out=self._out("excess"))
            error = excess.mul_(self.dense_probability.detach()).sum(-1, keepdim=True).log1p()
            ratio = torch.sub(ratio, torch.where(near, error, 0.0), out=out)
        if self.excluded is None:
            return ratio
        gone, come = pruned.isneginf(), dense.isneginf()
        ratio = ratio.masked_fill(gone, -_FAR).masked_fill(come, _FAR)
        return ratio.masked_fill(gone & come, 0)

    @cached_property
    def log_cosh(self) -> Tensor:
        """(..., V), log cosh(u / 2), which keeps its digits for a small u."""
        out = self._out("log_cosh")
        size = torch.abs(self.log_ratio, out=self._out("size"))
        rest = torch.expm1(torch.neg(size, out=out), out=out)
        rest = torch.log1p(torch.div(rest, 2, out=out), out=out)
        return torch.add(rest, size, alpha=0.5, out=out)

    @cached_property
    def dense_only(self) -> Tensor | None:
        """(...,) bool, True if the pruned model excludes a token that the dense one keeps."""
        if self.excluded is None:
            return None
        return (self.excluded & ~self.dense.isneginf()).any(-1)

    @cached_property
    def pruned_only(self) -> Tensor | None:
        """(...,) bool, True if the dense model excludes a token that the pruned one keeps."""
        if self.excluded is None:
            return None
        return (self.excluded & ~self.pruned.isneginf()).any(-1)

    @cached_property
    def mixture(self) -> Tensor:
        """(..., V), p + p'."""
        return torch.add(self.dense_probability, self.pruned_probability, out=self._out("mixture"))

    @cached_property
    def dense_weighted(self) -> Tensor:
        """(..., V), p u."""
        return torch.mul(self.dense_probability, self.log_ratio, out=self._out("dense_weighted"))

    @cached_property
    def pruned_weighted(self) -> Tensor:
        """(..., V), p' u."""
        return torch.mul(self.pruned_probability, self.log_ratio, out=self._out("pruned_weighted"))

    @cached_property
    def dense_mean(self) -> Tensor:
        """(...,), mean of u under p: minus KL(p || p')."""
        return self.dense_weighted.sum(-1)

    @cached_property
    def pruned_mean(self) -> Tensor:
        """(...,), mean of u under p': KL(p' || p)."""
        return self.pruned_weighted.sum(-1)

    @cached_property
    def dense_square(self) -> Tensor:
        """(...,), mean of u squared under p."""
        return self.dot(self.dense_weighted, self.log_ratio)

    @cached_property
    def pruned_square(self) -> Tensor:
        """(...,), mean of u squared under p'."""
        return self.dot(self.pruned_weighted, self.log_ratio)

    @cached_property
    def dense_concentration(self) -> Tensor:
        """(...,), squared norm of p."""
        return self.dot(self.dense_probability, self.dense_probability)

    @cached_property
    def pruned_concentration(self) -> Tensor:
        """(...,), squared norm of p'."""
        return self.dot(self.pruned_probability, self.pruned_probability)

    @cached_property
    def overlap(self) -> Tensor:
        """(...,), sum of p p'."""
        return self.dot(self.dense_probability, self.pruned_probability)

    @cached_property
    def concentrated_mean(self) -> Tensor:
        """(...,), mean of u under weights p squared."""
        return self.dot(self.dense_probability, self.dense_weighted) / self.dense_concentration

    @cached_property
    def concentrated_square(self) -> Tensor:
        """(...,), mean of u squared under weights p squared."""
        return self.dot(self.dense_weighted, self.dense_weighted) / self.dense_concentration

    @cached_property
    def mean_log_cosh(self) -> Tensor:
        """(...,), sum of log cosh(u / 2) times p + p'."""
        return self.dot(self.log_cosh, self.mixture)

    def dot(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum x * y over the vocabulary, both (..., V), to (...,) float64."""
        return dot(x, y, self._buffers)

    def _out(self, name: str) -> Tensor | None:
        return self._buffers and self._buffers.get(name, self.dense)


def check_subset(token_ids: Tensor, size: int) -> None:
    """Refuse token ids that are not distinct columns of the logits.

    Raises:
        InputError: naming the shape, the range or the repetition that is wrong.
    """
    if (
        token_ids.ndim != 1
        or not len(token_ids)
        or token_ids.is_floating_point()
        or token_ids.is_complex()
        or token_ids.dtype == torch.bool
    ):
        raise InputError(
            "Expected a subset of token ids as a vector of integers, at least one, but got shape "
            f"{tuple(token_ids.shape)} and {token_ids.dtype}."
        )
    low, high = (int(bound) for bound in token_ids.long().aminmax())
    if low < 0 or high >= size:
        raise InputError(f"Expected token ids in [0, {size}) but got ids from {low} to {high}.")
    if len(token_ids.unique()) < len(token_ids):
        raise InputError("Expected distinct token ids but got an id twice: give each id once.")


def _log_sum_exp(scaled: Tensor, probability: Tensor, top: Tensor) -> Tensor:
    """Log-sum-exp (..., 1), from the highest entry: log p = z / T - lse."""
    highest = top[..., :1]
    # Softmax computes its denominator less exactly than a sum does. The total shows this error,
    # which would otherwise be in every log ratio.
    share = probability.gather(-1, highest) / probability.sum(-1, keepdim=True)
    return scaled.gather(-1, highest) - share.log()
