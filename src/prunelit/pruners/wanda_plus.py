"""Wanda++: the gradient of a block's output in the score, then a few steps inside the block."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prunelit.activations import Probe, SquaredNorm, Statistic, sum_ranks_
from prunelit.errors import InputError, check_positive, check_whole
from prunelit.models.absent import scratch
from prunelit.models.architecture import oriented_weight
from prunelit.models.experts import ExpertMap
from prunelit.models.replay import Stream
from prunelit.pruners.linear_pruner import LinearPruner
from prunelit.sparsity import Sparsity


class WandaPlus(LinearPruner):
    """Prune by regional gradients and inputs, then fit the block (Yang et al. 2025, 2503.04992).

    The score of weight (o, i) is ``(alpha G_oi + ||x_i||) |W_oi|``. G is the root of the mean, over
    calibration sequences, of the squared gradient of ||f(X)||: the norm of the output of the
    block for one sequence. So a backward pass stays within one block. Then, `repeats` times, the
    block is pruned, and RMSprop takes one step for each of `samples` sequences, on the squared
    distance from the output of the dense block. Weights that were removed may grow again. The block
    is pruned once more at the end.

    Args:
        sparsity: how many weights are removed, and among which they compete.
        alpha: weight of the gradient in the score.
        repeats: number of times that the block is pruned and fitted; 0 only prunes by the score.
        samples: sequences in each of them, the next ones of the text in each turn.
        learning_rate: of RMSprop, in units of the weights: larger weights need a higher one than
            the paper's.
        options: `include`, `exclude`, `ratios`, `allocation` and `expert_tokens` of
            `LinearPruner`.

    The text passes the model one sequence at a time. Weights, gradients and steps are float32, also
    if the model is narrower. A block costs two forward passes over the text, as with `Wanda`; one
    forward and backward pass for the gradients; and `repeats` times `samples` more of one sequence.

    Differs from the source: there is no official code. ||x|| is the root of the mean over sequences
    too, as in the public code of Wanda, so that alpha does not depend on the amount of text. It
    stays that of the dense block. Sequences take turns instead of being drawn. An expert of a
    mixture has the norms and the gradients of the tokens that reach it.

    Example:
        >>> import torch
        >>> from prunelit import prune
        >>> from prunelit.pruners import WandaPlus
        >>> from prunelit.sparsity import SemiStructured
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,
        ...                      num_hidden_layers=2, num_attention_heads=2)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> pruner = WandaPlus(SemiStructured(2, 4), repeats=1)
        >>> prune(model, pruner, torch.arange(64).view(4, 16)).sparsity
        0.5
    """

    replays = True

    def __init__(
        self,
        sparsity: Sparsity,
        *,
        alpha: float = 100.0,
        repeats: int = 5,
        samples: int = 32,
        learning_rate: float = 3e-7,
        **options: Any,
    ) -> None:
        super().__init__(sparsity, **options)
        if not 0 <= alpha <= 1e18:  # scores are float32
            raise InputError(f"Expected `alpha` of at least 0 and at most 1e18 but got {alpha}.")
        check_whole("repeats", repeats, 0)
        check_whole("samples", samples, 1)
        check_positive("learning_rate", learning_rate)
        self.alpha = float(alpha)
        self.repeats = repeats
        self.samples = samples
        self.learning_rate = float(learning_rate)

    def statistic(self, linear: nn.Module) -> Statistic:
        weight = oriented_weight(linear)
        return SquaredNorm(weight.shape[1], weight.device)

    def prune_streams(
        self,
        block: nn.Module,
        probes: Mapping[str, Probe],
        streams: Sequence[Stream],
        index: int,
    ) -> None:
        targets = self.targets(block)
        if not any(oriented_weight(linear).any() for linear in targets.values()):
            return  # no map, or an earlier method dropped all of them
        # `inference_mode(False)` turns gradients on.
        with torch.inference_mode(False), torch.no_grad(), scratch(block, torch.float32):
            region = _Region(block, targets, streams, index)
            count = min(self.samples, region.sequences)
            turns = [place % region.sequences for place in range(self.repeats * count)]
            importance = self._look(targets, probes, region.look({*turns}), region.tokens)
            optimizer = torch.optim.RMSprop(region.weights, lr=self.learning_rate)
            for place, sequence in enumerate(turns):
                if place % count == 0:
                    self.prune_block(block, importance)
                region.fit(sequence, optimizer)
            if not all(weight.isfinite().all() for weight in region.weights):
                raise InputError(
                    f"Expected steps that leave finite weights but those with `learning_rate` "
                    f"{self.learning_rate} do not: make it smaller. It is in units of the weights."
                )
            self.prune_block(block, importance)
            found = {name: oriented_weight(linear) for name, linear in targets.items()}
        for name, linear in targets.items():
            oriented_weight(linear).copy_(found[name])

    def _look(
        self,
        targets: Mapping[str, nn.Module],
        probes: Mapping[str, Probe],
        squares: Mapping[str, Tensor],
        tokens: int,
    ) -> dict[str, Probe]:
        """Put gradients and norms of all maps together.

        A gradient of the norm over the tokens of a sequence goes with a sum of squares over them:
        both are divided by the number of tokens, which changes no order.
        """
        found = {}
        for name, linear in targets.items():
            # An expert reads some of the tokens.
            read = max(1, probes[name].tokens) if isinstance(linear, ExpertMap) else tokens
            gradient = (squares[name] / read).sqrt().float()
            norm = probes[name].statistic.value.sqrt()
            found[name] = Probe(_Importance(self.alpha * gradient + norm))
        return found

    def replayed(self, sequences: int) -> int:
        return 3 * (sequences + self.repeats * min(self.samples, sequences))

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        return self.remove_lowest(weight, weight.abs() * statistic.value)

    def prune_rest(self, name: str, weight: Tensor, statistic: Statistic | None) -> Tensor:
        if self.skips_zeros:
            assert statistic is not None
            statistic = _Importance(statistic.value[weight.any(1)])
        return super().prune_rest(name, weight, statistic)


class _Importance(Statistic):
    """A filled statistic: what the size of each weight is multiplied by.

    Args:
        value: (O, I), float32.
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def update(self, *x: Tensor) -> None:
        raise NotImplementedError("it was made when all tokens were read")

    def all_reduce_(self) -> None:
        raise NotImplementedError("it was made when all tokens were read")

    def select(self, columns: Tensor) -> "_Importance":
        return _Importance(self._value[:, columns])

    @property
    def value(self) -> Tensor:
        """(O, I)."""
        return self._value


