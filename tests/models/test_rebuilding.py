"""The model that a configuration would build, on weights that are there already."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks, final_hidden
from prunelit.models.rebuilding import (
    build_skeleton,
    changed,
    fill,
    find_attribute,
    shapes_of,
)
from prunelit.models.streaming import offloaded

MakeModel = Callable[..., PreTrainedModel]


@torch.no_grad()
def test_it_computes_the_same_with_the_same_weights(
    make_model: MakeModel, family: str, padded: dict[str, torch.Tensor]
) -> None:
    model = make_model(family)
    skeleton = build_skeleton(model, copy.deepcopy(model.config))
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert shapes_of(skeleton) == shapes_of(model)
    fill(skeleton, model)
    pairs = zip(skeleton.parameters(), model.parameters(), strict=True)
    assert all(one is own for one, own in pairs)
    assert final_hidden(skeleton, **padded).equal(final_hidden(model, **padded))
    assert not nn.Linear(2, 2).weight.is_meta  # parameters have values again


@torch.no_grad()
def test_blocks_that_wait_come_to_both(
    model: PreTrainedModel, padded: dict[str, torch.Tensor]
) -> None:
    expected = final_hidden(model, **padded)
    with offloaded(decoder_blocks(model)[1], torch.device("cpu")):
        skeleton = build_skeleton(model, copy.deepcopy(model.config))
        fill(skeleton, model)
        assert final_hidden(skeleton, **padded).equal(expected)


def test_parameters_have_values_after_an_error(model: PreTrainedModel) -> None:
    config = changed(model.config, {"hidden_size": -1})
    assert model.config.hidden_size == 32
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the family raises
        build_skeleton(model, config)
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_number_that_differs_is_named(model: PreTrainedModel) -> None:
    other = copy.deepcopy(model)
    assert find_attribute(model, other) == ""
    other.model.layers[1].self_attn.scaling = 0.5
    words = find_attribute(model, other)
    assert words.startswith(", since `model.layers.1.self_attn.scaling` is 0.5 and not 0.35")
