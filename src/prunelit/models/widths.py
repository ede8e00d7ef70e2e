"""Find what heads and neurons the blocks of a smaller model have, and the fields that say so."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks
from prunelit.models.heads import Heads, count_kept_heads, head_changes, keep_heads_, known_heads
from prunelit.models.neurons import find_width_changes, find_widths, narrow_
from prunelit.models.rebuilding import build_twin
from prunelit.models.stores import whole


@dataclass(frozen=True)
class Widths:
    """Heads and neurons that the blocks of a smaller model have.

    Args:
        neurons: by index of a block, new widths of its MLPs by the present ones.
        groups: by index of a block, number of its groups of heads.
        common: fields of the configuration of the whole model, by name.
        fields: by index of a block, fields of the configuration that it has for itself.
    """

    neurons: Mapping[int, Mapping[int, int]]
    groups: Mapping[int, int]
    common: Mapping[str, Any]
    fields: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)


def find_block_widths(
    model: PreTrainedModel,
    small: PreTrainedModel,
    mlps: Sequence[int],
    mixers: Sequence[int],
    by_block: bool,
) -> Widths:
    """Find the heads and neurons that blocks need; those that are 0 are not needed.

    Args:
        model: with zeros in the others; its blocks may wait in stores.
        small: the same model without the parts that go as a whole.
        mlps: indices of the blocks whose MLPs stay.
        mixers: indices of the blocks whose mixers stay.
        by_block: each block has its own numbers; False gives all the largest ones.

    Raises:
        InputError: if no configuration has MLPs of these widths.
    """
    blocks = decoder_blocks(model)[1]
    neurons: dict[int, Mapping[int, int]] = {}
    groups: dict[int, int | None] = {}
    for own in _sets(mlps, by_block):
        neurons |= dict.fromkeys(own, find_widths(blocks[index] for index in own))
    for own in _sets(mixers, by_block):
        groups |= dict.fromkeys(own, count_kept_heads(model, own))
    fewer = {index: count for index, count in groups.items() if count is not None}
    if fewer:  # some blocks have a mixer without heads
        heads = known_heads(model)
        groups = {index: count for index, count in groups.items() if heads[index] is not None}
    common: dict[str, Any] = {}
    fields: dict[int, dict[str, Any]] = {}
    for index, widths in neurons.items():
        changes = find_width_changes(small, widths) if widths else {}
        (common if _equal(neurons.values()) else fields.setdefault(index, {})).update(changes)
    for index, count in groups.items():
        changes = {} if count is None else head_changes(model, count)
        (common if _equal(groups.values()) else fields.setdefault(index, {})).update(changes)
    own_fields = {index: changes for index, changes in fields.items() if changes}
    return Widths({i: own for i, own in neurons.items() if own}, fewer, common, own_fields)


def _sets(indices: Sequence[int], by_block: bool) -> list[list[int]]:
    return [[index] for index in indices] if by_block else [[*indices]]


def _equal(values: Iterable[Any]) -> bool:
    first, *rest = values
    return all(value == first for value in rest)


def keep_groups_(model: PreTrainedModel, heads: Sequence[Heads | None], widths: Widths) -> None:
    """Take groups of heads without output out of the blocks of a model, in place.

    Args:
        model: with all its blocks.
        heads: of each block.
        widths: of its blocks.
    """
    blocks = decoder_blocks(model)[1]
    for count in dict.fromkeys(widths.groups.values()):
        twins = decoder_blocks(build_twin(model, head_changes(model, count)))[1]
        for index in [index for index, own in widths.groups.items() if own == count]:
            if (found := heads[index]) is not None:
                with whole(blocks[index], edited=True):
                    keep_heads_(blocks[index], found, twins[index])


def keep_neurons_(model: PreTrainedModel, widths: Widths, kept: Sequence[int]) -> None:
    """Take neurons without output out of the blocks of a model, in place.

    Args:
        model: its other blocks are gone.
        widths: of its blocks, by their indices of before.
        kept: the index of before of each block.
    """
    for index, block in zip(kept, decoder_blocks(model)[1], strict=True):
        if own := widths.neurons.get(index):
            with whole(block, edited=True):
                narrow_(block, own)
