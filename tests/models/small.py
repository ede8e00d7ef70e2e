"""Sizes of a tiny model of any family with usual names of fields; this file contains no tests."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def build(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a random model in evaluation mode."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()
