"""Pooling compared with sums by hand, layers with the hidden states of transformers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from prunelit import InputError
from prunelit.data.tokens import pad
from prunelit.models.architecture import final_hidden
from prunelit.models.inference.embedding import (
    blocks_before,
    check_layer,
    check_pooling,
    embed,
    pool,
    residual_after,
)
from prunelit.models.replay import End, apply_final_norm, check_replay

Make = Callable[..., PreTrainedModel]
TEXTS = [[5, 9, 200, 31, 7, 8], [11, 12], [44]]


def by_hand(states: np.ndarray, pooling: str, skip: int) -> np.ndarray:
    """Pool the (T, D) states of one text without padding to (D,)."""
    if pooling == "last":
        return states[-1]
    skip = min(skip, len(states) - 1)
    total, weights = np.zeros(states.shape[1]), 0
    for place, state in list(enumerate(states, start=1))[skip:]:
        weight = place if pooling == "weighted_mean" else 1
        total, weights = total + weight * state, weights + weight
    return total / weights


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize(
    ("pooling", "skip"),
    [("last", 0), ("mean", 0), ("mean", 1), ("weighted_mean", 0), ("weighted_mean", 2)],
)
@torch.no_grad()
def test_pooling_in_every_family(
    family: str, make_model: Make, pooling: str, skip: int, left: bool
) -> None:
    model = make_model(family)
    batch = pad(TEXTS, 0, left=left)
    found = embed(model, *batch.values(), pooling=pooling, skip=skip)  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    for row, text in zip(found, TEXTS, strict=True):
        ids = torch.tensor([text])
        states = final_hidden(model, ids, torch.ones_like(ids))[0].numpy().astype(np.float64)
        np.testing.assert_allclose(row.numpy(), by_hand(states, pooling, skip), atol=2e-5)


@torch.no_grad()
def test_the_stream_after_every_block_in_every_family(family: str, make_model: Make) -> None:
    model = make_model(family)
    batch = pad(TEXTS, 0)
    states = model.base_model(**batch, use_cache=False, output_hidden_states=True).hidden_states
    there = batch["attention_mask"].bool()
    for blocks in range(3):
        found = residual_after(model, *batch.values(), blocks)
        assert torch.equal(found[there], states[blocks][there]), blocks
    # The last hidden state of transformers has the final norm; the residual stream has not.
    last = residual_after(model, *batch.values(), 3)
    assert not torch.allclose(last[there], states[2][there])
    form = check_replay(model, batch)
    own = apply_final_norm(End.of(model, form), last[there])
    assert torch.allclose(own, final_hidden(model, *batch.values())[there], atol=1e-5)


@torch.no_grad()
def test_later_blocks_are_not_run(make_model: Make) -> None:
    model = make_model("llama")
    batch = pad(TEXTS, 0)
    ran: list[int] = []
    for number, block in enumerate(model.model.layers):
        block.register_forward_hook(lambda *_, n=number: ran.append(n))
    residual_after(model, *batch.values(), 1)
    assert ran == [0]
    # The model is unchanged.
    final_hidden(model, *batch.values())
    assert ran == [0, 0, 1, 2]


def test_padding_that_is_not_finite_enters_nothing() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [torch.nan], [torch.inf]]])
    mask = torch.tensor([[1, 1, 0, 0]])
    assert pool(hidden, mask, "mean").item() == 2
    assert pool(hidden, mask, "weighted_mean").item() == pytest.approx((1 + 2 * 3) / 3)
    assert pool(hidden, mask, "last").item() == 3


def test_an_embedding_that_is_not_finite_is_refused(make_model: Make) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = torch.inf
        with pytest.raises(InputError, match="not finite"):
            embed(model, *pad(TEXTS, 0).values(), pooling="mean")


@pytest.mark.parametrize(
    ("layer", "removed", "expected"),
    [
        (None, [1], None),
        (0, [0, 1], 0),
        (2, [], 2),
        (2, [0], 1),
        (2, [2], 2),
        (3, [0, 2], 1),
        (1, [0], 0),
    ],
)
def test_a_layer_of_the_dense_model_in_the_pruned_one(
    layer: int | None, removed: list[int], expected: int | None
) -> None:
    assert blocks_before(layer, removed) == expected


@torch.no_grad()
def test_a_removed_block_leaves_the_stream_of_those_before_it(make_model: Make) -> None:
    dense, pruned = make_model("llama"), make_model("llama")
    del pruned.model.layers[1]
    pruned.config.num_hidden_layers = 2
    batch = pad(TEXTS, 0)
    for layer, equal in ((0, True), (1, True), (3, False)):
        streams = [
            residual_after(model, *batch.values(), blocks_before(layer, removed))
            for model, removed in ((dense, []), (pruned, [1]))
        ]
        assert torch.equal(*streams) == equal, layer


@pytest.mark.parametrize("layer", [-1, 4])
def test_a_layer_that_is_not_there_is_refused(make_model: Make, layer: int) -> None:
    with pytest.raises(InputError, match=rf"in \[0, 3\].*but got {layer}"):
        check_layer(make_model("llama"), layer)


@pytest.mark.parametrize(
    ("pooling", "skip", "message"),
    [("max", 0, "'weighted_mean'.*but got 'max'"), ("last", 1, "`skip` 0"), ("mean", -1, "`skip`")],
)
def test_an_unknown_pooling_is_refused(pooling: str, skip: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_pooling(pooling, skip)
