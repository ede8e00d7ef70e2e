"""Time of one step of writing, by the widths of the blocks."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.inference.speed import read_and_write
from prunelit.models.rebuilding import build_twin

_BLOCKS, _ROUNDS = 4, 7
_STEP = 64  # entries: a weight begins at a multiple of them


@torch.no_grad()
def time_blocks(
    model: PreTrainedModel, changes: Sequence[Mapping[str, Any]], cached: int, batch_size: int
) -> list[float]:
    """Measure the time that a step of writing takes in a block, and outside of the blocks.

    Small models of a few blocks are built on the device: with as many blocks again, and with each
    change. They have the weights of the model outside of the blocks, and arbitrary ones inside,
    which change no time. All are measured in turns, so that a busy machine slows down all. The
    second model is slower by a few blocks, and a change makes a few blocks faster. Medians of seven
    rounds, after one that is not counted.

    Args:
        model: in evaluation mode and whole, on its device; its blocks have one size.
        changes: fields of the configuration of each model with other widths.
        cached: tokens in the cache before a step.
        batch_size: sequences at once.

    Returns:
        Seconds of a step: outside of the blocks, in a block, and in a block with each change.

    Raises:
        InputError: if the model has fewer than two blocks or no cache of keys and values.
    """
    count = min(_BLOCKS, len(decoder_blocks(model)[1]) // 2)
    if not count:
        raise InputError("Expected at least two blocks to measure the time of one but got one.")
    first = decoder_blocks(model)[1][0]
    entries = sum(_padded(weight) for weight in first.parameters())
    # Only one of the models runs at a time, so they share the memory of their blocks.
    room = torch.empty(2 * count * entries, dtype=model.dtype, device=model.device).normal_(0, 0.02)
    models = [_build(model, {}, 2 * count, room)]
    models += [_build(model, own, count, room) for own in ({}, *changes)]
    rounds = []
    for _ in range(_ROUNDS + 1):
        found = [read_and_write(own, cached, batch_size) for own in models]
        if "decode" not in found[0]:
            raise InputError(
                f"{type(model).__name__} writes without a cache of keys and values, so a step has "
                "no time of its own: set a number of parameters or bytes instead."
            )
        rounds.append([batch_size / own["decode"] for own in found])
    twice, once, *others = zip(*rounds[1:], strict=True)
    block = max(_median(twice, once) / count, 0.0)
    outside = max(statistics.median(once) - count * block, 0.0)
    return [outside, block, *(max(block - _median(once, own) / count, 0.0) for own in others)]


def _median(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the median of the differences of the rounds."""
    return statistics.median(a - b for a, b in zip(one, other, strict=True))


def _build(
    model: PreTrainedModel, changes: Mapping[str, Any], count: int, room: Tensor
) -> PreTrainedModel:
    """Build a model of a few blocks, whose weights are parts of one tensor."""
    twin = build_twin(model, changes)
    prefix, blocks = decoder_blocks(twin)
    del blocks[count:]
    twin.config.get_text_config(decoder=True).num_hidden_layers = count
    place = 0
    for name, module in twin.named_modules():
        if not name.startswith(f"{prefix}."):
            module._parameters = model.get_submodule(name)._parameters
            continue
        for key, weight in module._parameters.items():
            if weight is not None:
                value = room[place : place + weight.numel()].view(weight.shape).to(weight.dtype)
                module._parameters[key] = nn.Parameter(value, requires_grad=False)
                place += _padded(weight)
    return twin


def _padded(weight: Tensor) -> int:
    return -(-weight.numel() // _STEP) * _STEP
