"""Every pruning method keeps the contract of `Pruner`, on every family."""

import copy
import importlib
import inspect
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.pruners import (
    ADMM,
    Budget,
    Heads,
    Hidden,
    LinearPruner,
    Neuron,
    Pruner,
    SparseFW,
    Wanda,
    WandaPlus,
)
from prunelit.pruners.expert_pruner import ExpertPruner
from prunelit.pruning.blockwise import check_text
from prunelit.pruning.masks import Masks
from prunelit.recipe import describe
from prunelit.sparsity import Sparsity, Unstructured, Within

from .walk import classes

PRUNERS = classes("pruners", Pruner)

# Only methods for linear layers have groups of weights that compete.
ROUNDS: list[tuple[type[Pruner], Within | None]] = [
    (pruner, within)
    for pruner in PRUNERS
    for within in ((None, "row") if issubclass(pruner, LinearPruner) else (None,))
]

every_pruner = pytest.mark.parametrize("pruner_class", PRUNERS, ids=lambda p: p.__name__)


def build(pruner_class: type[Pruner]) -> Pruner:
    """Build the method with its own defaults; a required sparsity is 50%."""
    parameters = inspect.signature(pruner_class).parameters.values()
    arguments: dict[str, Any] = {
        p.name: Unstructured(0.5) for p in parameters if p.annotation is Sparsity
    }
    arguments |= {
        p.name: Wanda(Unstructured(0.5)) for p in parameters if p.annotation is LinearPruner
    }
    arguments |= {
        p.name: [Neuron(), Wanda(Unstructured(0.5))]
        for p in parameters
        if p.annotation == list[Pruner]
    }
    fewer = {"repeats": 1, "samples": 2, "iterations": 5}  # steps, which take time
    if pruner_class in (ADMM, SparseFW, WandaPlus):
        arguments |= {p.name: fewer[p.name] for p in parameters if p.name in fewer}
    if pruner_class is Budget:
        arguments["parameters"] = 0.9  # a tiny model has most of them in its embeddings
    return pruner_class(**arguments)


def fitting(pruner_class: type[Pruner], family: str = "llama") -> str:
    """Name a family that the method can prune: experts are only in a mixture."""
    if pruner_class in (Budget, Heads) and family in ("gpt2", "gpt_neox", "opt"):
        return "llama"  # those have no width of a head of their own
    if pruner_class is Hidden and family in ("gpt2", "gpt_neox", "opt", "phi"):
        return "llama"  # norms of those subtract the mean of all channels
    return "qwen2_moe" if issubclass(pruner_class, ExpertPruner) else family


def rebuild(recipe: Any) -> Any:
    """Build the object of `{class_path, init_args}`."""
    if isinstance(recipe, dict) and "class_path" in recipe:
        module, _, name = recipe["class_path"].rpartition(".")
        arguments = {key: rebuild(value) for key, value in recipe["init_args"].items()}
        return getattr(importlib.import_module(module), name)(**arguments)
    if isinstance(recipe, list):
        return [rebuild(item) for item in recipe]
    return recipe


@torch.no_grad()
def logits(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=input_ids).logits


def test_there_are_pruners_to_check() -> None:
    assert PRUNERS


@every_pruner
def test_logits_change_and_only_weights_of_blocks_do(
    pruner_class: type[Pruner],
    family: str,
    make_model: Callable[..., PreTrainedModel],
    input_ids: torch.Tensor,
) -> None:
    model = make_model(fitting(pruner_class, family))
    dense = copy.deepcopy(model)
    report = prune(model, build(pruner_class), input_ids, batch_size=4, shrink=False)
    after = logits(model, input_ids)
    assert torch.isfinite(after).all()
    assert not torch.allclose(after, logits(dense, input_ids), atol=1e-3)
    prefix, _ = decoder_blocks(model)
    before = dense.state_dict()
    changed = [name for name, w in model.state_dict().items() if not w.equal(before[name])]
    assert changed
    if not pruner_class.narrows_stream:
        assert all(name.startswith(f"{prefix}.") for name in changed)
    # Counted zeros are those of the model, and pruning made them.
    zeros = {tensor.name: tensor.zeros for tensor in report.tensors}
    weights = model.state_dict()
    assert zeros == {name: int((weights[name] == 0).sum()) for name in zeros}
    assert report.zeros == sum(int((p == 0).sum()) for p in model.parameters())
    gained = sum(zeros.values()) - sum(int((before[name] == 0).sum()) for name in zeros)
    if pruner_class.sparsifies:
        assert 0 < report.sparsity < 1
        assert gained > 0
        assert sum(int((~report.masks[name]).sum()) for name in report.masks) >= gained
    else:
        assert not len(report.masks)
    json.dumps(report.as_dict(), allow_nan=False)


