"""Sizes of parts of a model whose blocks have one size: parameters, or the time of a step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from torch import nn
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
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
        most: the largest size of a model that fits.
        unit: of the sizes, a parameter, or so many seconds.
    """

    outside: int
    block: int
    heads: Sequence[int]
    neurons: Sequence[int]
    most: int
    unit: float = 1.0

    def menu(self) -> Iterator[tuple[int, int, int]]:
        """List options of heads and of neurons, and the size of a block with both."""
        for heads, neurons in product(range(len(self.heads)), range(len(self.neurons))):
            gone = self.heads[heads] + self.neurons[neurons]
            yield heads, neurons, max(self.block - gone, 0)


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


def count_in_neurons(block: nn.Module, removed: Callable[[int], int]) -> int:
    """Count the parameters of a block that go with neurons of its MLPs.

    Args:
        block: of the model.
        removed: gives the number of neurons that go, by the width of an MLP.
    """
    linears, total = linear_modules(block), 0
    for neurons in find_neurons(block):
        own = oriented_weight(linears[neurons.output]).numel()
        for name in neurons.inputs:
            bias = getattr(linears[name], "bias", None)
            own += oriented_weight(linears[name]).numel() + (0 if bias is None else bias.numel())
        total += own // neurons.width * removed(neurons.width)
    return total
