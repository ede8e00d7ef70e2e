"""Count the parameters of parts of a model whose blocks have one size."""

from collections.abc import Callable

from torch import nn
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.models.heads import find_heads
from prunelit.models.neurons import find_neurons
from prunelit.models.sharing import weights_outside


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
