"""Take dropped experts out of a mixture, with all that its router holds for them."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.experts import count_experts, find_experts, find_routers
from prunelit.models.stores import each_whole, whole

# The configuration's names for the number of experts.
_COUNTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "num_routed_experts",
)


def is_mixture(model: PreTrainedModel) -> bool:
    """Return True if a block has fused experts."""
    return any(find_experts(block) for block in decoder_blocks(model)[1])


def config_counts(config: PreTrainedConfig) -> set[int]:
    """Find the numbers of experts of a mixture that a configuration gives; empty for others."""
    own = config.get_text_config(decoder=True)
    return {value for name in _COUNTS if type(value := getattr(own, name, None)) is int}


def alive_experts(experts: nn.Module) -> Tensor:
    """(E,) bool, True for experts whose last map is not all zeros.

    Args:
        experts: the module that holds fused experts, whole.
    """
    return experts.get_parameter("down_proj").flatten(1).any(1)


def routed_tensors(block: nn.Module, name: str) -> dict[str, tuple[Tensor, int]]:
    """Find the tensors of a mixture that have an entry for each expert.

    Args:
        block: a decoder block.
        name: of its fused experts.

    Returns:
        By name inside the block: the parameter or buffer, of the experts, of the router or of the
        module that holds both, and its dimension that counts experts.
    """
    parent = name.rpartition(".")[0]
    count = count_experts(block.get_submodule(name))
    found: dict[str, tuple[Tensor, int]] = {}
    for owner in {parent: None, name: None, **dict.fromkeys(sorted(find_routers(block)))}:
        module = block.get_submodule(owner)
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for part, value in own:
            for axis, length in enumerate(value.shape):
                # A correction bias may be (1, E).
                if length == count and all(size == 1 for size in value.shape[:axis]):
                    found[f"{owner}.{part}" if owner else part] = (value, axis)
                    break
    return found


def find_dropped_experts(block: nn.Module) -> dict[str, Tensor]:
    """Find the entries of a block's weights that `drop_experts_` takes out.

    Args:
        block: a decoder block, whole.

    Returns:
        By the name of the parameter.
    """
    found: dict[str, Tensor] = {}
    for name, experts in find_experts(block).items():
        gone = ~alive_experts(experts)
        if gone.any():
            places = gone.nonzero().flatten()
            for part, (value, axis) in routed_tensors(block, name).items():
                found[part] = value.index_select(axis, places.to(value.device))
    return found


@torch.no_grad()
def drop_experts_(model: PreTrainedModel) -> dict[int, dict[str, list[int]]]:
    """Take dropped experts out of all mixtures of a model, in place, and lower its counts.

    All mixtures keep the same number: that of the block with the most experts that are not 0.

    Args:
        model: with zeros in the last maps of dropped experts, and a configuration of its own.

    Returns:
        Numbers of the experts that are kept, the same count in every mixture, by index of the block
        and name of the experts inside; nothing if none is dropped.

    Raises:
        InputError: if the configuration has no count of the experts.
    """
    blocks = decoder_blocks(model)[1]
    alive = [
        {name: alive_experts(experts) for name, experts in find_experts(block).items()}
        for block in each_whole(blocks)
    ]
    kept = max((int(one.sum()) for own in alive for one in own.values()), default=0)
    count = max((len(one) for own in alive for one in own.values()), default=0)
    if kept in (0, count):
        return {}
    config = model.config.get_text_config(decoder=True)
    if not (names := [name for name in _COUNTS if getattr(config, name, None) == count]):
        raise InputError(
            f"Expected {type(config).__name__} to have the number of its experts, {count}, as one "
            f"of {', '.join(_COUNTS)} but it has none of them: its experts cannot be dropped."
        )
    for name in names:
        setattr(config, name, kept)
    # A block with fewer experts that are not 0 keeps some that are.
    keep = {
        index: {
            name: torch.argsort(one.logical_not(), stable=True)[:kept].sort().values
            for name, one in own.items()
        }
        for index, own in enumerate(alive)
        if own
    }
    for index, own in keep.items():
        with whole(blocks[index], edited=True):
            for name, numbers in own.items():
                keep_experts_(blocks[index], name, numbers, count)
    return {i: {name: one.tolist() for name, one in own.items()} for i, own in keep.items()}


def keep_experts_(block: nn.Module, name: str, keep: Tensor, count: int) -> None:
    """Keep some experts of one mixture of a block, and what its router has for them, in place.

    Args:
        block: a decoder block, whole.
        name: of the fused experts.
        keep: numbers of those that stay, in order.
        count: number of experts before.
    """
    for part, (value, axis) in routed_tensors(block, name).items():
        owner, _, last = part.rpartition(".")
        module: Any = block.get_submodule(owner)
        chosen = value.index_select(axis, keep.to(value.device)).contiguous()
        if isinstance(value, nn.Parameter):
            setattr(module, last, nn.Parameter(chosen, value.requires_grad))
        else:
            setattr(module, last, chosen)
        if isinstance(module, nn.Linear):
            module.out_features = len(keep)
    parent = name.rpartition(".")[0]
    for owner in {parent, name, *find_routers(block)}:
        module = block.get_submodule(owner)
        for key, value in vars(module).items():
            if "expert" in key and type(value) is int and value == count:
                setattr(module, key, len(keep))
