"""Sizes of parts of a model whose blocks have one size: parameters, or the time of a step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from torch import nn
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.models.experts import ExpertMap, count_experts, find_experts
from prunelit.models.fewer_experts import routed_tensors
from prunelit.models.heads import find_heads
from prunelit.models.neurons import find_neurons
from prunelit.models.sharing import weights_outside

# A block is so many units of time: sums of them take few values, and the choice little time.
_UNITS = 256


@dataclass(frozen=True)
class Sizes:
    """Sizes of the parts of a model, in one unit.

    Args:
        outside: of all that is outside of the blocks.
        block: of a block.
        heads: what each option of heads takes off a block.
        neurons: what each option of neurons takes off a block.
        experts: what each option of experts takes off a block.
        both: by option of neurons and of experts, what both would take off.
        most: the largest size of a model that fits.
        unit: of the sizes, a parameter, or so many seconds.
    """

    outside: int
    block: int
    heads: Sequence[int]
    neurons: Sequence[int]
    most: int
    unit: float = 1.0
    experts: Sequence[int] = (0,)
    both: Sequence[Sequence[int]] = ()

    def menu(self, experts: int = 0) -> Iterator[tuple[int, int, int]]:
        """List options of heads and of neurons, and the size of a block with both.

        Args:
            experts: option of experts of all blocks.
        """
        for heads, neurons in product(range(len(self.heads)), range(len(self.neurons))):
            gone = self.heads[heads] + self.neurons[neurons] + self.experts[experts]
            twice = self.both[neurons][experts] if self.both else 0
            yield heads, neurons, max(self.block - gone + twice, 0)

    def least(self) -> int:
        """Give the size of the smallest block."""
        return min(size for e in range(len(self.experts)) for *_, size in self.menu(e))


def as_sizes(seconds: Sequence[float], heads: int, most: float) -> Sizes:
    """Make sizes of times.

    Args:
        seconds: outside of the blocks, of a block, then of a block with each option of heads, and
            with each option of neurons.
        heads: number of the options of heads.
        most: seconds of the slowest model that fits.
    """
    outside, block, *others = seconds
    unit = max(block, 1e-9) / _UNITS
    gone = [round((block - own) / unit) for own in others]
    return Sizes(
        round(outside / unit),
        round(block / unit),
        [0, *gone[:heads]],
        [0, *gone[heads:]],
        int(most / unit),
        unit,
    )


def count_outside(model: PreTrainedModel) -> int:
    """Count the parameters outside of the blocks."""
    return sum(weight.numel() for _, weight in weights_outside(model))


def count_in_heads(model: PreTrainedModel, count: int) -> int:
    """Count the parameters of a block that go with some groups of heads.

    Args:
        model: with heads in every block.
        count: number of groups.
    """
    found = find_heads(model)[0]
    assert found is not None
    block = decoder_blocks(model)[1][0]
    size = sum(block.get_parameter(name).numel() for name in found.axes)
    return size * count // found.groups


def count_in_experts(block: nn.Module, count: int) -> int:
    """Count the parameters of a block that go with some experts of each of its mixtures.

    Args:
        block: of the model.
        count: number of experts.
    """
    total = 0
    for name, experts in find_experts(block).items():
        for value, _ in routed_tensors(block, name).values():
            if isinstance(value, nn.Parameter):
                total += value.numel() // count_experts(experts) * count
    return total


def count_in_neurons(
    block: nn.Module, removed: Callable[[int], int], experts: int | None = None
) -> int:
    """Count the parameters of a block that go with neurons of its MLPs.

    Args:
        block: of the model.
        removed: gives the number of neurons that go, by the width of an MLP.
        experts: count those of so many experts of each mixture alone; None counts all MLPs.
    """
    linears, total = linear_modules(block), 0
    for neurons in find_neurons(block):
        if experts is not None:
            output = linears[neurons.output]
            if not (isinstance(output, ExpertMap) and output.index < experts):
                continue
        own = oriented_weight(linears[neurons.output]).numel()
        for name in neurons.inputs:
            bias = getattr(linears[name], "bias", None)
            own += oriented_weight(linears[name]).numel() + (0 if bias is None else bias.numel())
        total += own // neurons.width * removed(neurons.width)
    return total
