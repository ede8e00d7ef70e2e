"""The channels of the residual stream: find them in all tensors of a model, and take some out.

The smaller model must compute what the whole one computes with zeros in the channels that go. Its
norms take the mean of squares over d channels and not over D, of which D - d are 0. If it holds
each vector v of the stream as ``a v`` with ``a = sqrt(d / D)``, this mean is the same, with the
same epsilon. So maps that read the stream are divided by a, maps that write into it are multiplied
by a, and norms stay as they are.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from prunelit.errors import InputError, first_line
from prunelit.models.architecture import block_output, decoder_blocks, probe_ids
from prunelit.models.experts import fused_tensors
from prunelit.models.forwards import replaced_forwards
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
        raise _refusal(model, "its configuration is not that of one text model with `hidden_size`")
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and tuple(module.normalized_shape) == (width,):
            _refuse_mean(model, name, width)
    step = getattr(config, "num_attention_heads", 1)
    new = width - step if width > step else width // 2
    try:
        small = shapes_of(build_skeleton(model, changed(config, width_changes(model, new))))
    except Exception as error:
        why = f"its class cannot have another `hidden_size` ({first_line(error).rstrip('.')})"
        raise _refusal(model, why) from error
    axes: dict[str, tuple[tuple[int, str], ...]] = {}
    for name, size in shapes_of(model).items():
        other = small.get(name, ())
        differ = [i for i, (a, b) in enumerate(zip(size, other, strict=False)) if a != b]
        if len(size) != len(other) or any((size[i], other[i]) != (width, new) for i in differ):
            raise _refusal(model, f"another `hidden_size` gives {name!r} a width of its own too")
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
    raise _refusal(model, f"{name!r} is neither a linear map nor a vector")


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
    gone = ~_embedding(model).weight.any(0)
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
            _fill(block.get_parameter(name), axes, places)
    for name, axes in channels.axes.items():
        if not name.startswith(f"{channels.prefix}."):
            weight = model.get_parameter(name)
            weight.data = weight.data.clone()
            _fill(weight, axes, places)


def _fill(value: Tensor, axes: Iterable[tuple[int, str]], places: Tensor) -> None:
    for axis, role in axes:
        if role != "each":
            value.index_fill_(axis, places.to(value.device), 0)


@torch.no_grad()
def check_narrower(model: PreTrainedModel, width: int) -> None:
    """Prove on a few tokens that the stock class with fewer channels computes what is left.

    Each block, the embeddings and the head must give what those of the whole model give with zeros
    in the channels that go.

    Args:
        model: its blocks may wait in stores; stays as it is. Without values nothing is proven.
        width: number of channels to keep.

    Raises:
        InputError: naming the class and the reason.
    """
    channels = find_channels(model)
    if model.device.type == "meta":
        return
    order = torch.randperm(channels.width, generator=torch.Generator().manual_seed(0))
    keep = torch.zeros(channels.width, dtype=torch.bool)
    keep[order[:width]] = True
    keep = keep.to(model.device)
    training = model.training
    model.eval()
    _refuse_mean(model, _final_norm(model, channels), channels.width)
    try:
        _compare(model, channels, keep)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        why = f"its class would compute something else ({first_line(error).rstrip('.')})"
        raise _refusal(model, why) from error
    finally:
        model.train(training)


def _refuse_mean(model: PreTrainedModel, name: str, width: int) -> None:
    """Refuse a norm that subtracts the mean of all channels, which zeros would change."""
    norm = model.get_submodule(name)
    subtracts = isinstance(norm, nn.LayerNorm)
    if not subtracts:
        x = torch.linspace(-1, 2, width, device=model.device, dtype=model.dtype)[None]
        subtracts = torch.allclose(norm(x), norm(x + 3), rtol=1e-2, atol=1e-2)
    if subtracts:
        why = f"its norms, such as {name!r}, subtract the mean of all channels"
        raise _refusal(model, why)


def _compare(model: PreTrainedModel, channels: Channels, keep: Tensor) -> None:
    """Run both models on a few tokens; raise a ValueError that says where they differ."""
    small = build_twin(model, width_changes(model, int(keep.sum())))
    blocks, twins = decoder_blocks(model)[1], decoder_blocks(small)[1]
    scale = math.sqrt(int(keep.sum()) / channels.width)
    seen: list[tuple[Tensor, Tensor]] = []

    def mask(axes: Mapping[str, Any], name: str, value: nn.Parameter) -> nn.Parameter:
        if name not in axes:
            return value
        new = value.clone()
        _fill(new, axes[name], (~keep).nonzero().flatten())
        return nn.Parameter(new, requires_grad=False)

    def run(index: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        block = blocks[index]
        make = partial(mask, channels.inside(index))
        with whole(block), exchanged(pair(block, block), make):
            output = type(block).forward(block, hidden, *args, **kwargs)
        seen.append((hidden[..., keep], block_output(output)[..., keep]))
        return output

    def run_small(index: int, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        twin, block = twins[index], blocks[index]
        own, expected = seen[index]
        check_near(f"the input of block {index}", hidden / scale, own, model.dtype)
        make = partial(_narrow, channels.inside(index), keep, {})
        with whole(block), exchanged(pair(twin, block), make):
            output = type(twin).forward(twin, own * scale, *args, **kwargs)
        check_near(f"block {index}", block_output(output) / scale, expected, model.dtype)
        return expected * scale if isinstance(output, Tensor) else (expected * scale, *output[1:])

    ids = probe_ids(model, 1, 8)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with (
        exchanged(_outside(model, model), partial(mask, channels.axes)),
        replaced_forwards({block: partial(run, i) for i, block in enumerate(blocks)}),
    ):
        expected = model(**inputs).logits
    make = partial(_narrow, channels.axes, keep, _factors(model, small, channels))
    with (
        exchanged(_outside(small, model), make),
        replaced_forwards({twin: partial(run_small, i) for i, twin in enumerate(twins)}),
    ):
        check_near("the logits", small(**inputs).logits, expected, model.dtype)


def _narrow(
    axes: Mapping[str, tuple[tuple[int, str], ...]],
    keep: Tensor,
    factors: Mapping[str, Callable[[Tensor], Tensor]],
    name: str,
    value: nn.Parameter,
) -> nn.Parameter:
    """Keep some channels of a parameter, and scale it; see the top of this file."""
    if name not in axes:
        return value
    places = keep.nonzero().flatten().to(value.device)
    scale = math.sqrt(len(places) / len(keep))
    new: Tensor = value.detach()
    factor = 1.0
    for axis, role in axes[name]:
        new = new.index_select(axis, places)
        factor *= {"read": 1 / scale, "write": scale, "each": 1.0}[role]
    new = factors[name](new) if name in factors else new * factor
    return nn.Parameter(new.contiguous(), value.requires_grad)


def _factors(
    model: PreTrainedModel, small: PreTrainedModel, channels: Channels
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Give what replaces the usual factor: for the embeddings, and with a tied head the last norm.

    Args:
        model: the whole one.
        small: of fewer channels.
        channels: of the whole one.
    """
    scale = math.sqrt(small.config.hidden_size / channels.width)
    table, twin = _embedding(model), _embedding(small)
    # Gemma multiplies embeddings by the root of the width.
    scales = [getattr(one, "scalar_embed_scale", 1.0) for one in (table, twin)]
    factor = scale * scales[0] / scales[1]
    tables = [
        name
        for name, value in model.named_parameters(remove_duplicate=False)
        if value is table.weight
    ]
    found: dict[str, Callable[[Tensor], Tensor]] = {name: lambda t: t * factor for name in tables}
    if len(tables) > 1:
        norm = _final_norm(model, channels)
        gain = 1 / (factor * scale)
        # The gain of some families is 1 + weight.
        start = _offset(model.get_submodule(norm))
        found[f"{norm}.weight"] = lambda weight: (weight + start) * gain - start
    return found


