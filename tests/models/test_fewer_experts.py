"""Experts that are 0 are taken out of mixtures, with their rows of the router."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, MixtralConfig, PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.experts import find_experts
from prunelit.models.fewer_experts import (
    alive_experts,
    config_counts,
    drop_experts_,
    find_dropped_experts,
    is_mixture,
    routed_tensors,
)

MakeModel = Callable[..., PreTrainedModel]


@torch.no_grad()
def drop_(model: PreTrainedModel, numbers: dict[int, list[int]]) -> None:
    """Set experts of blocks to 0."""
    for index, gone in numbers.items():
        for experts in find_experts(decoder_blocks(model)[1][index]).values():
            for value in experts.parameters():
                value[gone] = 0


def test_what_is_a_mixture(make_model: MakeModel) -> None:
    assert is_mixture(make_model("mixtral"))
    assert not is_mixture(make_model("llama"))
    assert config_counts(MixtralConfig(num_local_experts=6)) == {6}
    assert config_counts(LlamaConfig()) == set()


def test_tensors_with_an_entry_for_each_expert(make_model: MakeModel) -> None:
    block = decoder_blocks(make_model("gpt_oss"))[1][0]
    found = {name: axis for name, (_, axis) in routed_tensors(block, "mlp.experts").items()}
    own = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
    expected = {f"mlp.experts.{name}": 0 for name in own}
    assert found == expected | {"mlp.router.weight": 0, "mlp.router.bias": 0}


def test_every_mixture_keeps_the_same_number(mixture: str, make_model: MakeModel) -> None:
    model = make_model(mixture)
    dense, blocks = copy.deepcopy(model), decoder_blocks(model)[1]
    mixtures = [index for index, block in enumerate(blocks) if find_experts(block)]
    assert drop_experts_(model) == {}  # none is 0
    first, last = mixtures[0], mixtures[-1]
    drop_(model, {index: [1] for index in mixtures} | {last: [0, 1]})
    (name,) = find_experts(blocks[first])
    assert alive_experts(blocks[first].get_submodule(name)).tolist() == [True, False, True, True]
    gone = find_dropped_experts(blocks[last])
    assert all(value.shape[0] == 2 for key, value in gone.items() if key.startswith(name))
    kept = drop_experts_(model)
    assert kept.keys() == {*mixtures}
    assert kept[first] == {name: [0, 2, 3]}
    assert kept[last] == {name: [0, 2, 3]}  # one that is 0 stays, so that there are as many
    assert 3 in config_counts(model.config)
    before = decoder_blocks(dense)[1][first]
    for key, (value, axis) in routed_tensors(blocks[first], name).items():
        tensors = {**dict(before.named_parameters()), **dict(before.named_buffers())}
        assert value.equal(tensors[key].index_select(axis, torch.tensor([0, 2, 3]))), key


def test_a_configuration_without_their_number_is_refused(make_model: MakeModel) -> None:
    model = make_model("mixtral")
    drop_(model, {index: [0] for index in range(3)})
    model.config.num_local_experts = 5  # as if it were called otherwise
    with pytest.raises(InputError, match="to have the number of its experts, 4, as one of num_ex"):
        drop_experts_(model)
