"""Remove dropped parts of a model."""

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import block_weights, decoder_blocks
from prunelit.models.channels import find_removed_channels
from prunelit.models.fewer_experts import drop_experts_, find_dropped_experts
from prunelit.models.heads import Heads, find_gone_heads, known_heads
from prunelit.models.hidden import take_channels_out
from prunelit.models.neurons import find_gone
from prunelit.models.parts import find_zeros, sublayers
from prunelit.models.rebuilding import build_skeleton, shapes_of
from prunelit.models.removal import Parts, Removal, find_removal, take_out
from prunelit.models.stores import each_whole
from prunelit.models.views import view
from prunelit.models.widths import find_block_widths, keep_groups_, keep_neurons_
from prunelit.models.without_sublayers import Absent, fields_of, note_fields

_NUMBERS_OF_HEADS = ("num_attention_heads", "num_key_value_heads")


@dataclass
class Removed:
    """Parts of the dense model that a stored model does not have.

    Args:
        blocks: indices of blocks in the dense model.
        attention: indices, in the stored model, of blocks without attention.
        mlp: indices, in the stored model, of blocks without MLP.
        widths: new widths of MLPs and experts by those of the dense model, as text; empty if
            blocks differ, see `fields`.
        experts: number of experts of each mixture; None means that of the dense model.
        mixer: indices, in the stored model, of blocks without a mixer that is no attention.
        returns: values that the modules that are left out return, by `index.name` in the stored
            model, see `prunelit.models.absent`.
        kept_experts: numbers, in the dense model, of the experts that a mixture still has, in their
            order, by `index.name` in the stored model; empty if it has all.
        heads: new numbers of heads of every attention, by their fields in config.json; empty if it
            has all.
        hidden_size: channels of the residual stream; None means those of the dense model.
        fields: fields of config.json that a block has for itself, by its index in the stored
            model: numbers of heads and neurons that differ from block to block.
    """

    blocks: list[int] = field(default_factory=list)
    attention: list[int] = field(default_factory=list)
    mlp: list[int] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    experts: int | None = None
    mixer: list[int] = field(default_factory=list)
    returns: dict[str, str] = field(default_factory=dict)
    kept_experts: dict[str, list[int]] = field(default_factory=dict)
    heads: dict[str, int] = field(default_factory=dict)
    hidden_size: int | None = None
    fields: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return a dict that JSON can hold."""
        return asdict(self)

    @property
    def sublayers(self) -> bool:
        """True if a block lacks a sublayer, so that no stock class loads the model."""
        return bool(self.attention or self.mixer or self.mlp)


@torch.no_grad()
def find_dropped(block: nn.Module, heads: Heads | None = None) -> dict[str, Tensor]:
    """Find the entries of a block's weights that `shrink_` takes out.

    Args:
        block: a decoder block, whole.
        heads: those of its attention; None if it cannot have fewer.

    Returns:
        By name of the parameter: all its entries if its sublayer is dropped; those of dropped
        experts; those of neurons without output for a map of the MLP, those of heads without output
        for a map of attention. Other weights are left out.
    """
    parts, zeros = sublayers(block), find_zeros(block)
    inside = tuple(f"{part}." for kind in zeros for part in parts[kind].parts)
    found = {} if "mlp" in zeros else find_dropped_experts(block)
    if heads is not None:
        found |= find_gone_heads(block, heads)
    found |= {
        name: weight.value
        for name, weight in block_weights(block).items()
        if name.startswith(inside)
    }
    return found if "mlp" in zeros else found | find_gone(block)


@torch.no_grad()
def shrink_(model: PreTrainedModel, *, by_block: bool = False) -> Removed:
    """Take dropped blocks and sublayers, and zero neurons and heads, out of a model, in place.

    A block is removed if all its sublayers are dropped. MLPs, and experts, of one width get one new
    width: that of the one with the most neurons that are not 0. All attention gets one number of
    heads in the same way. If one sublayer is dropped, its modules are replaced by `Absent`. A
    mixture loses its dropped experts, see `drop_experts_`. Channels of the residual stream that are
    0 go, see `prunelit.models.hidden`. The model gets a configuration of its own.

    Args:
        model: with zeros in dropped parts.
        by_block: each block loses all its heads and neurons that are 0. If their numbers then
            differ, no stock class describes the model, see `prunelit.models.without_sublayers`.

    Returns:
        The parts that it does not have any more.

    Raises:
        InputError: before any change, if all blocks are dropped, or if no configuration describes
            the smaller model.
    """
    _, blocks = decoder_blocks(model)
    parts = _find_parts(blocks)
    kept = [i for i in range(len(blocks)) if i not in parts.blocks]
    if not kept:
        raise InputError("Expected a block to be left but all were dropped: drop fewer.")
    removal = Removal()
    if parts.blocks or parts.sublayers:
        removal = find_removal(model, parts)
    small = view(model)
    small.config = copy.deepcopy(model.config)
    take_out(small, parts, removal)
    mlps, mixers = (
        [i for i in kept if kind not in parts.sublayers.get(i, ())] for kind in ("mlp", "mixer")
    )
    widths = find_block_widths(model, small, mlps, mixers, by_block)
    removal.changes.update(widths.common)
    gone = find_removed_channels(model)
    own_config(model)
    heads = known_heads(model) if widths.groups else []
    experts = drop_experts_(model)
    keep_groups_(model, heads, widths)
    take_out(model, parts, removal)
    for block, index in zip(decoder_blocks(model)[1], kept, strict=True):
        if own := widths.fields.get(index):
            note_fields(block, dict(own))
    removed = find_removed(model)
    removed.blocks = list(parts.blocks)
    removed.kept_experts = {
        f"{place}.{name}": numbers
        for place, index in enumerate(kept)
        for name, numbers in experts.get(index, {}).items()
    }
    removed.experts = next(map(len, removed.kept_experts.values()), None)
    if not removed.fields:
        removed.widths = {str(w): new for own in widths.neurons.values() for w, new in own.items()}
    removed.heads = {
        name: value for name, value in widths.common.items() if name in _NUMBERS_OF_HEADS
    }
    keep_neurons_(model, widths, kept)
    if gone is not None:
        take_channels_out(model, gone)
        removed.hidden_size = int((~gone).sum())
    if experts or widths.groups or widths.fields or gone is not None:
        _check_shapes(model)
    return removed


def _check_shapes(model: PreTrainedModel) -> None:
    """Refuse a model that `from_pretrained` would not build from its configuration."""
    own, built = shapes_of(model), shapes_of(build_skeleton(model, copy.deepcopy(model.config)))
    if own != built:
        different = sorted(dict(set(own.items()) ^ set(built.items())))
        raise InputError(
            f"{type(model).__name__} cannot be made smaller: its configuration makes another "
            f"{different[0]!r} than the pruned model has. Prune weights instead."
        )


def _find_parts(blocks: nn.ModuleList) -> Parts:
    """Find the blocks and sublayers whose weights are all 0."""
    zeros = {index: find_zeros(block) for index, block in enumerate(each_whole(blocks))}
    gone = [i for i, kinds in zeros.items() if kinds and kinds == set(sublayers(blocks[i]))]
    return Parts(gone, {i: sorted(k) for i, k in zeros.items() if k and i not in gone})


def build_exported(
    model: PreTrainedModel, *, by_block: bool = False
) -> tuple[PreTrainedModel, Removed]:
    """Build the model to save, see `shrink_`.

    Args:
        model: with zeros in dropped parts. It is not changed; the new model shares its weights.
        by_block: see `shrink_`.

    Returns:
        The model to save, and the parts that it does not have.

    Raises:
        InputError: as `shrink_` does.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    smaller = copy.deepcopy(model, shared)
    return smaller, shrink_(smaller, by_block=by_block)


