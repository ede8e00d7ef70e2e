"""The heads of a block are found by the shapes of a smaller configuration, and proven."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    DiffLlamaConfig,
    FalconH1Config,
    Gemma4TextConfig,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
)

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.heads import check_fewer_heads, find_heads, head_changes, zero_heads_

from .small import TINY, build

MAPS = {"q_proj": 32, "k_proj": 16, "v_proj": 16, "o_proj": 32}
AXES = {
    "llama": {f"self_attn.{n}.weight": (int(n == "o_proj"), (s,)) for n, s in MAPS.items()},
    "gpt_oss": {
        **{f"self_attn.{n}.weight": (int(n == "o_proj"), (s,)) for n, s in MAPS.items()},
        **{f"self_attn.{n}.bias": (0, (s,)) for n, s in MAPS.items() if n != "o_proj"},
        "self_attn.sinks": (0, (4,)),
    },
    "deepseek_v3": {
        "self_attn.q_b_proj.weight": (0, (32,)),
        "self_attn.kv_b_proj.weight": (0, (48,)),
        "self_attn.o_proj.weight": (1, (32,)),
    },
}


@pytest.mark.parametrize("name", AXES)
def test_the_tensors_of_heads(name: str, make_model: Callable[..., PreTrainedModel]) -> None:
    for found in find_heads(make_model(name)):
        assert found is not None
        assert found.axes == AXES[name]
        assert found.output == "self_attn.o_proj"
        assert (found.heads, found.groups) == (4, 4 if name == "deepseek_v3" else 2)


def test_a_group_has_neighbours() -> None:
    model = build(LlamaConfig(**{**TINY, "head_dim": 3, "num_attention_heads": 8}))
    (found, _) = find_heads(model)
    assert found is not None
    block = decoder_blocks(model)[1][0]
    with torch.no_grad():
        zero_heads_(block, found, torch.tensor([False, True]))
    attention = block.self_attn
    assert (~attention.q_proj.weight.any(1)).nonzero().flatten().tolist() == [*range(12, 24)]
    assert (~attention.o_proj.weight.any(0)).nonzero().flatten().tolist() == [*range(12, 24)]
    assert (~attention.k_proj.weight.any(1)).nonzero().flatten().tolist() == [3, 4, 5]
    assert found.alive(block).tolist() == [True, False]
    assert head_changes(model, 1) == {"num_attention_heads": 4, "num_key_value_heads": 1}


def test_a_fused_map_has_three_sections() -> None:
    model = build(Phi3Config(**TINY))
    found = find_heads(model)[0]
    assert found is not None
    assert found.axes["self_attn.qkv_proj.weight"] == (0, (32, 16, 16))
    axis, places = found.entries("self_attn.qkv_proj.weight", torch.tensor([True, False]))
    assert (axis, places.tolist()) == (0, [*range(16), *range(32, 40), *range(48, 56)])
    check_fewer_heads(model, 1)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Olmo2Config(**TINY), r"its class would compute something else .* \(block 0 differs by"),
        (DiffLlamaConfig(**TINY), r"its class cannot have fewer \(.* requires"),
        (LlamaConfig(**{**TINY, "num_key_value_heads": 1}), "share one key and one value"),
        (Gemma4TextConfig(**{**TINY, "global_head_dim": 16}), "heads of different widths"),
        (
            LlamaConfig(**{**TINY, "hidden_size": 48, "num_key_value_heads": 4}),
            None,
        ),
    ],
    ids=["olmo2", "diffllama", "one", "gemma4", "llama"],
)
def test_other_families_are_refused(config: PreTrainedConfig, reason: str | None) -> None:
    model = build(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if reason is None:
        check_fewer_heads(model, 3)
    else:
        with pytest.raises(InputError, match=reason):
            check_fewer_heads(model, 1)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_number_that_the_configuration_refuses_is_named() -> None:
    model = build(LlamaConfig(**{**TINY, "num_key_value_heads": 4}))
    with pytest.raises(InputError, match=r"LlamaConfig does not take 3 of 4 heads \(it takes 1, 2"):
        check_fewer_heads(model, 3)


def test_a_configuration_with_an_infinite_number_is_read() -> None:
    config = FalconH1Config(**TINY, mamba_d_ssm=48, mamba_n_heads=4, mamba_d_head=12)
    assert config.time_step_limit[1] == float("inf")
    check_fewer_heads(build(config), 1)


def test_a_family_without_a_width_of_a_head_is_refused(
    make_model: Callable[..., PreTrainedModel],
) -> None:
    for name in ("gpt2", "opt", "gpt_neox"):
        with pytest.raises(InputError, match=r"no width of a head of its own \(`head_dim`\)"):
            find_heads(make_model(name))
