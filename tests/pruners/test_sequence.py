"""Several methods in sequence: each prunes what those before it left."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunelit import InputError, prune, save_pretrained
from prunelit.allocation import OWL
from prunelit.pruners import (
    ADMM,
    BlockDrop,
    Budget,
    DSnoT,
    ExpertDrop,
    Heads,
    Hidden,
    LinearPruner,
    Magnitude,
    Neuron,
    Pruner,
    Quantize,
    Sequence,
    SparseGPT,
    SublayerDrop,
    Wanda,
    WandaPlus,
)
from prunelit.sparsity import SemiStructured, Unstructured

HALF = Unstructured(0.5)


@pytest.mark.parametrize(
    "methods",
    [
        [Heads(0.5), Neuron(0.25), Wanda(Unstructured(0.3))],
        [Hidden(0.25), Neuron(0.25), Wanda(Unstructured(0.3))],
        [Neuron(0.25), DSnoT(HALF)],
        [Neuron(0.25), ADMM(HALF)],
        [Neuron(0.25), WandaPlus(HALF, repeats=1, samples=2)],
        [BlockDrop(1), WandaPlus(HALF, repeats=1, samples=2)],
        [Neuron(0.25), SublayerDrop(1, "mlp"), Wanda(SemiStructured(2, 4))],
        [Neuron(0.5), SparseGPT(HALF)],
        [BlockDrop(1), Magnitude(HALF)],
        [Neuron(0.25), Quantize(4)],
        [Sequence([Wanda(Unstructured(0.3)), Wanda(HALF, allocation=OWL(2.0))])],
    ],
    ids=lambda methods: "-".join(type(method).__name__ for method in methods),
)
def test_each_method_prunes_what_the_earlier_ones_left(
    methods: list[Pruner], make_model: Callable[..., PreTrainedModel], padded: dict[str, Tensor]
) -> None:
    model, expected = make_model("llama"), make_model("llama")
    report = prune(model, Sequence(methods), [padded])
    for method in (step for one in methods for step in one.steps):
        prune(expected, method, [padded])  # takes its parts out, so the next one never sees them
    weights = expected.state_dict()
    assert model.state_dict().keys() == weights.keys()
    for name, weight in model.state_dict().items():
        assert (weight == 0).equal(weights[name] == 0), name
        torch.testing.assert_close(weight, weights[name], rtol=1e-3, atol=1e-5)
    assert report.zeros >= sum(int((weight == 0).sum()) for weight in model.parameters())
    assert len(report.blocks) == 3


def test_the_folder_is_that_of_the_smaller_model(
    make_model: Callable[..., PreTrainedModel],
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: str,
) -> None:
    model = make_model("qwen3")
    report = prune(model, Sequence([Neuron(0.25), Wanda(HALF)]), [padded])
    save_pretrained(model, tokenizer, tmp_path, report)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert stock(**padded).logits.equal(model(**padded).logits)
    down = stock.model.layers[0].mlp.down_proj.weight
    assert int((down == 0).sum()) == down.numel() // 2
    assert report.removed is not None
    assert set(report.removed["widths"].values()) == {down.shape[1]}


def test_rounding_removes_nothing_and_brings_nothing_back(
    make_model: Callable[..., PreTrainedModel], padded: dict[str, Tensor]
) -> None:
    alone, model = make_model("llama"), make_model("llama")
    first = prune(alone, Wanda(HALF), [padded])
    report = prune(model, Sequence([Wanda(HALF), Quantize(2)]), [padded])
    assert report.sparsity == first.sparsity
    assert report.zeros >= first.zeros
    weights = model.state_dict()
    for name in first.masks:
        assert report.masks[name].equal(first.masks[name]), name
        assert not weights[name][~first.masks[name]].any(), name
    assert not weights["model.layers.0.mlp.up_proj.weight"].equal(
        alone.state_dict()["model.layers.0.mlp.up_proj.weight"]
    )


def test_rounds_scale_every_method(
    make_model: Callable[..., PreTrainedModel], padded: dict[str, Tensor]
) -> None:
    model = make_model("llama")
    methods = Sequence([Neuron(0.5), Wanda(HALF)])
    for fraction in (0.5, 1):
        prune(model, methods.scale(fraction), [padded], shrink=False)
        down = model.model.layers[0].mlp.down_proj.weight
        left = down[:, down.any(0)]
        assert left.shape[1] == down.shape[1] * (1 - 0.5 * fraction)
        assert int((left == 0).sum()) == round(left.numel() * 0.5 * fraction)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([], "at least one method in `methods` but got none"),
        ([ExpertDrop(), Wanda(HALF)], "ExpertDrop as the last .* Wanda follows"),
        ([BlockDrop(1), SublayerDrop(1)], "one method that drops .* BlockDrop and SublayerDrop"),
        (
            [Neuron(), Wanda(HALF), Neuron(0.5)],
            "removes neurons in `methods` but got Neuron and Neuron",
        ),
        ([Budget(), Neuron()], "removes neurons in `methods` but got Budget and Neuron"),
        ([Heads(), Budget()], "removes heads in `methods` but got Heads and Budget"),
        ([Neuron(), Magnitude(Unstructured(0.5, within="model"))], "`within` row or matrix"),
        (
            [BlockDrop(1), Wanda(HALF, allocation=OWL(2.0))],
            "no `allocation` of Wanda after BlockDr",
        ),
    ],
)
def test_an_order_that_cannot_be_right_is_refused(methods: list[Pruner], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sequence(methods)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (Wanda(HALF, include=["none"]), "matches no linear module"),
        (Wanda(SemiStructured(2, 3)), "divisible by `group` 3"),
    ],
)
def test_the_last_method_is_refused_before_the_first_one_begins(
    last: LinearPruner,
    message: str,
    make_model: Callable[..., PreTrainedModel],
    padded: dict[str, Tensor],
) -> None:
    model = make_model("llama")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=message):
        prune(model, Sequence([Neuron(), last]), [padded])
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("first", [Heads(count=1), Budget(0.9), Budget(0.9, uniform=False)])
@pytest.mark.parametrize("order", [1, -1])
def test_heads_and_channels_are_refused_that_the_configuration_takes_only_alone(
    first: Pruner, order: int, padded: dict[str, Tensor]
) -> None:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=96,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    before = copy.deepcopy(model.state_dict())
    # 8 heads and 80 channels are taken, so are 6 heads and 96 channels.
    methods = [first, Hidden(0.17)][::order]
    with pytest.raises(InputError, match=r"LlamaConfig takes together .*hidden_size: 80"):
        prune(model, Sequence(methods), [padded])
    assert all(weight.equal(before[name]) for name, weight in model.state_dict().items())
    prune(model, Sequence([Heads(count=1), Hidden(0.25)]), [padded])  # 6 heads and 72 channels
    assert model.config.hidden_size == 72


def test_only_a_method_that_replays_reads_one_sequence_at_a_time(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    read: list[int] = []
    first: nn.Module = model.model.layers[0]
    first.register_forward_pre_hook(lambda block, args: read.append(len(args[0])))
    prune(model, Wanda(Unstructured(0.2)), input_ids)
    alone = read.count(len(input_ids))
    assert alone > 0
    read.clear()
    again = WandaPlus(HALF, repeats=0)
    prune(model, Sequence([again, Wanda(HALF)]), input_ids)
    assert read.count(len(input_ids)) == alone
    assert read.count(1) >= len(input_ids)