def count_stored(model: PreTrainedModel) -> dict[str, int]:
    """Count the parameters of a model and their bytes; shared ones count once."""
    parameters = list(model.parameters())
    return {
        "stored_parameters": sum(p.numel() for p in parameters),
        "stored_bytes": sum(p.nbytes for p in parameters),
    }


def find_removed(model: PreTrainedModel) -> Removed:
    """Find the sublayers that a model lacks, and the blocks that have fields for themselves."""
    removed = Removed()
    for index, block in enumerate(decoder_blocks(model)[1]):
        for fields in fields_of(block).values():
            removed.fields[str(index)] = fields
        for name, module in block.named_children():
            if isinstance(module, Absent):
                removed.returns[f"{index}.{name}"] = module.returns
                places = getattr(removed, module.kind)
                places += [index] if index not in places else []
    return removed


def check_whole(model: PreTrainedModel) -> None:
    """Refuse a model whose blocks differ already if more parts are to be dropped or narrowed.

    Raises:
        InputError: naming the missing sublayers.
    """
    removed = find_removed(model)
    if removed.fields:
        raise InputError(
            f"Expected a model whose blocks have one width but {len(removed.fields)} of its blocks "
            "have numbers of heads or neurons of their own: start from the dense model and remove "
            "all parts in one run."
        )
    if removed.sublayers:
        missing = {"mixers": sorted(removed.attention + removed.mixer), "MLPs": removed.mlp}
        lacks = [f"{kind} in blocks {places}" for kind, places in missing.items() if places]
        raise InputError(
            f"Expected a model with all its sublayers but it lacks {' and '.join(lacks)}: start "
            "from the dense model and drop all parts in one run."
        )


def own_config(model: PreTrainedModel) -> None:
    """Give a model and its parts a copy of their configuration; other models may share it."""
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, PreTrainedConfig):
                setattr(module, name, copies.get(id(value), value))
