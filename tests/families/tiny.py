"""Tiny random models of every model type of transformers that predicts the next token."""

import dataclasses
import re
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 256
_LARGEST = 20_000_000  # parameters; a rule below is missing if a model has more

# Those that `AutoModelForCausalLM` does not know, or loads without their towers.
MULTIMODAL = (
    *("glm4v", "glm4v_moe", "idefics3", "internvl", "kimi_k25", "lfm2_vl", "llava", "llava_next"),
    *("mistral3", "paligemma", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "smolvlm"),
)

# Sizes by the name of the field. A field of a class has them if its default is a number or None.
_TEXT: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers"), 4),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("head_dim", "global_head_dim", "v_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 128),
    **dict.fromkeys(("ffn_hidden_size", "dff", "d_inner", "mamba_d_ssm", "n_inner", "dim_ff"), 128),
    **dict.fromkeys(("intermediate_size_mlp", "dense_intermediate_size"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "shared_experts_intermediate_size"), 32),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 4),
    **dict.fromkeys(
        ("moe_num_experts", "index_n_heads", "linear_num_value_heads", "linear_num_heads"), 4
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("num_key_value_heads", "linear_num_key_heads", "mamba_expand"), 2),
    **dict.fromkeys(("altup_num_inputs",), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "n_groups"), 1),
    **dict.fromkeys(("mamba_n_groups", "first_k_dense_replace"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "context_length"), 512),
    **dict.fromkeys(("max_seq_len", "max_length"), 512),
    **dict.fromkeys(("kv_lora_rank", "index_topk", "chunk_size", "mamba_chunk_size"), 16),
    **dict.fromkeys(("mamba_d_state", "mamba_d_head", "mamba_head_dim", "ssm_state_size"), 16),
    **dict.fromkeys(("state_size", "linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("linear_head_dim", "query_pre_attn_scalar", "pad_token_type"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "laurel_rank"), 8),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "mamba_dt_rank", "time_step_rank"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input",), 8),
    **dict.fromkeys(("sliding_window", "window_size", "attention_chunk_size", "block_size"), 64),
    "q_lora_rank": 32,
    "conv_L_cache": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.1,
}
_TOWER: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "depth", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("out_hidden_size", "vision_output_dim", "output_dim"), 64),
    "image_size": 32,
    "patch_size": 8,
}
# A default of None in these fields means another structure, not another size.
_LEFT_OUT = (
    *("sliding_window", "n_group", "num_experts", "num_local_experts", "moe_intermediate_size"),
    *("attention_chunk_size", "q_lora_rank", "global_head_dim", "d_inner", "top_k_experts"),
)


def _alternate(first: str, second: str) -> list[str]:
    return [first, second] * 2


_DEFAULT_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}


def _mrope(*sections: int) -> dict[str, Any]:
    return {**_DEFAULT_ROPE, "mrope_section": list(sections)}


