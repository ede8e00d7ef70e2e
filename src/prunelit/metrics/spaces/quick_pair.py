"""The sums over the vocabulary that all quantities of a `LogitPair` share, in few passes."""

import math

import torch
from torch import Tensor

from prunelit.metrics.spaces.buffers import Buffers, rows_per_chunk
from prunelit.metrics.spaces.logit_pair import TOP, LogitPair
from prunelit.metrics.spaces.topk import top_indices
from prunelit.metrics.spaces.vector_pair import VectorSums, widen

# The sums are right to about 2e-16, times 1 + the shift that the log ratios leave out. A KL below
# this, in nats, would have fewer than nine digits.
_LEAST_KL = 1e-6
# Logits further than this below the highest have an exponential that loses digits.
_RANGE = 600.0
# Eight intermediates of a few tokens fit into the cache of a core, those of a whole chunk do not.
_SHARE = 2
# The dot product of longer rows is one call of BLAS for each: it reads them once.
_LONG = 2**13


class QuickPair(LogitPair):
    """A pair whose sums over the vocabulary are computed together, without a gradient.

    It takes two exponentials and a logarithm of each token of the vocabulary where `LogitPair`
    takes five, and works on as few tokens at a time as the cache holds. Digits are lost where both
    models are all but equal: `exact` says where none is.

    Args:
        dense: (n, V) logits, any float type.
        pruned: (n, V).
        temperature: T of the softmax.
        buffers: memory for intermediates of size V.

    Attributes:
        exact: (n,) bool, True where every quantity has nine digits. It is False where the models
            are nearly equal, or a model excludes a token of the vocabulary.
    """

    def __init__(self, dense: Tensor, pruned: Tensor, temperature: float, buffers: Buffers) -> None:
        self.temperature = float(temperature)
        size = few = rows_per_chunk(dense)
        if dense.device.type == "cpu":
            few = min(size, max(1, size * torch.get_num_threads() // _SHARE))
        tops: list[list[Tensor]] = []
        found: list[dict[str, Tensor]] = []
        for rows in zip(dense.split(size), pruned.split(size), strict=True):
            tops.append([top_indices(x, TOP) for x in rows])
            blocks = [x.split(few) for x in (*rows, *tops[-1])]
            for z, y, top, other_top in zip(*blocks, strict=True):
                found.append(_sums(z, y, top, other_top, self.temperature, buffers))
        self.dense_top, self.pruned_top = (torch.cat(top) for top in zip(*tops, strict=True))
        sums = {name: torch.cat([one[name] for one in found]) for name in found[0]}
        self._levels = (
            (dense, sums["highest"], sums["norm"].log()),
            (pruned, sums["pruned_highest"], sums["pruned_norm"].log()),
        )
        self.excluded = None
        self.vectors = VectorSums(
            **{name: sums[name] for name in ("squared_norm", "along", "squared_distance", "total")}
        )
        self.size = torch.full_like(sums["total"], dense.shape[-1])
        self.top_difference = sums["top_difference"]
        norm, other = sums["norm"], sums["pruned_norm"]
        self.dense_mean = sums["p_u"] / norm
        self.pruned_mean = sums["q_u"] / other
        self.dense_square = sums["p_uu"] / norm
        self.pruned_square = sums["q_uu"] / other
        self.dense_concentration = sums["p_p"] / norm.square()
        self.pruned_concentration = sums["q_q"] / other.square()
        self.overlap = sums["p_q"] / (norm * other)
        self.concentrated_mean = sums["pp_u"] / sums["p_p"]
        self.concentrated_square = sums["pp_uu"] / sums["p_p"]
        # log((p + p') / p) is log 2 + log cosh(u / 2) + u / 2.
        rise = sums["rise"] / norm - 2 * math.log(2)
        same = self.vectors.squared_distance == 0
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
) -> dict[str, Tensor]:
    """Return sums over the vocabulary, (n,) each, of (n, V) logits and their highest tokens.

    Here p and q are e^z and e^z', relative to the highest, and u is the log of their ratio after
    both are normalised.
    """
    z, y = widen(dense, buffers, "dense"), widen(pruned, buffers, "pruned")

    def out(name: str) -> Tensor:
        return buffers.get(name, z)

    difference = torch.sub(y, z, out=out("difference"))
    found = {
        "squared_norm": _dot(z, z),
        "along": _dot(z, difference),
        "squared_distance": _dot(difference, difference),
        "total": difference.sum(-1),
        "top_difference": difference.gather(-1, dense_top),
    }
    if temperature != 1:
        z = torch.div(z, temperature, out=out("dense_scaled"))
        y = torch.div(y, temperature, out=out("pruned_scaled"))
        difference.div_(temperature)
    tops = z.gather(-1, dense_top[:, :1]), y.gather(-1, pruned_top[:, :1])
    p, norm = exponentials(z, tops[0], out("dense_probability"))
    q, other = exponentials(y, tops[1], out("pruned_probability"))
    totals = norm.log(), other.log()
    shift = (tops[1] - tops[0]) + (totals[1] - totals[0])
    u = torch.sub(difference, shift, out=difference)
    uu = torch.mul(u, u, out=out("square"))
    found |= {
        "range": tops[0][:, 0] - dense.amin(-1) / temperature,
        "shift": shift[:, 0],
        "highest": tops[0][:, 0],
        "pruned_highest": tops[1][:, 0],
        "norm": norm[:, 0],
        "pruned_norm": other[:, 0],
        "p_u": _dot(p, u),
        "q_u": _dot(q, u),
        "p_uu": _dot(p, uu),
        "q_uu": _dot(q, uu),
        "p_q": _dot(p, q),
        "q_q": _dot(q, q),
    }
    pp = torch.mul(p, p, out=out("product"))
    found |= {"p_p": pp.sum(-1), "pp_u": _dot(pp, u), "pp_uu": _dot(pp, uu)}
    both = torch.addcmul(p, q, norm / other, out=pp)
    return found | {"rise": _dot(both, torch.div(both, p, out=u).log_())}


def exponentials(scaled: Tensor, highest: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """Compute e^(z - highest), and the sum over the vocabulary.

    Args:
        scaled: (n, V) float64.
        highest: (n, 1), the maximum over V.
        out: (n, V), the memory of the result.

    Returns:
        (n, V) and (n, 1).
    """
    found = torch.sub(scaled, highest, out=out).exp_()
    return found, found.sum(-1, keepdim=True)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    if x.device.type == "cpu" and x.shape[-1] >= _LONG and len(x):
        return torch.stack([a.dot(b) for a, b in zip(x, y, strict=True)])
    return (x * y).sum(-1)