def _offset(norm: nn.Module) -> float:
    """Return 1 for a norm whose gain is 1 + weight, 0 for one whose gain is its weight."""
    weight = norm.get_parameter("weight")
    x = torch.ones(1, len(weight), dtype=weight.dtype, device=weight.device)
    return float(bool(functional_call(norm, {"weight": torch.zeros_like(weight)}, x).any()))


def _final_norm(model: PreTrainedModel, channels: Channels) -> str:
    """Name the norm behind the last block."""
    found = {
        name.rpartition(".")[0]
        for name, axes in channels.axes.items()
        if not name.startswith(f"{channels.prefix}.") and axes[0][1] == "each"
    }
    if len(found) != 1:
        raise _refusal(model, f"it has {len(found)} norms outside its blocks and not one")
    return found.pop()


def _embedding(model: PreTrainedModel) -> Any:
    return model.get_input_embeddings()


def _outside(
    twin: PreTrainedModel, model: PreTrainedModel
) -> list[tuple[str, nn.Module, nn.Module]]:
    """Give `pair` of the modules outside the blocks."""
    inside = {part for block in decoder_blocks(model)[1] for part in block.modules()}
    return [part for part in pair(twin, model) if part[2] not in inside]


@torch.no_grad()
def take_channels_out(model: PreTrainedModel, gone: Tensor) -> None:
    """Take removed channels out of a model, in place.

    Args:
        model: with zeros in these channels, and a configuration of its own.
        gone: (D,) bool, see `find_removed_channels`.
    """
    channels = find_channels(model)
    small = build_twin(model, width_changes(model, int((~gone).sum())))
    factors = _factors(model, small, channels)
    done: dict[int, nn.Parameter] = {}  # tied weights stay tied

    def replace(axes: Mapping[str, Any], factors: Any, name: str, module: nn.Module) -> None:
        for key, value in list(module._parameters.items()):
            full = f"{name}.{key}".removeprefix(".")
            if value is not None and full in axes:
                if id(value) not in done:
                    done[id(value)] = _narrow(axes, ~gone, factors, full, value)
                setattr(module, key, done[id(value)])

    for name, twin, module in _outside(small, model):
        replace(channels.axes, factors, name, module)
        adopt_numbers(module, twin)
        for key, value in list(module.named_buffers(recurse=False)):
            new = twin.get_buffer(key).to(value.dtype)
            if not new.equal(value):  # such as the scale of embeddings
                setattr(module, key, new)
    blocks, twins = decoder_blocks(model)[1], decoder_blocks(small)[1]
    for index, block in enumerate(each_whole(blocks, edited=True)):
        for name, twin, module in pair(twins[index], block):
            replace(channels.inside(index), {}, name, module)
            adopt_numbers(module, twin)
    for key, value in width_changes(model, int((~gone).sum())).items():
        setattr(model.config, key, value)


def _refusal(model: PreTrainedModel, why: str) -> InputError:
    return InputError(
        f"The hidden width of {type(model).__name__} cannot be reduced: {why}. Prune heads, "
        "neurons or weights instead."
    )