class _Region:
    """One block with weights of its own, and the sequences at its input.

    Every rank calls the methods together.

    Args:
        block: a decoder block whose weights are float32 and may change.
        targets: its linear maps that are pruned.
        streams: the sequences of this rank.
        index: place of the block in the model.

    Attributes:
        weights: of these maps.
        sequences: number of those of all ranks.
        tokens: number of tokens of all ranks.
    """

    def __init__(
        self,
        block: nn.Module,
        targets: Mapping[str, nn.Module],
        streams: Sequence[Stream],
        index: int,
    ) -> None:
        self._block, self._targets = block, targets
        self._streams, self._index = streams, index
        free, views = _like(block, targets, torch.bool)
        for name, linear in targets.items():
            views[name].copy_(oriented_weight(linear) != 0)
        self._places = [place for place, own in enumerate(free) if own.any()]
        own = list(block.parameters())
        self.weights = [own[place].requires_grad_() for place in self._places]
        self._free = [free[place] for place in self._places]
        self._rank, self._world = 0, 1
        if dist.is_available() and dist.is_initialized():
            self._rank, self._world = dist.get_rank(), dist.get_world_size()
        counts = torch.tensor([len(streams), sum(int(one.tokens.sum()) for one in streams)])
        counts = counts.to(free[0].device)
        sum_ranks_(counts)
        self.sequences, self.tokens = counts.tolist()
        self._dense: dict[int, Tensor] = {}

    def look(self, kept: Collection[int]) -> dict[str, Tensor]:
        """Sum the squared gradients of the norm of the output over all sequences.

        Args:
            kept: sequences whose output `fit` compares with.

        Returns:
            By the name of each map, (O, I), float64.
        """
        totals, views = _like(self._block, self._targets, torch.float64)
        for number in range(len(self._streams)):
            with torch.enable_grad():
                output = self._run(number)
                gradients = self._differentiate(output.norm())
            for place, gradient in zip(self._places, gradients, strict=True):
                totals[place].add_(gradient.double().square_())
            if (sequence := self._rank + number * self._world) in kept:
                self._dense[sequence] = output.detach()
        sum_ranks_(*totals)
        return views

    def fit(self, sequence: int, optimizer: torch.optim.Optimizer) -> None:
        """Take one step towards the output of the dense block for a sequence.

        The rank that has the sequence finds the gradient. The scale of the loss makes no difference
        to RMSprop.
        """
        owner = sequence % self._world
        if owner == self._rank:
            with torch.enable_grad():
                output = self._run(sequence // self._world)
                loss = (output - self._dense[sequence]).square().sum()
                gradients = self._differentiate(loss)
        else:
            gradients = [torch.zeros_like(weight) for weight in self.weights]
        for weight, gradient, free in zip(self.weights, gradients, self._free, strict=True):
            weight.grad = gradient.contiguous()
            if self._world > 1:
                dist.broadcast(weight.grad, owner)
            weight.grad *= free  # what was 0 before stays 0, and so does what is not pruned
        optimizer.step()

    def _run(self, number: int) -> Tensor:
        return self._streams[number].run_in_float32(self._block, self._index)

    def _differentiate(self, value: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(value, self.weights, allow_unused=True, materialize_grads=True)


def _like(
    block: nn.Module, targets: Mapping[str, nn.Module], dtype: torch.dtype
) -> tuple[list[nn.Parameter], dict[str, Tensor]]:
    """Make zeros for all weights of a block.

    Returns:
        In the order of its parameters; and views of them as the linear maps, (O, I), by name.
    """
    with scratch(block, dtype):
        zeros = list(block.parameters())
        for value in zeros:
            value.zero_()
        return zeros, {name: oriented_weight(linear) for name, linear in targets.items()}
