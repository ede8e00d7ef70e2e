"""2:4 weights in the compressed form that NVIDIA's sparse tensor cores read."""

import torch
from torch import nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules


@torch.no_grad()
def to_semi_structured(model: PreTrainedModel) -> int:
    """Compress every 2:4 weight of the blocks, in place, for inference.

    Args:
        model: on a CUDA device of compute capability 8.0 or higher, in float16 or bfloat16.

    Returns:
        How many weights were compressed.

    Raises:
        InputError: if the device or the dtype does not support it, or no weight is 2:4.
    """
    device = model.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise InputError(
            f"Expected a CUDA device of compute capability 8.0 or higher but got {device}: "
            "elsewhere 2:4 zeros are stored and multiplied as any other weight."
        )
    if model.dtype not in (torch.float16, torch.bfloat16):
        raise InputError(f"Expected float16 or bfloat16 weights but got {model.dtype}.")
    count = 0
    for block in decoder_blocks(model)[1]:
        for linear in linear_modules(block).values():
            if isinstance(linear, nn.Linear) and is_two_of_four(linear.weight):
                sparse = torch.sparse.to_sparse_semi_structured(linear.weight)
                linear.weight = nn.Parameter(sparse, requires_grad=False)
                count += 1
    if not count:
        raise InputError("Expected weights with two zeros in every four inputs but found none.")
    return count


def is_two_of_four(weight: torch.Tensor) -> bool:
    """Whether at least two of every four neighbouring inputs are zero."""
    if weight.shape[1] % 4:
        return False
    return bool(((weight.unflatten(1, (-1, 4)) == 0).sum(-1) >= 2).all())
