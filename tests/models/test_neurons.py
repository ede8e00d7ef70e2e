"""The maps of an MLP are found by their shapes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    Lfm2Config,
    LlamaConfig,
    NemotronHConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.models.neurons import find_neurons, find_width_changes, narrow_, neuron_rows

from ..families.tiny import tiny_model
from .small import TINY, build

MAPS = {
    "phi": (("mlp.fc1",), "mlp.fc2"),
    "gpt_neox": (("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    "opt": (("fc1",), "fc2"),
    "gpt2": (("mlp.c_fc",), "mlp.c_proj"),
}


def test_the_maps_of_known_families(
    make_model: Callable[..., PreTrainedModel], family: str
) -> None:
    gated = ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"
    for block in decoder_blocks(make_model(family))[1]:
        (found,) = find_neurons(block)
        assert (found.inputs, found.output) == MAPS.get(family, gated)
        assert found.width == (128 if family == "gpt2" else 48)


def test_names_tell_if_there_are_as_many_neurons_as_channels() -> None:
    block = decoder_blocks(build(LlamaConfig(**{**TINY, "intermediate_size": 32})))[1][0]
    (found,) = find_neurons(block)
    assert found.output == "mlp.down_proj"
    block.mlp = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    with pytest.raises(InputError, match=r"its linear maps are .*it cannot be narrowed"):
        find_neurons(block)


def test_a_block_without_an_mlp_has_no_neurons() -> None:
    config = NemotronHConfig(
        **TINY, layers_block_type=["mamba", "mlp"], mamba_num_heads=4, mamba_head_dim=16,
        ssm_state_size=8, n_groups=1, head_dim=8,
    )  # fmt: skip
    found = [find_neurons(block) for block in decoder_blocks(build(config))[1]]
    assert [[own.output for own in neurons] for neurons in found] == [[], ["mixer.down_proj"]]


SHARED = {
    "qwen2_moe": ("mlp.shared_expert.down_proj", 40),
    "deepseek_v3": ("mlp.shared_experts.down_proj", 24),
}


def test_each_expert_has_neurons_of_its_own(
    make_model: Callable[..., PreTrainedModel], mixture: str
) -> None:
    found = find_neurons(decoder_blocks(make_model(mixture))[1][-1])
    widths = {own.output: own.width for own in found}
    experts = {f"mlp.experts.down_proj.{expert}": 24 for expert in range(4)}
    assert widths == experts | dict([SHARED[mixture]] if mixture in SHARED else [])
    inputs = {own.output: own.inputs for own in found}
    assert inputs["mlp.experts.down_proj.2"] == ("mlp.experts.gate_up_proj.2",)


def test_small_maps_beside_an_mlp_are_no_neurons() -> None:
    block = tiny_model("gemma3n_text").model.layers[0]
    assert [own.output for own in find_neurons(block)] == ["mlp.down_proj"]


def test_rows_of_a_neuron_of_fused_experts(
    make_model: Callable[..., PreTrainedModel], mixture: str
) -> None:
    block = decoder_blocks(make_model(mixture))[1][-1]
    linear = linear_modules(block)["mlp.experts.gate_up_proj.1"]
    expected = [10, 11] if mixture == "gpt_oss" else [5, 29]
    assert neuron_rows(linear, 24)[5].tolist() == expected


def test_weights_that_are_no_linear_maps_are_refused(model: PreTrainedModel) -> None:
    block = decoder_blocks(model)[1][0]
    block.mlp.mixing = nn.Parameter(torch.ones(4, 8, 8))
    with pytest.raises(InputError, match=r"has 'mlp.mixing', which is no linear map, so its neur"):
        find_neurons(block)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (LlamaConfig(**TINY), {"intermediate_size": 36}),
        (
            Lfm2Config(
                **TINY, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=True,
                block_multiple_of=16,
            ),
            {"intermediate_size": 24, "block_auto_adjust_ff_dim": False},
        ),
    ],
    ids=["llama", "lfm2"],
)  # fmt: skip
def test_the_field_of_the_width(config: PreTrainedConfig, field: dict[str, Any]) -> None:
    model = build(config)
    before = model.config.to_dict()
    (neurons,) = find_neurons(decoder_blocks(model)[1][0])
    assert find_width_changes(model, {neurons.width: field["intermediate_size"]}) == field
    assert model.config.to_dict() == before


def test_a_family_without_a_field_of_the_width_is_refused() -> None:
    model = build(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(InputError, match=r"no field of its config.json gives them .* than 128"):
        find_width_changes(model, {128: 96})


@pytest.mark.parametrize(
    ("name", "widths", "fields"),
    [
        (
            "qwen2_moe",
            {24: 18, 40: 30},
            {"moe_intermediate_size": 18, "shared_expert_intermediate_size": 30},
        ),
        # The width of its shared expert follows.
        ("deepseek_v3", {24: 18, 48: 36}, {"moe_intermediate_size": 18, "intermediate_size": 36}),
    ],
)
def test_the_fields_of_several_widths(
    name: str,
    widths: dict[int, int],
    fields: dict[str, int],
    make_model: Callable[..., PreTrainedModel],
) -> None:
    assert find_width_changes(make_model(name), widths) == fields


@torch.no_grad()
def test_living_neurons_stay_in_their_order(model: PreTrainedModel) -> None:
    block = decoder_blocks(model)[1][0]
    down, up = (oriented_weight(m).clone() for m in (block.mlp.down_proj, block.mlp.up_proj))
    gone = [0, 5, 6, 47]
    block.mlp.down_proj.weight[:, gone] = 0
    narrow_(block, {48: 46})  # two neurons without output stay
    kept = [i for i in range(48) if i not in (6, 47)]
    down[:, gone] = 0
    assert block.mlp.down_proj.weight.equal(down[:, kept])
    assert block.mlp.up_proj.weight.equal(up[kept])
    assert (block.mlp.up_proj.out_features, block.mlp.down_proj.in_features) == (46, 46)
    assert block.mlp.intermediate_size == 46
