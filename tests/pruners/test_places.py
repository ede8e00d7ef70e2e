"""Places of blocks and sublayers, as methods that drop some of them choose."""

import re
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.parts import drop_
from prunelit.pruners.places import (
    BLOCK,
    Target,
    drop_lowest,
    drop_places,
    find_dropped,
    find_places,
    variation_at,
)

MakeModel = Callable[..., PreTrainedModel]


@pytest.mark.parametrize(
    ("target", "kinds"),
    [
        (BLOCK, [BLOCK]),
        ("attention", ["attention"]),
        ("mixer", ["attention"]),
        ("mlp", ["mlp"]),
        ("both", ["attention", "mlp"]),
    ],
)
def test_places_are_in_order(model: PreTrainedModel, target: Target, kinds: list[str]) -> None:
    places = find_places(model, target, 1)
    assert [index for index, _ in places] == [i for i in range(3) for _ in kinds]
    assert {kind for _, kind in places} <= {*kinds, "mixer"}


def test_one_place_is_left(model: PreTrainedModel) -> None:
    assert len(find_places(model, "both", 5)) == 6
    with pytest.raises(InputError, match=r"below the 6 sublayers of the model \(both\) but got 6"):
        find_places(model, "both", 6)
    with pytest.raises(InputError, match="below the 3 blocks of the model but got 3"):
        find_places(model, BLOCK, 3)


@torch.no_grad()
def test_dropped_places_are_those_of_zeros(model: PreTrainedModel) -> None:
    _, blocks = decoder_blocks(model)
    both, whole = find_places(model, "both", 1), find_places(model, BLOCK, 1)
    assert find_dropped(model, [*both, *whole]) == []
    attention, mlp = (kind for _, kind in both[:2])
    drop_(blocks[1], mlp)
    drop_(blocks[2], attention, mlp)
    assert find_dropped(model, both) == [(1, mlp), (2, attention), (2, mlp)]
    assert find_dropped(model, whole) == [(2, BLOCK)]


@torch.no_grad()
def test_a_variation_is_the_model_without_the_place(model: PreTrainedModel) -> None:
    block = decoder_blocks(model)[1][1]
    assert variation_at(model, (1, BLOCK)).edit is None
    mlp = variation_at(model, (1, "mlp"))
    assert mlp.block == 1
    assert mlp.edit is not None
    before = {name: weight.clone() for name, weight in block.named_parameters()}
    mlp.edit(block)
    for name, weight in block.named_parameters():
        assert not weight.any() if name.startswith("mlp.") else weight.equal(before[name]), name


@torch.no_grad()
def test_the_lowest_places_go_and_of_equal_ones_the_first(model: PreTrainedModel) -> None:
    places = find_places(model, "mlp", 1)
    drop_lowest(model, [], dict(zip(places, (2.0, 1.0, 1.0), strict=True)), 1)
    assert find_dropped(model, places) == [places[1]]
    drop_lowest(model, places[1:2], {places[0]: 2.0, places[2]: 3.0}, 1)
    assert find_dropped(model, places) == places[:2]


@torch.no_grad()
def test_nothing_changes_where_the_rest_could_not_be_written(make_model: MakeModel) -> None:
    model = make_model("llama")
    _, blocks = decoder_blocks(model)
    blocks[2].mlp.down_proj.weight = blocks[1].mlp.down_proj.weight  # it would stay in block 2
    before = blocks[1].mlp.down_proj.weight.clone()
    with pytest.raises(InputError, match=re.escape("layers.1.mlp.down_proj.weight' cannot be")):
        drop_places(model, [], [(1, "mlp")])
    assert blocks[1].mlp.down_proj.weight.equal(before)
