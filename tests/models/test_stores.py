import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.fingerprint import fingerprint, quick_state
from prunelit.models.stores import (
    Store,
    bring,
    check_here,
    each_part,
    each_weight,
    each_whole,
    keep_in,
    store_of,
    whole,
)


class Noted(Store):
    """Notes what it is asked for, and keeps the weights here."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[object] = []

    def fetch(self) -> None:
        self.moves.append("fetch")

    def leave(self, edited: bool) -> None:
        self.moves.append(edited)


@pytest.fixture
def stores(model: PreTrainedModel) -> list[Noted]:
    found = []
    for block in model.model.layers:
        found.append(Noted())
        keep_in(block, found[-1])
    return found


def test_a_block_without_a_store_is_here() -> None:
    block = nn.Linear(2, 2)
    with whole(block, edited=True):
        assert store_of(block) is None


def test_a_block_can_stay_for_good(model: PreTrainedModel, stores: list[Noted]) -> None:
    block = model.model.layers[0]
    for _ in range(2):
        bring(block)
    assert stores[0].moves == ["fetch"]
    assert all(store_of(module) is None for module in block.modules())
    assert "forward" not in vars(block)


def test_a_block_comes_once_and_is_kept_if_it_was_edited_inside(
    model: PreTrainedModel, stores: list[Noted]
) -> None:
    block, store = model.model.layers[0], stores[0]
    with whole(block), whole(block.mlp.up_proj, edited=True), whole(block):
        assert store.moves == ["fetch"]
    assert store.moves == ["fetch", True]
    with whole(block):
        pass
    assert store.moves == ["fetch", True, "fetch", False]
    assert store.edits == 1


def test_an_error_takes_the_block_away(model: PreTrainedModel, stores: list[Noted]) -> None:
    with pytest.raises(ValueError, match="inside"), whole(model.model.layers[0]):
        raise ValueError("inside")
    assert stores[0].moves == ["fetch", False]


def test_neighbours_of_one_block_bring_it_once(model: PreTrainedModel, stores: list[Noted]) -> None:
    layers = model.model.layers
    parts = [layers[0].mlp.up_proj, layers[0].mlp.down_proj, model.lm_head, layers[1].mlp]
    for count, _ in enumerate(each_whole(parts)):
        assert stores[0].moves == (["fetch"] if count < 2 else ["fetch", False])
    assert [store.moves for store in stores] == [["fetch", False], ["fetch", False], []]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_weights_come_in_the_order_of_the_model(
    kind: str, make_model: Callable[..., PreTrainedModel]
) -> None:
    model = make_model(kind)
    assert [*each_weight(model)] == [*model.named_parameters()]


def test_weights_by_name(model: PreTrainedModel, stores: list[Noted]) -> None:
    names = [f"model.layers.{i}.mlp.{part}_proj.weight" for i in (1, 0) for part in ("up", "down")]
    for name, weight in each_weight(model, names, edited=True):
        assert weight is model.get_parameter(name)
    assert [store.moves for store in stores] == [["fetch", True], ["fetch", True], []]
    with pytest.raises(AttributeError, match="none"):
        list(each_weight(model, ["model.none"]))


def test_a_forward_pass_brings_its_block(
    model: PreTrainedModel, stores: list[Noted], input_ids: torch.Tensor
) -> None:
    model(input_ids=input_ids)
    assert [store.moves for store in stores] == [["fetch", False]] * 3


def test_one_after_the_other_is_forgotten(model: PreTrainedModel, stores: list[Noted]) -> None:
    for block in model.model.layers:
        keep_in(block, None)
    assert not any(store_of(module) for module in model.modules())
    check_here(model, "A copy")
    copy.deepcopy(model)


def test_parts_are_here_together(model: PreTrainedModel, stores: list[Noted]) -> None:
    found = []
    for part, names in enumerate(each_part(model)):
        found += names
        assert len(dict(each_weight(model, names))) == len(names)
        assert [store.moves for store in stores] == [
            ["fetch", False][: max(0, min(2, 2 * part - 2 * index - (part == index + 1)))]
            for index in range(3)
        ]
    assert found == [name for name, _ in model.named_parameters()]
    assert [store.moves for store in stores] == [["fetch", False]] * 3


def test_what_needs_all_weights_is_refused(model: PreTrainedModel, stores: list[Noted]) -> None:
    with pytest.raises(InputError, match=r"^A copy needs all weights .* wait in Noted: load the"):
        check_here(model, "A copy")
    with pytest.raises(RuntimeError, match="cannot be copied"):
        copy.deepcopy(model)


def test_a_change_in_a_store_shows(model: PreTrainedModel, stores: list[Noted]) -> None:
    quick, full = quick_state(model), fingerprint(model)
    assert quick == quick_state(model)
    weight = model.model.layers[1].mlp.up_proj.weight
    with torch.no_grad(), whole(model.model.layers[1], edited=True):
        weight[0, 1] += 1
    assert quick != quick_state(model)
    assert full != fingerprint(model)
