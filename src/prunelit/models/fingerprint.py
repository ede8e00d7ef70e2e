"""Identify a model by its content, independent of its name and folder."""

import hashlib
import json

import torch
from torch import Tensor
from transformers import PreTrainedModel

# Entries of a configuration that do not change what the model computes.
_IRRELEVANT = ("_name_or_path", "transformers_version")


def fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of weights, structure, configuration, attention kernel and end-of-text tokens.

    It reads every weight, which takes about a second per GB.

    Args:
        model: on any device; the device does not change the result.
    """
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if k not in _IRRELEVANT}
    ends = model.generation_config.eos_token_id if model.generation_config else None
    # The structure shows modules that were dropped or replaced and have no weights.
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
