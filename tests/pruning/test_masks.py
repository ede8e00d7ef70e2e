import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules
from prunelit.pruners import Wanda
from prunelit.pruning.masks import Masks, build_masks, count_zeros
from prunelit.sparsity import Unstructured

MakeModel = Callable[..., PreTrainedModel]


def items(masks: Masks) -> list[tuple[str, Tensor]]:
    return [(name, masks[name]) for name in masks]


@pytest.fixture
def pruned(model: PreTrainedModel, input_ids: Tensor) -> tuple[PreTrainedModel, Masks]:
    return model, prune(model, Wanda(Unstructured(0.5)), input_ids).masks


def test_masks_are_those_of_the_pruned_weights_alone(
    make_model: MakeModel, family: str, input_ids: Tensor
) -> None:
    model = make_model(family)
    masks = prune(model, Wanda(Unstructured(0.5)), input_ids).masks
    prefix, blocks = decoder_blocks(model)
    expected = {
        f"{prefix}.{index}.{name}.weight"
        for index, block in enumerate(blocks)
        for name in linear_modules(block)
    }
    assert {name for name in masks if name.endswith("weight")} == expected
    for name, mask in items(masks):
        if name.endswith("weight"):
            assert torch.equal(mask, model.get_parameter(name) != 0), name


def test_packed_bits_and_back(pruned: tuple[PreTrainedModel, Masks]) -> None:
    model, masks = pruned
    packed = masks.pack()
    for name, mask in items(masks):
        bits = packed[name]
        assert bits.dtype == torch.uint8
        assert bits.numel() == -(-mask.numel() // 8)
        flat = mask.flatten().tolist()
        for j in (0, bits.numel() - 1):
            expected = sum(1 << i for i, keep in enumerate(flat[8 * j : 8 * j + 8]) if keep)
            assert int(bits[j]) == expected
    again = Masks.unpack(packed, model)
    assert all(torch.equal(again[name], mask) for name, mask in items(masks))


def test_masks_of_another_model_are_refused(
    pruned: tuple[PreTrainedModel, Masks], make_model: MakeModel
) -> None:
    model, masks = pruned
    with pytest.raises(InputError, match="not one of its parameters"):
        Masks.unpack(masks.pack(), make_model("gpt2"))
    name, bits = next(iter(masks.pack().items()))
    with pytest.raises(InputError, match=f"bits for '{name}' but got"):
        Masks.unpack({name: bits[:-1]}, model)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    loss = model(input_ids=ids, labels=ids).loss / 2
    loss.backward()
    if ids.shape[0] % 2:  # every second call steps: gradient accumulation
        return
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "optimizer_class",
    [
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, weight_decay=0.1, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, foreach=False),
    ],
    ids=["adamw", "sgd", "adam"],
)
def test_no_removed_weight_comes_back_in_training(
    optimizer_class: Callable[..., torch.optim.Optimizer],
    dtype: torch.dtype,
    model: PreTrainedModel,
    input_ids: Tensor,
) -> None:
    model.to(dtype)
    optimizer = optimizer_class(model.parameters())
    # Momentum from before pruning would move removed weights first.
    for _ in range(2):
        step(model, optimizer, input_ids)
    masks = prune(model, Wanda(Unstructured(0.5)), input_ids).masks
    before = copy.deepcopy(model.state_dict())
    handles = masks.hold(model, [optimizer])
    for _ in range(3):
        step(model, optimizer, input_ids[:3])
        step(model, optimizer, input_ids[:2])
        masks.check(model)
    name = "model.layers.1.mlp.up_proj.weight"
    gradient_of = model.get_parameter(name)
    assert not torch.equal(gradient_of, before[name])  # it did train
    for handle in handles:
        handle.remove()
    step(model, optimizer, input_ids)
    with pytest.raises(AssertionError, match=r"removed weights of .* are not 0"):
        masks.check(model)
    masks.apply_(model)
    masks.check(model)


def test_gradients_of_removed_weights_are_zero_for_clipping(
    pruned: tuple[PreTrainedModel, Masks], input_ids: Tensor
) -> None:
    model, masks = pruned
    masks.hold(model, [torch.optim.SGD(model.parameters(), lr=0.1)])
    model(input_ids=input_ids, labels=input_ids).loss.backward()
    for name, mask in items(masks):
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert not gradient[~mask].any()
        assert gradient[mask].any()


def test_a_later_round_only_adds(model: PreTrainedModel, input_ids: Tensor) -> None:
    first = prune(model, Wanda(Unstructured(0.3)), input_ids).masks
    before = {name: mask.clone() for name, mask in items(first)}
    first.merge(prune(model, Wanda(Unstructured(0.6)), input_ids).masks)
    for name, mask in items(first):
        assert not (mask & ~before[name]).any()
        assert mask.sum() < before[name].sum()


def test_what_was_zero_before_is_no_removal_elsewhere() -> None:
    layer = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with torch.no_grad():
        layer[1].weight[0, 0] = 0
    before = count_zeros(layer)
    with torch.no_grad():
        layer[0].weight[1] = 0
        layer[0].weight[2, 0] = 0
    masks = build_masks(layer, before, count_zeros(layer))
    # A removed row removes its bias too; the untouched layer has no mask.
    assert set(masks) == {"0.weight", "0.bias"}
    np.testing.assert_array_equal(masks["0.bias"].numpy(), [True, False, True])
    assert int(masks["0.weight"].sum()) == 7
