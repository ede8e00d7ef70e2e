"""Numbers of parameters that go with heads and neurons, against models that lost them."""

from collections.abc import Callable

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.models.architecture import decoder_blocks
from prunelit.pruners import Heads, Neuron
from prunelit.pruners.part_sizes import count_in_heads, count_in_neurons, count_outside

MakeModel = Callable[..., PreTrainedModel]


def test_outside_is_what_is_in_no_block(family: str, make_model: MakeModel) -> None:
    model = make_model(family)
    inside = sum(one.numel() for block in decoder_blocks(model)[1] for one in block.parameters())
    assert count_outside(model) == sum(one.numel() for one in model.parameters()) - inside > 0


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])  # with biases; with a head width of its own
def test_a_model_is_smaller_by_what_was_counted(
    name: str, make_model: MakeModel, input_ids: Tensor
) -> None:
    model = make_model(name)
    before, blocks = model.num_parameters(), decoder_blocks(model)[1]
    heads = len(blocks) * count_in_heads(model, 1)
    prune(model, Heads(count=1), input_ids)
    assert before - model.num_parameters() == heads > 0


@pytest.mark.parametrize("name", ["llama", "phi", "gpt2"])  # gated; with biases; transposed
def test_neurons_take_their_biases_along(
    name: str, make_model: MakeModel, input_ids: Tensor
) -> None:
    model, pruner = make_model(name), Neuron(0.25)
    pruner.check(model)
    before, blocks = model.num_parameters(), decoder_blocks(model)[1]
    neurons = sum(count_in_neurons(block, pruner.removed) for block in blocks)
    prune(model, pruner, input_ids)
    assert before - model.num_parameters() == neurons > 0