# What the sizes alone do not say.
_OWN: dict[str, dict[str, Any]] = {
    "axk2": {"n_group": 1},
    "bailing_hybrid": {"layer_group_size": 2},
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _DEFAULT_ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {
            "ffn_hidden_size": 64,
            "hidden_size": 64,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "deepseek_v32": {"num_key_value_heads": 4},
    "dots3_note_text": {
        "num_key_value_heads": 4,
        **{f"swa_{name}": 4 for name in ("num_attention_heads", "num_key_value_heads")},
        **{f"swa_{name}": 16 for name in ("q_lora_rank", "kv_lora_rank", "v_head_dim")},
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
    },
    "dots3_note_vision_encoder": {
        "mlp_layer_types": ["dense"] * 2,
        "adapter_in_dim": 32,
        "adapter_out_dim": 64,
    },
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1},
    "emu3": {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 6}},
    "falcon": {"new_decoder_architecture": False, "multi_query": True},
    "gemma2": {"layer_types": _alternate("sliding_attention", "full_attention")},
    "gemma3_text": {"layer_types": _alternate("sliding_attention", "full_attention")},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_kv_shared_layers": 2,
        "intermediate_size": [128] * 6,
        "activation_sparsity_pattern": [0.0] * 6,
    },
    "gemma4_text": {
        "layer_types": _alternate("sliding_attention", "full_attention"),
        "num_kv_shared_layers": 0,
    },
    "glm4v_moe_text": {"rope_parameters": _mrope(1, 1, 2)},
    "glm4v_text": {"rope_parameters": _mrope(2, 3, 3)},
    "glm_moe_dsa": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gpt_oss": {"layer_types": _alternate("sliding_attention", "full_attention")},
    "granitemoehybrid": {"layer_types": _alternate("mamba", "attention")},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "kimi_linear": {"layer_types": _alternate("linear_attention", "full_attention")},
    "lfm2": {
        "layer_types": _alternate("conv", "full_attention"),
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": None,
    },
    "lfm2_moe": {"layer_types": _alternate("conv", "full_attention"), "num_dense_layers": 1},
    "llama4_text": {
        "no_rope_layers": [1, 1, 1, 0],
        "layer_types": ["chunked_attention"] * 3 + ["full_attention"],
        "moe_layers": [1, 3],
        "interleave_moe_layer_step": 2,
    },
    "longcat_flash": {"num_key_value_heads": 4, "head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "minimax": {"layer_types": _alternate("linear_attention", "full_attention"), "block_size": 16},
    "nemotron_h": {
        "num_hidden_layers": 5,
        "layers_block_type": ["attention", "mamba", "mlp", "moe", "attention"],
        "hybrid_override_pattern": None,
    },
    "olmo_hybrid": {"layer_types": _alternate("linear_attention", "full_attention")},
    "phi": {"partial_rotary_factor": 0.5},
    "qwen2_5_vl_text": {"rope_parameters": _mrope(2, 3, 3)},
    "qwen2_moe": {"mlp_only_layers": []},
    "qwen2_vl_text": {"rope_parameters": _mrope(2, 3, 3)},
    "qwen3_5_moe_text": {"layer_types": _alternate("linear_attention", "full_attention")},
    "qwen3_5_text": {"layer_types": _alternate("linear_attention", "full_attention")},
    "qwen3_moe": {"mlp_only_layers": []},
    "qwen3_next": {
        "layer_types": _alternate("linear_attention", "full_attention"),
        "decoder_sparse_step": 1,
    },
    "recurrent_gemma": {
        "block_types": ["recurrent", "attention"],
        "attention_window_size": 64,
        "lru_width": 64,
    },
    "qwen4_exp_text": {
        "layer_types": _alternate("linear_attention", "full_attention"),
        "ngram_vocab_size_base": 64,
        "hc_lowrank": 16,
        "ple_layer_ids": [],
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 2,
        "split_ngram_parts": 2,
    },
    "reformer": {
        "is_decoder": True,
        "axial_pos_embds_dim": [32, 32],
        "axial_pos_shape": [16, 32],
        "attn_layers": ["local", "lsh"] * 2,
    },
    "xlstm": {"num_heads": 4, "qk_dim_factor": 0.5},
    "zamba": {
        "num_hidden_layers": 6,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid", "mamba"],
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "use_mamba_kernels": False,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def model_types() -> list[str]:
    """Return every model type that transformers loads as a causal LM, and multimodal ones."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MULTIMODAL})


def tiny_config(model_type: str) -> PreTrainedConfig:
    """Build a configuration of a model of a few hundred thousand parameters, with 4 blocks."""
    cls = CONFIG_MAPPING[model_type]
    return cls(**_fields(cls, _TEXT))


def tiny_model(model_type: str, seed: int = 0) -> PreTrainedModel:
    """Build a random model in float32, in evaluation mode."""
    config = tiny_config(model_type)
    mappings = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING)
    cls: Any = next(mapping[type(config)] for mapping in mappings if type(config) in mapping)
    cls = cls[0] if isinstance(cls, tuple) else cls
    torch.manual_seed(seed)
    model = cls._from_config(config, dtype=torch.float32).eval()
    size = sum(parameter.numel() for parameter in model.parameters())
    assert size < _LARGEST, f"{model_type} has {size} parameters: give a rule for its sizes"
    return model


def _fields(cls: Any, sizes: dict[str, Any]) -> dict[str, Any]:
    """Choose the fields of a configuration class, and those of its parts."""
    chosen: dict[str, Any] = {}
    names = {field.name for field in dataclasses.fields(cls)}
    for field in dataclasses.fields(cls):
        name, default = field.name, field.default
        if name in sizes and not isinstance(default, bool | list | str):
            if default is not None or name not in _LEFT_OUT:
                chosen[name] = sizes[name]
        elif re.search(r"_token_(id|index)$", name) and type(default) is int:
            chosen[name] = 3 + sorted(n for n in names if "_token_i" in n).index(name)
    if {"kv_lora_rank", "num_key_value_heads"} <= chosen.keys():
        chosen["num_key_value_heads"] = 4
    default = None
    for name in cls.sub_configs or {}:
        default = default or cls()
        own = getattr(default, name, None)
        if isinstance(own, PreTrainedConfig):
            tower = re.search("vision|audio|vq|speech|image|video|encoder", name) is not None
            part = type(own)
            chosen[name] = {
                **_fields(part, _TOWER if tower else _TEXT),
                **({"model_type": part.model_type} if part.model_type else {}),
            }
    return {**chosen, **_OWN.get(cls.model_type, {})}
