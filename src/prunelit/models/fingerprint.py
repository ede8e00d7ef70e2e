"""Which model this is, whatever it is called and wherever it lies."""

import hashlib
import json

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Of a configuration, what says nothing about what the model computes.
_BESIDE_THE_POINT = ("_name_or_path", "transformers_version")


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of weights, structure, configuration, attention kernel and where its texts end.

    Reads every weight, about a second a GB.

    Args:
        model: on any device; the result does not depend on that.
    """
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if k not in _BESIDE_THE_POINT}
    ends = model.generation_config.eos_token_id if model.generation_config else None
    # The structure tells of what was dropped or replaced, which has no weights.
    kernel = model.config._attn_implementation
    for part in (json.dumps([config, ends, kernel], sort_keys=True, default=str), repr(model)):
        digest.update(part.encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_content(tensor))
    return digest.hexdigest()


def _content(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data
