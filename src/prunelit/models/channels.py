"""The channels of the residual stream: find them in all tensors of a model, and set some to 0."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError, first_line
from prunelit.models.architecture import decoder_blocks
from prunelit.models.experts import fused_tensors
from prunelit.models.rebuilding import (
    build_skeleton,
    by_configuration,
    changed,
    is_readable,
    shapes_of,
)
from prunelit.models.stores import each_whole


@dataclass(frozen=True)
class Channels:
    """Places of the channels of the residual stream in the tensors of a model.

    Args:
        width: D, number of channels.
        axes: by the name of a parameter, its axes that count channels, and the role of each:
            `read`, `write`, or `each` for a vector that multiplies each channel.
        prefix: name of the list of blocks.
    """

    width: int
    axes: Mapping[str, tuple[tuple[int, str], ...]]
    prefix: str

    def inside(self, index: int) -> dict[str, tuple[tuple[int, str], ...]]:
        """Give `axes` of one block, by names inside it."""
        start = f"{self.prefix}.{index}."
        return {n.removeprefix(start): a for n, a in self.axes.items() if n.startswith(start)}

    def norms(self, index: int) -> list[str]:
        """Name the modules of a block that multiply each channel."""
        found = [n for n, axes in self.inside(index).items() if axes == ((0, "each"),)]
        return [name.rpartition(".")[0] for name in found]


@by_configuration
def find_channels(model: PreTrainedModel) -> Channels:
    """Find the tensors that get narrower if the configuration has a smaller `hidden_size`.

    Raises:
        InputError: if other tensors change too.
    """
    config = model.config
    width = getattr(config, "hidden_size", None)
    if config.get_text_config(decoder=True) is not config or type(width) is not int:
        raise refusal(model, "its configuration is not that of one text model with `hidden_size`")
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and tuple(module.normalized_shape) == (width,):
            refuse_mean(model, name, width)
    step = getattr(config, "num_attention_heads", 1)
    new = width - step if width > step else width // 2
    try:
        small = shapes_of(build_skeleton(model, changed(config, width_changes(model, new))))
    except Exception as error:
        why = f"its class cannot have another `hidden_size` ({first_line(error).rstrip('.')})"
        raise refusal(model, why) from error
    axes: dict[str, tuple[tuple[int, str], ...]] = {}
    for name, size in shapes_of(model).items():
        other = small.get(name, ())
        differ = [i for i, (a, b) in enumerate(zip(size, other, strict=False)) if a != b]
        if len(size) != len(other) or any((size[i], other[i]) != (width, new) for i in differ):
            raise refusal(model, f"another `hidden_size` gives {name!r} a width of its own too")
        if differ:
            axes[name] = tuple((axis, _role(model, name, axis)) for axis in differ)
    return Channels(width, axes, decoder_blocks(model)[0])


def _role(model: PreTrainedModel, name: str, axis: int) -> str:
    """Tell what a tensor does with the channels along one of its axes."""
    path, _, last = name.rpartition(".")
    module, value = model.get_submodule(path), model.get_parameter(name)
    if fused := fused_tensors(module):
        return "write" if last.removesuffix("_bias") == fused[-1] else "read"
    if value.ndim == 2:
        return "write" if axis == 0 else "read"
    if value.ndim == 1:
        return "write" if isinstance(module, nn.Linear) else "each"
    raise refusal(model, f"{name!r} is neither a linear map nor a vector")


def width_changes(model: PreTrainedModel, width: int) -> dict[str, int]:
    """Give the fields of the configuration of a model with another hidden width.

    Args:
        model: as it is.
        width: the new one.
    """
    changes = {"hidden_size": width}
    if getattr(model.config, "head_dim", None) is None:
        changes["head_dim"] = model.config.hidden_size // model.config.num_attention_heads
    return changes


def fitting_width(model: PreTrainedModel, ratio: float) -> int:
    """Find the width nearest to a share that the configuration takes; a multiple of 8 if D is one.

    Args:
        model: as it is.
        ratio: share of the channels to remove.
    """
    width = find_channels(model).width
    step = 8 if width % 8 == 0 else 1
    wanted = (1 - ratio) * width
    for kept in sorted(range(step, width + 1, step), key=lambda kept: (abs(kept - wanted), kept)):
        if kept == width or is_readable(changed(model.config, width_changes(model, kept))):
            return kept
    raise AssertionError("the width that it has is taken")


def find_empty_channels(model: PreTrainedModel) -> Tensor | None:
    """(D,) bool, True for channels that are 0 in the embeddings.

    Args:
        model: its blocks may wait in stores.

    Returns:
        None if there are none, or if the model cannot be narrower.
    """
    table: Any = model.get_input_embeddings()
    gone = ~table.weight.any(0)
    if not gone.any():
        return None
    try:
        width = find_channels(model).width
    except InputError:
        return None
    return gone if len(gone) == width else None


def find_removed_channels(model: PreTrainedModel) -> Tensor | None:
    """(D,) bool, True for channels that are 0 in the embeddings and that no block writes.

    Args:
        model: its blocks may wait in stores.

    Returns:
        None if there are none, or if the model cannot be narrower.
    """
    gone = find_empty_channels(model)
    if gone is not None:
        channels = find_channels(model)
        for index, block in enumerate(each_whole(decoder_blocks(model)[1])):
            gone = _unwritten(block, channels.inside(index), gone)
    return None if gone is None or not gone.any() or gone.all() else gone


def _unwritten(block: nn.Module, axes: Mapping[str, Any], gone: Tensor) -> Tensor:
    """Keep True for the channels that a block does not write."""
    for name, own in axes.items():
        for axis, role in own:
            if role == "write":
                rows = block.get_parameter(name).movedim(axis, 0).reshape(len(gone), -1)
                gone = gone & ~rows.any(1).to(gone.device)
    return gone


def find_gone_channels(
    model: PreTrainedModel, index: int, gone: Tensor, others: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Find the entries of a block's tensors that belong to removed channels.

    Args:
        model: the block is whole.
        index: of the block.
        gone: see `find_empty_channels`.
        others: entries of other removed parts, by name, which lie along the whole axis of the
            channels.

    Returns:
        By name of the parameter, with those of `others`.
    """
    block, axes = decoder_blocks(model)[1][index], find_channels(model).inside(index)
    gone = _unwritten(block, axes, gone)
    found: dict[str, Tensor] = {}
    for name, own in axes.items() if gone.any() else ():
        weight = block.get_parameter(name)
        stays = torch.ones_like(weight, dtype=torch.bool)
        for axis, _ in own:
            stays.index_fill_(axis, gone.nonzero().flatten().to(weight.device), False)
        found[name] = weight[~stays]
        if name in others:
            both = others[name].numel() * int(gone.sum()) // len(gone)
            rest = found[name][: len(found[name]) - both]
            found[name] = torch.cat([others[name].flatten(), rest])
    return found


