"""The maps of an MLP are found by their shapes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Lfm2Config,
    LlamaConfig,
    MixtralConfig,
    NemotronHConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, oriented_weight
from prunelit.models.neurons import find_neurons, find_width_changes, narrow_

MAPS = {
    "phi": (("mlp.fc1",), "mlp.fc2"),
    "gpt_neox": (("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
    "opt": (("fc1",), "fc2"),
    "gpt2": (("mlp.c_fc",), "mlp.c_proj"),
}
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
    return AutoModelForCausalLM.from_config(config)


def test_the_maps_of_known_families(
    make_model: Callable[..., PreTrainedModel], family: str
) -> None:
    gated = ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"
    for block in decoder_blocks(make_model(family))[1]:
        found = find_neurons(block)
        assert found is not None
        assert (found.inputs, found.output) == MAPS.get(family, gated)
        assert found.width == (128 if family == "gpt2" else 48)


def test_names_tell_if_there_are_as_many_neurons_as_channels() -> None:
    block = decoder_blocks(build(LlamaConfig(**{**TINY, "intermediate_size": 32})))[1][0]
    found = find_neurons(block)
    assert found is not None
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
    assert found[0] is None
    assert found[1] is not None
    assert found[1].output == "mixer.down_proj"


def test_experts_are_refused() -> None:
    config = MixtralConfig(**TINY, num_local_experts=4, num_experts_per_tok=2)
    with pytest.raises(InputError, match="has other weights than linear maps, such as experts"):
        find_neurons(decoder_blocks(build(config))[1][0])


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
    assert find_width_changes(model, field["intermediate_size"]) == field
    assert model.config.to_dict() == before


def test_a_family_without_a_field_of_the_width_is_refused() -> None:
    model = build(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4))
    with pytest.raises(InputError, match=r"no field of its config.json gives them .* than 128"):
        find_width_changes(model, 96)


@torch.no_grad()
def test_living_neurons_stay_in_their_order(model: PreTrainedModel) -> None:
    block = decoder_blocks(model)[1][0]
    down, up = (oriented_weight(m).clone() for m in (block.mlp.down_proj, block.mlp.up_proj))
    gone = [0, 5, 6, 47]
    block.mlp.down_proj.weight[:, gone] = 0
    narrow_(block, 46)  # two neurons without output stay
    kept = [i for i in range(48) if i not in (6, 47)]
    down[:, gone] = 0
    assert block.mlp.down_proj.weight.equal(down[:, kept])
    assert block.mlp.up_proj.weight.equal(up[kept])
    assert (block.mlp.up_proj.out_features, block.mlp.down_proj.in_features) == (46, 46)
    assert block.mlp.intermediate_size == 46
