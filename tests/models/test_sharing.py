"""Weights outside the blocks that both models of a run have once."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks
from prunelit.models.channels import zero_channels_
from prunelit.models.sharing import copy_sharing, share_outside
from prunelit.models.stores import each_weight
from prunelit.models.streaming import stream

MakeModel = Callable[..., PreTrainedModel]


def places(model: PreTrainedModel) -> dict[str, int]:
    return {name: weight.data_ptr() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_copy_has_its_own_blocks_and_shares_the_rest(kind: str, make_model: MakeModel) -> None:
    dense = make_model(kind)
    model = copy_sharing(dense)
    prefix = decoder_blocks(dense)[0]
    own, other = places(model), places(dense)
    assert {name for name in own if own[name] != other[name]} == {
        name for name in own if name.startswith(f"{prefix}.")
    }
    embedding = model.get_input_embeddings().weight
    assert embedding is not dense.get_input_embeddings().weight  # a new tensor is of one model
    tied = dense.get_output_embeddings().weight is dense.get_input_embeddings().weight
    assert (model.get_output_embeddings().weight is embedding) == tied


@pytest.mark.parametrize("streamed", [False, True])
def test_a_method_that_edits_channels_leaves_the_dense_model(
    streamed: bool, make_model: MakeModel
) -> None:
    dense = make_model("llama")
    before = {name: weight.clone() for name, weight in dense.named_parameters()}
    model = copy_sharing(dense)
    if streamed:
        stream(dense)
        stream(model, dense=dense)
    zero_channels_(model, torch.arange(dense.config.hidden_size) < 4)
    assert not model.get_input_embeddings().weight[:, :4].any()
    assert all(torch.equal(weight, before[name]) for name, weight in each_weight(dense))


def test_equal_weights_become_one_memory(make_model: MakeModel) -> None:
    dense, model = make_model("llama"), make_model("llama")
    with torch.no_grad():
        for weight, other in zip(model.parameters(), dense.parameters(), strict=True):
            weight.copy_(other)
        model.get_parameter("model.norm.weight")[0] += 1
    share_outside(model, dense)
    own, other = places(model), places(dense)
    shared = {name for name in own if own[name] == other[name]}
    assert shared == {name for name in own if "layers." not in name} - {"model.norm.weight"}