@every_pruner
def test_the_recipe_rebuilds_the_method(
    pruner_class: type[Pruner],
    make_model: Callable[..., PreTrainedModel],
    input_ids: torch.Tensor,
) -> None:
    pruner = build(pruner_class)
    recipe = json.loads(json.dumps(describe(pruner)))
    again = rebuild(recipe)
    assert type(again) is pruner_class
    assert describe(again) == recipe
    first, second = (make_model(fitting(pruner_class)) for _ in range(2))
    report = prune(first, pruner, input_ids)
    assert report.recipe["pruner"] == recipe
    prune(second, again, input_ids)
    for name, weight in first.state_dict().items():
        assert weight.equal(second.state_dict()[name]), name


@every_pruner
def test_padding_enters_no_decision(
    pruner_class: type[Pruner],
    make_model: Callable[..., PreTrainedModel],
    padded: dict[str, torch.Tensor],
) -> None:
    first, second = (make_model(fitting(pruner_class)) for _ in range(2))
    garbage = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, 123)
    prune(first, build(pruner_class), [padded])
    prune(second, build(pruner_class), [{**padded, "input_ids": garbage}])
    for name, weight in first.state_dict().items():
        assert (weight == 0).equal(second.state_dict()[name] == 0), name


@pytest.mark.parametrize(
    ("pruner_class", "within"), ROUNDS, ids=[f"{p.__name__}-{within}" for p, within in ROUNDS]
)
def test_rounds_only_add_and_reach_what_was_asked(
    pruner_class: type[Pruner],
    within: Within | None,
    make_model: Callable[..., PreTrainedModel],
    input_ids: torch.Tensor,
) -> None:
    pruner = build(pruner_class)
    if not pruner.sparsifies or pruner_class is Budget:
        with pytest.raises(InputError, match="rounds"):
            pruner.scale(0.5)
        return
    if isinstance(pruner, LinearPruner):
        pruner.sparsity.within = within  # type: ignore[attr-defined]
    if "block_size" in vars(pruner):
        pruner.block_size = 8  # type: ignore[attr-defined]
    model = make_model(fitting(pruner_class))
    masks = Masks()
    for step in range(1, 21):  # less than a weight a row and column block at a time
        before = {name: masks[name] for name in masks}
        report = prune(model, pruner.scale(step / 20), input_ids, shrink=False)
        masks.merge(report.masks)
        masks.check(model)
        for name, mask in before.items():
            assert not (report.masks[name] & ~mask).any() if name in report.masks else True
        if isinstance(pruner, LinearPruner):
            for tensor in report.tensors:
                assert tensor.zeros == math.ceil(0.5 * step / 20 * tensor.size - 0.5), tensor


@every_pruner
def test_it_says_whether_it_reads_text(
    pruner_class: type[Pruner], make_model: Callable[..., PreTrainedModel]
) -> None:
    def refused(action: Callable[[], object]) -> str:
        try:
            action()
        except InputError as error:
            return str(error)
        return ""

    model, pruner = make_model(fitting(pruner_class)), build(pruner_class)
    pruner.check(model)  # as every run does first
    said = refused(lambda: check_text(pruner, model))
    assert said == refused(lambda: prune(model, build(pruner_class), None))
