"""A smaller hidden width: take channels of the residual stream out of a model.

The smaller model must compute what the whole one computes with zeros in the channels that go. Its
norms take the mean of squares over d channels and not over D, of which D - d are 0. If it holds
each vector v of the stream as ``a v`` with ``a = sqrt(d / D)``, this mean is the same, with the
same epsilon. So maps that read the stream are divided by a, maps that write into it are multiplied
by a, and norms stay as they are.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from prunelit.errors import first_line
from prunelit.models.architecture import block_output, decoder_blocks, probe_ids
from prunelit.models.channels import (
    Channels,
    fill_zeros,
    find_channels,
    refusal,
    refuse_mean,
    width_changes,
)
from prunelit.models.forwards import replaced_forwards
from prunelit.models.rebuilding import adopt_numbers, build_twin, check_near, exchanged, pair
from prunelit.models.stores import each_whole, whole


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
    refuse_mean(model, _final_norm(model, channels), channels.width)
    try:
        _compare(model, channels, keep)
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        why = f"its class would compute something else ({first_line(error).rstrip('.')})"
        raise refusal(model, why) from error
    finally:
        model.train(training)


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
        fill_zeros(new, axes[name], (~keep).nonzero().flatten())
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
    table: Any = model.get_input_embeddings()
    twin: Any = small.get_input_embeddings()
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
        raise refusal(model, f"it has {len(found)} norms outside its blocks and not one")
    return found.pop()


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
