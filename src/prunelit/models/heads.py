"""The heads of attention: find their entries in the tensors of a block, and take some out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError, first_line
from prunelit.models.architecture import (
    block_output,
    decoder_blocks,
    final_hidden,
    probe_ids,
    repeated_weights,
)
from prunelit.models.forwards import replaced_forwards
from prunelit.models.parts import sublayers
from prunelit.models.rebuilding import (
    adopt_numbers,
    build_skeleton,
    build_twin,
    by_configuration,
    changed,
    check_near,
    exchanged,
    is_readable,
    pair,
    shapes_of,
)
from prunelit.models.stores import each_whole, whole


@dataclass(frozen=True)
class Heads:
    """Entries of the tensors of one block that belong to heads.

    Query heads that share a key and a value are a group; they stay or go together. Without shared
    keys each head is a group.

    Args:
        axes: by the name of a parameter in the block, the axis that counts heads, and the sizes of
            the sections of this axis. Each section is divided evenly among the groups.
        output: name of the linear map that reads what the heads give.
        heads: number of query heads.
        groups: number of groups.
    """

    axes: Mapping[str, tuple[int, tuple[int, ...]]]
    output: str
    heads: int
    groups: int

    def entries(self, name: str, groups: Tensor) -> tuple[int, Tensor]:
        """Find the entries of a parameter that belong to groups.

        Args:
            name: of the parameter in the block.
            groups: (G,) bool.

        Returns:
            The axis, and the places along it.
        """
        axis, sections = self.axes[name]
        owners = torch.cat([torch.arange(size) * self.groups // size for size in sections])
        return axis, groups.cpu()[owners].nonzero().flatten().to(groups.device)

    def alive(self, block: nn.Module) -> Tensor:
        """(G,) bool, True for groups whose columns of the output map are not all zeros.

        Args:
            block: whole.
        """
        weight = block.get_parameter(f"{self.output}.weight")
        return weight.any(0).view(self.groups, -1).any(1)


@by_configuration
def find_heads(model: PreTrainedModel) -> list[Heads | None]:
    """Find the heads of each block; None for a block without attention to keys and values.

    The tensors of heads are those that get smaller if the configuration has fewer heads.

    Raises:
        InputError: if the configuration cannot have fewer heads of the same width.
    """
    heads, groups = _count(model)
    prefix, blocks = decoder_blocks(model)
    wide = _refusal(
        model,
        "its configuration has no width of a head of its own (`head_dim`), so that fewer heads "
        "would be wider",
    )
    try:
        small = shapes_of(build_skeleton(model, changed(model.config, head_changes(model, 1))))
    except Exception as error:
        if getattr(model.config.get_text_config(decoder=True), "head_dim", None) is None:
            raise wide from error
        why = f"its class cannot have fewer ({first_line(error).rstrip('.')})"
        raise _refusal(model, why) from error
    found: list[dict[str, tuple[int, tuple[int, ...]]]] = [{} for _ in blocks]
    for name, size in shapes_of(model).items():
        if small.get(name) == size:
            continue
        other = small.get(name, ())
        axes = [axis for axis, (a, b) in enumerate(zip(size, other, strict=False)) if a != b]
        inside = name.startswith(f"{prefix}.")
        if len(axes) != 1 or not inside or size[axes[0]] != groups * other[axes[0]]:
            raise _refusal(model, f"with fewer heads {name!r} does not get smaller by their share")
        index, _, part = name.removeprefix(f"{prefix}.").partition(".")
        found[int(index)][part] = axes[0], (size[axes[0]],)
    if not any(found):
        raise wide
    for axes, repeated in zip(found, repeated_weights(model), strict=True):
        if shared := sorted(repeated & axes.keys()):
            raise _refusal(model, f"two blocks share {shared[0]!r}")
    return [
        _describe(model, block, axes, heads, groups) if axes else None
        for block, axes in zip(blocks, found, strict=True)
    ]


def _describe(
    model: PreTrainedModel,
    block: nn.Module,
    axes: dict[str, tuple[int, tuple[int, ...]]],
    heads: int,
    groups: int,
) -> Heads:
    """Find the output map among the tensors of heads, and a map of queries, keys and values."""
    outputs = [
        name.removesuffix(".weight")
        for name, (axis, _) in axes.items()
        if axis == 1 and isinstance(block.get_submodule(name.rpartition(".")[0]), nn.Linear)
    ]
    if len(outputs) != 1:
        raise _refusal(model, f"a block has {len(outputs)} maps that read heads and not one")
    columns = sum(axes[f"{outputs[0]}.weight"][1])
    share = columns // heads * groups
    for name, (axis, (size, *_)) in axes.items():
        # A fused map has first all queries, then all keys, then all values.
        if size == columns + 2 * share and "qkv" in name:
            axes[name] = axis, (columns, share, share)
    return Heads(axes, outputs[0], heads, groups)


def _count(model: PreTrainedModel) -> tuple[int, int]:
    """Count the query heads and their groups."""
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None)
    groups = getattr(config, "num_key_value_heads", None) or heads
    if type(heads) is not int or type(groups) is not int or heads % groups:
        raise _refusal(model, "its configuration has no number of heads that all blocks have")
    try:
        getattr(config, "head_dim", None)
    except Exception as error:  # transformers refuses it where blocks have different ones
        raise _refusal(model, "its blocks have heads of different widths") from error
    if groups == 1:
        raise _refusal(model, "all its heads share one key and one value")
    return heads, groups


def head_changes(model: PreTrainedModel, kept: int) -> dict[str, int]:
    """Give the fields of the configuration of a model with fewer groups of heads.

    Args:
        model: with all of them.
        kept: number of groups.
    """
    config = model.config.get_text_config(decoder=True)
    heads, groups = _count(model)
    changes = {"num_attention_heads": heads // groups * kept}
    if getattr(config, "num_key_value_heads", None) is not None:
        changes["num_key_value_heads"] = kept
    if getattr(config, "head_dim", None) is None:
        changes["head_dim"] = config.hidden_size // heads
    return changes


@torch.no_grad()
def check_fewer_heads(model: PreTrainedModel, kept: int) -> None:
    """Prove on a few tokens that the stock class computes what is left of some groups of heads.

    Each block without some groups must give what the block of a smaller configuration gives of the
    same input.

    Args:
        model: its blocks may wait in stores; stays as it is. Without values, only the configuration
            is asked.
        kept: number of groups to keep.

    Raises:
        InputError: naming the class and the reason.
    """
    found = find_heads(model)
    heads, groups = _count(model)
    if not _takes(model, kept):
        allowed = [str(k * (heads // groups)) for k in range(1, groups) if _takes(model, k)]
        raise _refusal(
            model,
            f"{type(model.config).__name__} does not take {kept * (heads // groups)} of {heads} "
            f"heads (it takes {', '.join(allowed) or 'no fewer'})",
        )
    if model.device.type == "meta":
        return
    twins = decoder_blocks(build_twin(model, head_changes(model, kept)))[1]
    blocks = decoder_blocks(model)[1]

    def run(index: int, *args: Any, **kwargs: Any) -> Any:
        block, own = blocks[index], found[index]
        with whole(block):
            if own is None:
                return type(block).forward(block, *args, **kwargs)
            gone = torch.arange(groups, device=model.device).roll(index) >= kept
            axis, keep = own.entries(f"{own.output}.weight", ~gone)
            with _reading(block, own.output, own.entries(f"{own.output}.weight", gone)[1]) as read:
                output = type(block).forward(block, *args, **kwargs)
            assert axis == 1
            with (
                exchanged(pair(twins[index], block), partial(_keep, own, ~gone)),
                _reading(twins[index], own.output) as small,
            ):
                narrow = twins[index](*args, **kwargs)
        pairs = [(small[0], read[0][..., keep]), (block_output(narrow), block_output(output))]
        for one, other in pairs:
            check_near(f"block {index}", one, other, model.dtype)
        return output

    ids = probe_ids(model, 1, 8)
    training = model.training
    model.eval()
    try:
        with replaced_forwards({b: partial(run, index) for index, b in enumerate(blocks)}):
            final_hidden(model, ids, torch.ones_like(ids))
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise _refusal(
            model,
            "its class would compute something else of those that are left "
            f"({first_line(error).rstrip('.')})",
        ) from error
    finally:
        model.train(training)


def _takes(model: PreTrainedModel, kept: int) -> bool:
    """Return True if a configuration with fewer groups can be read from a file."""
    return is_readable(changed(model.config, head_changes(model, kept)))


@contextmanager
def _reading(block: nn.Module, name: str, gone: Tensor | None = None) -> Iterator[list[Tensor]]:
    """Note the input of a linear map of a block, and put zeros in some of its columns."""
    found: list[Tensor] = []

    def note(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        found.append(args[0])
        value = args[0] if gone is None else args[0].index_fill(-1, gone, 0)
        return (value, *args[1:])

    handle = block.get_submodule(name).register_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()


def _keep(heads: Heads, keep: Tensor, name: str, value: nn.Parameter) -> nn.Parameter:
    return _select(value, *heads.entries(name, keep)) if name in heads.axes else value


def _select(value: nn.Parameter, axis: int, places: Tensor) -> nn.Parameter:
    chosen = value.index_select(axis, places.to(value.device)).contiguous()
    return nn.Parameter(chosen, value.requires_grad)


def zero_heads_(block: nn.Module, heads: Heads, gone: Tensor) -> None:
    """Set all entries of some groups of heads to 0.

    Args:
        block: whole.
        heads: of the block.
        gone: (G,) bool.
    """
    for name in heads.axes:
        value = block.get_parameter(name)
        axis, places = heads.entries(name, gone)
        value.index_fill_(axis, places.to(value.device), 0)


def find_gone_heads(block: nn.Module, heads: Heads) -> dict[str, Tensor]:
    """Find the entries of a block's tensors that belong to groups of heads without output.

    Args:
        block: whole.
        heads: of the block.

    Returns:
        By name of the parameter; nothing if all heads have an output.
    """
    gone = ~heads.alive(block)
    if not gone.any():
        return {}
    return {
        name: block.get_parameter(name).index_select(axis, places)
        for name in heads.axes
        for axis, places in [heads.entries(name, gone)]
    }


def lacks_heads(block: nn.Module) -> bool:
    """Return True if a map of a block's mixer has columns of zeros beside others.

    Only then it is worth to look for heads that are gone.

    Args:
        block: whole.
    """
    parts = sublayers(block)["mixer"].parts if "mixer" in sublayers(block) else ()
    for part in parts:
        for module in block.get_submodule(part).modules():
            if isinstance(module, nn.Linear):
                alive = module.weight.any(0)
                if alive.any() and not alive.all():
                    return True
    return False


def known_heads(model: PreTrainedModel) -> Sequence[Heads | None]:
    """Give `find_heads`; no heads for a model that cannot have fewer."""
    try:
        return find_heads(model)
    except InputError:
        return [None] * len(decoder_blocks(model)[1])


def count_kept_heads(model: PreTrainedModel, indices: Sequence[int]) -> int | None:
    """Count the groups of heads that blocks need; None if they need all that they have.

    Args:
        model: its blocks may wait in stores.
        indices: of blocks whose mixers stay.
    """
    blocks = [decoder_blocks(model)[1][index] for index in indices]
    if not sum(lacks_heads(block) for block in each_whole(blocks)):  # all: stores come in order
        return None
    found = known_heads(model)
    pairs = zip(each_whole(blocks), indices, strict=True)
    counts = [int(own.alive(block).sum()) for block, i in pairs if (own := found[i]) is not None]
    groups = next((own.groups for own in found if own is not None), 0)
    kept = max(counts, default=0)
    return kept if 0 < kept < groups else None


@torch.no_grad()
def keep_heads_(block: nn.Module, heads: Heads, twin: nn.Module) -> None:
    """Take groups of heads without output out of a block, in place.

    Args:
        block: whole.
        heads: of the block.
        twin: block of a model with fewer heads, whose numbers it gets. If fewer groups have an
            output, some that have none stay too.
    """
    columns = twin.get_parameter(f"{heads.output}.weight").shape[1]
    kept = columns * heads.groups // block.get_parameter(f"{heads.output}.weight").shape[1]
    order = torch.argsort(heads.alive(block).logical_not(), stable=True)
    keep = torch.zeros(heads.groups, dtype=torch.bool, device=order.device)
    keep[order[:kept]] = True
    for name in heads.axes:
        owner, _, last = name.rpartition(".")
        value = block.get_parameter(name)
        setattr(block.get_submodule(owner), last, _select(value, *heads.entries(name, keep)))
    for _, small, module in pair(twin, block):
        adopt_numbers(module, small)


def _refusal(model: PreTrainedModel, why: str) -> InputError:
    return InputError(
        f"The heads of {type(model).__name__} cannot be removed: {why}. Prune neurons or weights, "
        "or drop sublayers instead."
    )
