"""Parts are taken out only if the configuration that is left describes the same model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    DeepseekV3Config,
    DiffLlamaConfig,
    Gemma3nTextConfig,
    GPT2Config,
    OpenAIGPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Zamba2Config,
)

from prunelit import prune
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.removal import Parts, find_removal
from prunelit.models.views import view
from prunelit.pruners import BlockDrop, SublayerDrop

TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}


def build(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return model


def test_nothing_is_changed(make_model: Callable[..., PreTrainedModel], family: str) -> None:
    model = make_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.config.to_dict()
    removal = find_removal(model, Parts([1], {2: ["mixer"]}))
    count = {"gpt2": "n_layer"}.get(family, "num_hidden_layers")
    assert model.config.to_dict() == config
    assert model.config.to_dict()[count] == 3
    assert removal.changes["num_hidden_layers"] == 2
    assert list(removal.returns) == [2]
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (DiffLlamaConfig(**TINY), "`num_hidden_layers: 3`.*lambda_init` is"),
        (
            GPT2Config(
                vocab_size=64, n_embd=32, n_head=4, n_layer=4, n_positions=64,
                scale_attn_by_inverse_layer_idx=True,
            ),
            "`scale_attn_by_inverse_layer_idx: True`",
        ),
    ],
    ids=["diffllama", "gpt2"],
)  # fmt: skip
def test_a_block_that_computes_with_its_place_is_refused(
    config: PreTrainedConfig, field: str, input_ids: Tensor
) -> None:
    model = build(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=rf"without block 1 cannot be written: with .*{field}"):
        find_removal(model, Parts([1]))
    find_removal(model, Parts([3]))  # no block behind the last one gets another place

    class First(BlockDrop):
        def _choose(self, scores: dict[int, float], before: set[int]) -> list[int]:
            return [0]

    with pytest.raises(InputError, match="without block 0 cannot be written"):
        prune(model, First(1), input_ids % 64)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_lists_of_indices_and_counts_of_blocks_follow() -> None:
    bamba = build(
        BambaConfig(
            **TINY, attn_layer_indices=[1, 3], num_key_value_heads=2, mamba_n_heads=8,
            mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1,
        )
    )  # fmt: skip
    assert find_removal(bamba, Parts([0])).changes["attn_layer_indices"] == [0, 2]
    assert find_removal(bamba, Parts([1])).changes["attn_layer_indices"] == [2]
    deepseek = build(
        DeepseekV3Config(
            **TINY, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
            topk_group=1, moe_intermediate_size=16, kv_lora_rank=8, q_lora_rank=16, v_head_dim=8,
            qk_rope_head_dim=8, qk_nope_head_dim=8, first_k_dense_replace=2,
        )
    )  # fmt: skip
    for gone in (1, 3):
        find_removal(deepseek, Parts([gone]))


def test_a_part_for_each_block_outside_the_blocks_goes_too() -> None:
    kinds = ["sliding_attention", "full_attention"] * 3
    config = {**TINY, "num_hidden_layers": 6, "intermediate_size": [48] * 6}
    model = build(
        Gemma3nTextConfig(
            **config, vocab_size_per_layer_input=64, hidden_size_per_layer_input=4, head_dim=8,
            num_key_value_heads=2, altup_num_inputs=2, laurel_rank=4, num_kv_shared_layers=2,
            layer_types=kinds, activation_sparsity_pattern=[0.0] * 6, sliding_window=8,
        )
    )  # fmt: skip
    removal = find_removal(model, Parts([1]))
    assert {name.rpartition(".")[0]: axis for name, axis in removal.slices.items()} == {
        "model.embed_tokens_per_layer": 1,
        "model.per_layer_model_projection": 0,
    }
    assert removal.changes["layer_types"] == [kinds[i] for i in (0, 2, 3, 4, 5)]
    assert find_removal(model, Parts([5])).changes["num_kv_shared_layers"] == 1


def test_a_weight_that_stays_elsewhere_cannot_go(input_ids: Tensor) -> None:
    model = build(
        Zamba2Config(
            **TINY, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], num_mem_blocks=1,
            mamba_d_state=8, mamba_headdim=8, n_mamba_heads=8, mamba_ngroups=1, adapter_rank=4,
            use_mamba_kernels=False, attention_head_dim=16,
        )
    )  # fmt: skip
    with pytest.raises(InputError, match=r"layers\.1\.\S+' cannot be dropped: it is one tensor"):
        find_removal(model, Parts([1]))
    find_removal(model, Parts([0]))


def test_a_view_is_enough(model: PreTrainedModel) -> None:
    seen = view(model)
    find_removal(seen, Parts([0]))
    assert len(decoder_blocks(model)[1]) == 3


def test_a_sublayer_alone_changes_no_field(model: PreTrainedModel, input_ids: Tensor) -> None:
    assert find_removal(model, Parts([], {0: ["mlp"]})).changes == {}
    report = prune(model, SublayerDrop(1, "mlp"), input_ids)
    assert report.removed is not None
    assert list(report.removed["returns"].values()) == ["zeros"]


def test_a_block_of_zeros_must_pass_its_input_on_until_a_later_round(input_ids: Tensor) -> None:
    config = OpenAIGPTConfig(vocab_size=64, n_embd=32, n_head=4, n_layer=3, n_positions=64)
    model = build(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="use one round without training"):
        prune(model, BlockDrop(1), input_ids % 64, shrink=False)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert prune(model, BlockDrop(1), input_ids % 64).removed is not None
