"""Adapters train the weights that are left, and merging changes no result."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prunelit import prune, save_pretrained
from prunelit.errors import InputError
from prunelit.pruners import Wanda
from prunelit.pruning.lora import LoRA, attach, hold, merge
from prunelit.pruning.recovery import Recovery
from prunelit.sparsity import Unstructured

TARGETS = ["q_proj", "down_proj"]


def train(model: PreTrainedModel, input_ids: Tensor) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        Recovery().losses(model, None, input_ids)["loss"].backward()
        optimizer.step()


def test_what_is_trained_is_what_merging_gives(model: PreTrainedModel, input_ids: Tensor) -> None:
    masks = prune(model, Wanda(Unstructured(0.5)), input_ids).masks
    names = list(dict(model.named_parameters()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attach(model, LoRA(rank=2, target_modules=TARGETS))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 3 * 2 * (32 + 32 + 48 + 32)
    hold(model, masks, model.device)
    train(model, input_ids)
    adapted = model(input_ids=input_ids).logits
    merge(model)
    assert list(dict(model.named_parameters())) == names
    with pytest.raises(AssertionError, match="are not 0"):
        masks.check(model)
    masks.apply_(model)
    torch.testing.assert_close(model(input_ids=input_ids).logits, adapted, rtol=1e-4, atol=1e-5)
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == {
        f"model.layers.{index}.{name}.weight"
        for index in range(3)
        for name in ("self_attn.q_proj", "mlp.down_proj")
    }


def test_adapters_of_fused_experts_are_masked(
    mixture: str, make_model: Callable[..., PreTrainedModel], input_ids: Tensor
) -> None:
    model = make_model(mixture)
    masks = prune(model, Wanda(Unstructured(0.5)), input_ids).masks
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attach(model, LoRA(rank=2))
    hold(model, masks, model.device)
    train(model, input_ids)
    adapted = model(input_ids=input_ids).logits
    merge(model)
    masks.apply_(model)
    assert model.state_dict().keys() == before.keys()
    torch.testing.assert_close(model(input_ids=input_ids).logits, adapted, rtol=1e-4, atol=1e-5)
    for tensor in ("gate_up_proj", "down_proj"):
        name = f"model.layers.2.mlp.experts.{tensor}"
        weight = model.get_parameter(name)
        assert (weight != before[name])[masks[name]].double().mean() > 0.9
        assert torch.equal(weight == 0, ~masks[name])


def test_gradients_are_those_of_the_masked_weights(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    masks = prune(model, Wanda(Unstructured(0.5)), input_ids).masks
    name = "model.layers.1.mlp.down_proj"
    attach(model, LoRA(rank=2, alpha=6.0, target_modules=TARGETS))
    hold(model, masks, model.device)
    train(model, input_ids)  # B begins at 0
    model.zero_grad()
    Recovery().losses(model, None, input_ids)["loss"].backward()
    layer = model.get_submodule(name)
    a, b = (getattr(layer, f"lora_{which}").default.weight for which in "AB")
    merge(model)
    masks.apply_(model)
    weight = model.get_parameter(f"{name}.weight").requires_grad_()
    Recovery().losses(model, None, input_ids)["loss"].backward()
    assert weight.grad is not None
    masked = 3.0 * weight.grad * masks[f"{name}.weight"]
    torch.testing.assert_close(a.grad, b.T @ masked, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(b.grad, masked @ a.T, rtol=1e-3, atol=1e-6)


def test_modules_that_the_model_lacks(model: PreTrainedModel) -> None:
    lora = LoRA(target_modules=["nothing"])
    names = list(dict(model.named_parameters()))
    with pytest.raises(InputError, match=r"`model\.recovery\.lora` does not fit this model"):
        lora.check(model)
    LoRA().check(model)
    assert list(dict(model.named_parameters())) == names


def test_settings_that_mean_nothing() -> None:
    with pytest.raises(InputError, match=r"`lora\.rank` of at least 1"):
        LoRA(rank=0)


@pytest.mark.parametrize("form", ["model", "attached", "merged in place"])
def test_a_model_with_an_adapter_is_neither_pruned_nor_saved(
    form: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    input_ids: Tensor,
    tmp_path: Path,
) -> None:
    report = prune(model, Wanda(Unstructured(0.5)), input_ids)
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=TARGETS))
    if form == "merged in place":
        adapted.merge_adapter()
    given = adapted if form == "model" else model
    before = {name: value.clone() for name, value in given.state_dict().items()}
    refused = "is a Linear of peft|is a PeftModel of peft"
    with pytest.raises(InputError, match=f"({refused}).*: merge the adapter"):
        prune(given, Wanda(Unstructured(0.5)), input_ids)
    # Transformers would write the adapter alone.
    with pytest.raises(InputError, match=f"({refused}).*: merge the adapter"):
        save_pretrained(given, tokenizer, tmp_path / "pruned", report)
    assert all(value.equal(before[name]) for name, value in given.state_dict().items())
    assert not list(tmp_path.iterdir())
    if form == "merged in place":
        adapted.unmerge_adapter()
    merged = adapted.merge_and_unload()
    report = prune(merged, Wanda(Unstructured(0.5)), input_ids)
    save_pretrained(merged, tokenizer, tmp_path / "pruned", report)
