"""Sublayers are found by structure, in families of any kind."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconH1Config,
    NemotronHConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
)

from prunelit.models.architecture import decoder_blocks
from prunelit.models.parts import drop_, find_zeros, place_of, sublayers

TINY = {"vocab_size": 64, "hidden_size": 32, "pad_token_id": 0, "intermediate_size": 48}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
# Mixer and MLP of every block, with the name of the mixer's kind.
KNOWN: list[tuple[PreTrainedConfig, list[tuple[str, tuple[str, ...], tuple[str, ...]]]]] = [
    (
        FalconH1Config(**TINY, **HEADS, **MAMBA, num_hidden_layers=1, mamba_n_groups=1),
        [("mixer", ("mamba", "self_attn"), ("feed_forward",))],
    ),
    (
        NemotronHConfig(
            **TINY, **HEADS, layers_block_type=["mamba", "attention", "mlp"],
            mamba_num_heads=4, mamba_head_dim=16, ssm_state_size=8, n_groups=1,
        ),
        [("mixer", ("mixer",), ()), ("attention", ("mixer",), ()), ("", (), ("mixer",))],
    ),
    (
        Qwen3NextConfig(
            **TINY, **HEADS, num_hidden_layers=2,
            layer_types=["linear_attention", "full_attention"], num_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=8, shared_expert_intermediate_size=8,
            linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
            linear_value_head_dim=8, decoder_sparse_step=1,
        ),
        [("mixer", ("linear_attn",), ("mlp",)), ("attention", ("self_attn",), ("mlp",))],
    ),
    (
        RecurrentGemmaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, lru_width=32, block_types=["recurrent", "attention"],
            attention_window_size=16, pad_token_id=0,
        ),
        [
            ("mixer", ("temporal_block",), ("mlp_block",)),
            ("attention", ("temporal_block",), ("mlp_block",)),
        ],
    ),
    (
        BloomConfig(vocab_size=64, hidden_size=32, n_layer=1, n_head=4),
        [("attention", ("self_attention",), ("mlp",))],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), KNOWN, ids=lambda v: getattr(v, "model_type", ""))
def test_mixers_and_mlps(
    config: PreTrainedConfig, expected: list[tuple[str, tuple[str, ...], tuple[str, ...]]]
) -> None:
    blocks = decoder_blocks(AutoModelForCausalLM.from_config(config))[1]
    for block, (name, mixer, mlp) in zip(blocks, expected, strict=True):
        found = sublayers(block)
        assert list(found) == [kind for kind, part in (("mixer", mixer), ("mlp", mlp)) if part]
        if mixer:
            assert (found["mixer"].name, found["mixer"].parts) == (name, mixer)
        if mlp:
            assert (found["mlp"].name, found["mlp"].parts) == ("mlp", mlp)


def test_known_families_have_an_attention_and_an_mlp(
    make_model: Callable[..., PreTrainedModel], family: str
) -> None:
    for block in decoder_blocks(make_model(family))[1]:
        found = sublayers(block)
        assert found["mixer"].name == "attention"
        assert found["mlp"].parts == (("fc1", "fc2") if family == "opt" else ("mlp",))


def test_a_norm_with_a_matrix_is_no_sublayer(model: PreTrainedModel) -> None:
    block = decoder_blocks(model)[1][0]
    block.input_layernorm = nn.Linear(32, 32)
    assert sublayers(block)["mlp"].parts == ("mlp",)


def test_a_block_without_matrices_has_no_sublayers() -> None:
    assert sublayers(nn.Sequential(nn.LayerNorm(4))) == {}


def test_dropped_sublayers_are_zero_and_found(model: PreTrainedModel) -> None:
    blocks = decoder_blocks(model)[1]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drop_(blocks[1], "mixer")
    drop_(blocks[2], "mixer", "mlp")
    assert [find_zeros(block) for block in blocks] == [set(), {"mixer"}, {"mixer", "mlp"}]
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    inside = ("model.layers.1.self_attn.", "model.layers.2.self_attn.", "model.layers.2.mlp.")
    assert changed == {name for name in before if name.startswith(inside)}
    with torch.no_grad():
        blocks[2].mlp.up_proj.weight[3, 2] = 1.0
    assert find_zeros(blocks[2]) == {"mixer"}


def test_the_place_of_a_module(model: PreTrainedModel) -> None:
    block = decoder_blocks(model)[1][2]
    assert place_of(block) == place_of(block.self_attn) == 2
    assert place_of(block.mlp) is None
