"""The sums over the vocabulary that all quantities of a `LogitPair` share, in few passes."""

import math

import torch
from torch import Tensor

from prunelit.metrics.spaces.buffers import Buffers, rows_per_chunk
from prunelit.metrics.spaces.logit_pair import TOP, LogitPair
from prunelit.metrics.spaces.topk import top_indices
from prunelit.metrics.spaces.vector_pair import VectorPair, VectorSums, check_float64, widen

# The sums are right to about 1e-15, times 1 + the shift that the log ratios leave out. A KL below
# this, in nats, would have fewer than nine digits.
_LEAST_KL = 1e-5
# Logits further than this below the highest have an exponential that loses digits.
_RANGE = 600.0
# The intermediates of one thread are this part of a chunk, so that a cache holds all four.
_SHARE = 2
# The dot product of longer rows is one call of BLAS for each: it reads them once.
_LONG = 2**13
_LOGIT_SPACE = ("squared_norm", "along", "squared_distance", "total")


class QuickPair(LogitPair):
    """A pair whose sums over the vocabulary are computed together, without a gradient.

    It takes two exponentials and a logarithm of each token of the vocabulary where `LogitPair`
    takes five, in few passes over four intermediates. That loses digits where both models are all
    but equal: `exact` says for which tokens none is lost.

    Args:
        dense: (n, V) logits, any float type.
        pruned: (n, V).
        temperature: T of the softmax.
        buffers: memory for intermediates of size V.
        vectors: the sums of the logit space, if they are known already.

    Raises:
        InputError: if the device has no float64.

    Attributes:
        exact: (n,) bool, True where every quantity has nine digits. It is False where the models
            are nearly equal, or a model excludes a token of the vocabulary.
    """

    def __init__(
        self,
        dense: Tensor,
        pruned: Tensor,
        temperature: float,
        buffers: Buffers,
        vectors: VectorPair | None = None,
    ) -> None:
        check_float64(dense.device)
        self.temperature = float(temperature)
        size = few = rows_per_chunk(dense)
        if dense.device.type == "cpu":
            few = min(size, max(1, size * torch.get_num_threads() // _SHARE))
        # A call for all tokens: the many small steps of a search cost more than the reading.
        self.dense_top, self.pruned_top = (top_indices(x, TOP) for x in (dense, pruned))
        found = [
            _sums(*logits, *tops, self.temperature, buffers, vectors is None)
            for logits, tops in zip(
                zip(dense.split(few), pruned.split(few), strict=True),
                zip(self.dense_top.split(few), self.pruned_top.split(few), strict=True),
                strict=True,
            )
        ]
        sums = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        self._levels = (
            (dense, sums["highest"], sums["norm"].log()),
            (pruned, sums["pruned_highest"], sums["pruned_norm"].log()),
        )
        self.excluded = None
        self.vectors = vectors or VectorSums(**{name: sums[name] for name in _LOGIT_SPACE})
        self.size = torch.full_like(sums["p_u"], dense.shape[-1])
        self.top_difference = sums["top_difference"]
        norm, other = sums["norm"], sums["pruned_norm"]
        self.dense_mean = sums["p_u"] / norm
        self.pruned_mean = sums["q_u"] / other
        self.dense_square = sums["p_uu"] / norm
        self.pruned_square = sums["q_uu"] / other
        # Equal logits are exactly equal; sums in another order would differ in the last bit.
        same = sums["p_uu"] == 0
        self.overlap = sums["p_q"] / (norm * other)
        self.dense_concentration = torch.where(same, self.overlap, sums["p_p"] / norm.square())
        self.pruned_concentration = torch.where(same, self.overlap, sums["q_q"] / other.square())
        self.concentrated_mean = sums["pp_u"] / sums["p_p"]
        self.concentrated_square = sums["pp_uu"] / sums["p_p"]
        # log((p + p') / p) is log 2 + log cosh(u / 2) + u / 2.
        rise = sums["rise"] / norm - 2 * math.log(2)
        self.mean_log_cosh = (rise - (self.dense_mean + self.pruned_mean) / 2).masked_fill(same, 0)
        least = _LEAST_KL * (1 + sums["shift"].abs())
        apart = (-self.dense_mean > least) & (self.pruned_mean > least)
        self.exact = (sums["range"] < _RANGE) & ~self.vectors.short & (apart | same)

    def log_probability(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability of one token in each row, of both models.

        Args:
            token_ids: (n,), ids in [0, V).

        Returns:
            Two (n,) float64, nats: those of `prunelit.metrics.spaces.probability.log_probability`.
        """
        dense, pruned = (
            widen(logits.gather(-1, token_ids[:, None]))[:, 0] / self.temperature - highest - total
            for logits, highest, total in self._levels
        )
        return dense, pruned


def _sums(
    dense: Tensor,
    pruned: Tensor,
    dense_top: Tensor,
    pruned_top: Tensor,
    temperature: float,
    buffers: Buffers,
    logit_space: bool,
) -> dict[str, Tensor]:
    """Return sums over the vocabulary, (n,) each, of (n, V) logits and their highest tokens.

    Here p and q are e^z and e^z', relative to the highest, and u is the log of their ratio after
    both are normalised.
    """
    stack = buffers.get("stack", dense[:, None].expand(-1, 4, -1), torch.float64)
    z, q, difference, _ = stack.unbind(1)
    z.copy_(dense)
    q.copy_(pruned)
    torch.sub(q, z, out=difference)
    found = {"top_difference": difference.gather(-1, dense_top)}
    if logit_space:
        pairs = (z, z), (z, difference), (difference, difference)
        sums = (*(_dot(x, y) for x, y in pairs), difference.sum(-1))
        found |= zip(_LOGIT_SPACE, sums, strict=True)
    if temperature != 1:
        z, q, difference = (x.div_(temperature) for x in (z, q, difference))
    tops = z.gather(-1, dense_top[:, :1]), q.gather(-1, pruned_top[:, :1])
    norm, other = exponentials(z, tops[0], z), exponentials(q, tops[1], q)
    p = z
    # The shift of the log ratios is that of the log-sum-exps. Few digits cancel in this order.
    shift = (tops[1] - tops[0]) + (other.log() - norm.log())
    u = difference.sub_(shift)
    found |= {
        "highest": tops[0][:, 0],
        "pruned_highest": tops[1][:, 0],
        "range": tops[0][:, 0] - dense.amin(-1) / temperature,
        "shift": shift[:, 0],
        "norm": norm[:, 0],
        "pruned_norm": other[:, 0],
    }
    torch.mul(u, u, out=stack[:, 3])
    # The fourth of the stack is u^2 now.
    found |= zip(("p_p", "p_q", "p_u", "p_uu"), _dots(stack, p), strict=True)
    found |= zip(("q_q", "q_u", "q_uu"), _dots(stack, q)[1:], strict=True)
    pu = u.mul_(p)
    found |= {"pp_u": _dot(pu, p), "pp_uu": _dot(pu, pu)}
    both = torch.addcmul(p, q, norm / other, out=pu)
    return found | {"rise": _dot(both, torch.div(both, p, out=stack[:, 3]).log_())}


def _dots(stack: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Sum the products of each of four and x over the last axis, (n, 4, V) and (n, V) to (n,)."""
    if x.device.type == "cpu" and x.shape[-1] >= _LONG and len(x):
        # BLAS reads x once for all four.
        found = torch.stack([a.mv(b) for a, b in zip(stack, x, strict=True)])
    else:
        found = torch.bmm(stack, x.unsqueeze(-1)).squeeze(-1)
    return found.unbind(-1)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum x * y over the last axis, (n, V) to (n,)."""
    if x.device.type == "cpu" and x.shape[-1] >= _LONG and len(x):
        return torch.stack([a.dot(b) for a, b in zip(x, y, strict=True)])
    return (x * y).sum(-1)


def exponentials(scaled: Tensor, highest: Tensor, out: Tensor) -> Tensor:
    """Compute e^(z - highest).

    Args:
        scaled: (n, V) float64.
        highest: (n, 1), the maximum over V.
        out: (n, V), the memory of the exponentials; may be `scaled`.

    Returns:
        (n, 1), their sum over the vocabulary.
    """
    return torch.sub(scaled, highest, out=out).exp_().sum(-1, keepdim=True)