@torch.no_grad()
def zero_channels_(model: PreTrainedModel, gone: Tensor) -> None:
    """Set some channels to 0 in the embeddings, and in all maps that write or read them.

    What is outside the blocks gets new memory, since the dense model may have the old one too.

    Args:
        model: its blocks may wait in stores.
        gone: (D,) bool.
    """
    channels = find_channels(model)
    places = gone.nonzero().flatten()
    _, blocks = decoder_blocks(model)
    for index, block in enumerate(each_whole(blocks, edited=True)):
        for name, axes in channels.inside(index).items():
            fill_zeros(block.get_parameter(name), axes, places)
    for name, axes in channels.axes.items():
        if not name.startswith(f"{channels.prefix}."):
            weight = model.get_parameter(name)
            weight.data = weight.data.clone()
            fill_zeros(weight, axes, places)


def fill_zeros(value: Tensor, axes: Iterable[tuple[int, str]], places: Tensor) -> None:
    """Set channels of a tensor to 0 along the axes that read or write them.

    Args:
        value: of a parameter; edited in place.
        axes: see `Channels`.
        places: indices of the channels.
    """
    for axis, role in axes:
        if role != "each":
            value.index_fill_(axis, places.to(value.device), 0)


def refuse_mean(model: PreTrainedModel, name: str, width: int) -> None:
    """Refuse a norm that subtracts the mean of all channels, which zeros would change.

    Args:
        model: as it is.
        name: of the norm.
        width: number of channels.

    Raises:
        InputError: naming the norm.
    """
    norm = model.get_submodule(name)
    subtracts = isinstance(norm, nn.LayerNorm)
    if not subtracts:
        x = torch.linspace(-1, 2, width, device=model.device, dtype=model.dtype)[None]
        subtracts = torch.allclose(norm(x), norm(x + 3), rtol=1e-2, atol=1e-2)
    if subtracts:
        why = f"its norms, such as {name!r}, subtract the mean of all channels"
        raise refusal(model, why)


def refusal(model: PreTrainedModel, why: str) -> InputError:
    """Build the error of a model that cannot have fewer channels."""
    return InputError(
        f"The hidden width of {type(model).__name__} cannot be reduced: {why}. "
        "Prune neurons or weights instead."
    )
