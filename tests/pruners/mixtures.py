"""Tiny mixtures of seven families, and what is in them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Glm4MoeConfig,
    Llama4TextConfig,
    OlmoeConfig,
    PreTrainedModel,
)

from prunelit.models.architecture import decoder_blocks
from prunelit.models.experts import find_experts

MakeModel = Callable[..., PreTrainedModel]
Batch = dict[str, Tensor]


def randomised(config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.15)
        for name, buffer in model.named_buffers():
            if "correction" in name:
                buffer.normal_(std=0.1)
    return model


def grouped(make_model: MakeModel) -> PreTrainedModel:
    """8 experts in 2 groups, with a correction bias; block 0 is dense."""
    plain = make_model("deepseek_v3").config.to_dict()
    return randomised(DeepseekV3Config(**{**plain, "n_routed_experts": 8, "topk_group": 1}))


def sizes_of(make_model: MakeModel, family: str, *others: str) -> dict[str, Any]:
    """Sizes of a tiny mixture: those that all have, and others."""
    plain = make_model(family).config.to_dict()
    every = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "pad_token_id")  # fmt: skip
    return {name: plain[name] for name in (*every, *others)}


def glm(make_model: MakeModel) -> PreTrainedModel:
    sizes = sizes_of(make_model, "qwen3_moe", "head_dim", "moe_intermediate_size")
    return randomised(Glm4MoeConfig(
        **sizes, intermediate_size=48, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1,
    ))  # fmt: skip


def olmoe(make_model: MakeModel) -> PreTrainedModel:
    sizes = sizes_of(make_model, "mixtral", "intermediate_size")
    return randomised(OlmoeConfig(**sizes, num_experts=4, num_experts_per_tok=2))


def llama4(make_model: MakeModel) -> PreTrainedModel:
    """Its router puts shares into what experts read; block 0 is dense."""
    sizes = sizes_of(make_model, "mixtral", "intermediate_size")
    return randomised(Llama4TextConfig(
        **sizes, intermediate_size_mlp=48, num_local_experts=4, num_experts_per_tok=1, head_dim=8,
        moe_layers=[1, 2], attention_chunk_size=64,
    ))  # fmt: skip


BUILD: dict[str, Callable[[MakeModel], PreTrainedModel]] = {
    **{
        name: lambda make_model, name=name: make_model(name)
        for name in ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss")
    },
    "deepseek_v3": grouped,
    "glm4_moe": glm,
    "olmoe": olmoe,
}
every_family = pytest.mark.parametrize("name", list(BUILD))


def experts_of(model: PreTrainedModel) -> list[tuple[nn.Module, Any]]:
    """The mixture and the fused experts of each block that has them."""
    return [
        (block.get_submodule(name.rpartition(".")[0]), experts)
        for block in decoder_blocks(model)[1]
        for name, experts in find_experts(block).items()
    ]
