"""Each slice of a fused tensor is a linear map that reads the tokens of its expert."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import block_weights, decoder_blocks, left_dense, linear_modules
from prunelit.models.experts import (
    ExpertMap,
    called_one_by_one,
    expert_maps,
    find_experts,
    find_routers,
)
from prunelit.pruners import oriented_weight

MakeModel = Callable[..., PreTrainedModel]


def last_block(model: PreTrainedModel) -> nn.Module:
    return decoder_blocks(model)[1][-1]


def maps_of(block: nn.Module) -> dict[str, ExpertMap]:
    ((name, experts),) = find_experts(block).items()
    return expert_maps(name, experts)


def test_a_map_is_a_view_of_its_slice(make_model: MakeModel, mixture: str) -> None:
    block = last_block(make_model(mixture))
    maps = maps_of(block)
    assert [*maps] == [
        f"mlp.experts.{t}.{e}" for t in ("gate_up_proj", "down_proj") for e in range(4)
    ]
    assert maps.items() <= linear_modules(block).items()
    down = block.get_parameter("mlp.experts.down_proj")
    for name, one in maps.items():
        weight = oriented_weight(one)
        assert weight.shape == ((48, 32) if "gate_up" in name else (32, 24))
        with torch.no_grad():
            weight[1, 2] = one.index + 10
    place = (slice(None), 2, 1) if mixture == "gpt_oss" else (slice(None), 1, 2)
    assert down[place].tolist() == [10, 11, 12, 13]


def test_two_views_of_one_slice_are_equal(make_model: MakeModel) -> None:
    one, other = (last_block(make_model("mixtral")) for _ in range(2))
    assert maps_of(one) == maps_of(one)
    assert set(maps_of(one).values()) == set(maps_of(one).values())
    assert len(set(maps_of(one).values())) == 8
    assert not set(maps_of(one).values()) & set(maps_of(other).values())
    assert maps_of(one)["mlp.experts.down_proj.1"] != nn.Linear(2, 2)


@torch.no_grad()
def test_called_one_by_one_experts_compute_the_same(
    make_model: MakeModel, mixture: str, padded: dict[str, Tensor]
) -> None:
    model = make_model(mixture)
    before = model(**padded).logits
    seen: dict[str, int] = {}
    maps = maps_of(last_block(model))
    for name, one in maps.items():
        one.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: seen.get(name, 0) + len(args[0])})
        )
    with called_one_by_one(maps.values(), checked=True):
        torch.testing.assert_close(model(**padded).logits, before)
    assert seen.keys() == maps.keys()
    # Every token reaches two experts.
    assert sum(seen[name] for name in maps if "down" in name) == 2 * padded["input_ids"].numel()
    assert torch.equal(model(**padded).logits, before)
    assert "forward" not in vars(last_block(model).mlp.experts)


@torch.no_grad()
def test_experts_of_another_kind_are_refused(make_model: MakeModel, input_ids: Tensor) -> None:
    model = make_model("mixtral")
    experts = last_block(model).mlp.experts
    own = experts.forward
    experts.forward = lambda *args: 1.1 * own(*args)
    with (
        called_one_by_one(maps_of(last_block(model)).values(), checked=True),
        pytest.raises(InputError, match=r"MixtralExperts computes something else than its maps"),
    ):
        model(input_ids)
    with called_one_by_one(maps_of(last_block(model)).values()):
        model(input_ids)


ROUTERS = {"mixtral": "gate", "qwen2_moe": "gate", "qwen3_moe": "gate", "gpt_oss": "router",
           "deepseek_v3": "gate"}  # fmt: skip


def test_routers_and_gates_are_left_dense(make_model: MakeModel, mixture: str) -> None:
    block = last_block(make_model(mixture))
    router = f"mlp.{ROUTERS[mixture]}"
    assert find_routers(block) == {router}
    gates = {"mlp.shared_expert_gate"} if mixture == "qwen2_moe" else set()
    assert left_dense(block) == {router} | gates
    assert oriented_weight(linear_modules(block)[router]).shape == (4, 32)
    kinds = {name: weight.kind for name, weight in block_weights(block).items()}
    assert {name for name, kind in kinds.items() if kind == "router"} == {f"{router}.weight"}
    assert {name for name, kind in kinds.items() if kind == "gate"} == {
        f"{g}.weight" for g in gates
    }
    assert kinds["mlp.experts.down_proj"] == kinds["self_attn.o_proj.weight"] == "linear"
    assert not any("bias" in name for name in kinds)


def test_a_shared_expert_with_as_many_neurons_as_experts_is_no_router(
    make_model: MakeModel,
) -> None:
    block = last_block(make_model("qwen2_moe"))
    block.mlp.shared_expert.gate_proj = nn.Linear(32, 4)
    assert find_routers(block) == {"mlp.gate"}


def test_routers_with_further_rows_and_layers(make_model: MakeModel) -> None:
    block = last_block(make_model("mixtral"))
    block.mlp.gate = nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 5))
    assert find_routers(block) == {"mlp.gate", "mlp.gate.0", "mlp.gate.1"}


def test_a_dense_block_has_none(make_model: MakeModel) -> None:
    block = decoder_blocks(make_model("deepseek_v3"))[1][0]
    assert not find_experts(block)
    assert not find_routers(block)
    assert not left_dense(block)
