"""Compress 2:4 weights for the sparse tensor cores of NVIDIA."""

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from transformers import PreTrainedModel

from prunelit.arguments import checked
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules
from prunelit.models.experts import ExpertMap
from prunelit.models.stores import check_here


@torch.no_grad()
@checked
def to_semi_structured(model: PreTrainedModel) -> int:
    """Compress every 2:4 weight of the blocks, in place, for inference.

    Fused experts stay dense, with a warning that names their tensors: no kernel multiplies parts of
    a compressed tensor.

    Args:
        model: on a CUDA device of compute capability 8.0 or higher, in float16 or bfloat16.

    Returns:
        Number of weights that were compressed.

    Raises:
        InputError: if the device or the dtype does not support it, or no weight is 2:4 but those of
            fused experts.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from prunelit import InputError, prune, to_semi_structured
        >>> from prunelit.pruners import Magnitude
        >>> from prunelit.sparsity import SemiStructured
        >>> config = LlamaConfig(vocab_size=8, hidden_size=64, intermediate_size=64,
        ...                      num_hidden_layers=2, num_attention_heads=2)
        >>> model = LlamaForCausalLM(config).eval()
        >>> report = prune(model, Magnitude(SemiStructured(2, 4)))
        >>> try:  # on a GPU: to_semi_structured(model.to("cuda", torch.bfloat16))
        ...     to_semi_structured(model)
        ... except InputError as error:
        ...     print(error)
        Expected a CUDA device of compute capability 8.0 or higher but got cpu: ...
    """
    check_here(model, "`to_semi_structured`")
    device = model.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        raise InputError(
            f"Expected a CUDA device of compute capability 8.0 or higher but got {device}: other "
            "devices store and multiply 2:4 zeros like any other weight."
        )
    if model.dtype not in (torch.float16, torch.bfloat16):
        raise InputError(
            f"Expected float16 or bfloat16 weights but got {model.dtype}: convert the model first."
        )
    count, dense = 0, dict[str, None]()
    for block in decoder_blocks(model)[1]:
        for name, linear in linear_modules(block).items():
            if isinstance(linear, ExpertMap) and is_two_of_four(linear.weight):
                dense[name.rpartition(".")[0]] = None
            elif isinstance(linear, nn.Linear) and is_two_of_four(linear.weight):
                sparse = torch.sparse.to_sparse_semi_structured(linear.weight)
                linear.weight = nn.Parameter(sparse, requires_grad=False)
                count += 1
    fused = f"those of the fused experts, {', '.join(dense)}"
    if not count:
        found = f"only {fused}, which cannot be compressed" if dense else "none"
        raise InputError(
            f"Expected weights with two zeros in every four inputs but found {found}: prune linear "
            "modules of the model to 2:4 first."
        )
    if dense:
        rank_zero_warn(f"{count} weights were compressed, but not {fused}: they stay dense.")
    return count


def is_two_of_four(weight: torch.Tensor) -> bool:
    """Return True if at least two of every four neighbouring inputs are zero."""
    if weight.shape[1] % 4:
        return False
    return bool(((weight.unflatten(1, (-1, 4)) == 0).sum(-1) >= 2).all())
