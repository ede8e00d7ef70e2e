"""Weights outside the blocks that are one memory in both models of a run."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks
from prunelit.models.stores import WORDS


def share_outside(model: PreTrainedModel, other: PreTrainedModel) -> None:
    """Let weights outside the blocks be one memory where both models have equal ones.

    Nothing may change them in place from now on.

    Args:
        model: gets the memory of the other.
        other: the other model of the pair.
    """
    outside = dict(weights_outside(other))
    for name, weight in weights_outside(model):
        twin = outside.get(name)
        if twin is not None and not weight.is_meta and _equal(weight, twin):
            weight.data = twin.data


def copy_sharing(dense: PreTrainedModel) -> PreTrainedModel:
    """Copy a model; what is outside the blocks stays one memory, which nothing may change in place.

    Args:
        dense: any.
    """
    shared = {
        id(weight): nn.Parameter(weight.detach(), requires_grad=False)
        for _, weight in weights_outside(dense)
    }
    return copy.deepcopy(dense, shared)  # type: ignore[arg-type]


@torch.no_grad()
def outside_sums(model: PreTrainedModel) -> list[int]:
    """Sum the bits of each weight outside the blocks, as integers: an edit changes them.

    Args:
        model: any.
    """
    return [int(_bits(weight).sum(dtype=torch.int64)) for _, weight in weights_outside(model)]


def weights_outside(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names of the plain weights outside the blocks, and these."""
    prefix = f"{decoder_blocks(model)[0]}."
    for name, weight in model.named_parameters():
        if not name.startswith(prefix) and type(weight.data) is Tensor:
            yield name, weight


def _equal(one: Tensor, other: Tensor) -> bool:
    """Compare all bits."""
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    if one.data_ptr() == other.data_ptr():
        return True
    return torch.equal(_bits(one), _bits(other))


def _bits(weight: Tensor) -> Tensor:
    return weight.detach().view(WORDS[weight.element_size()])
