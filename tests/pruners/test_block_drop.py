"""Dropped blocks compared with brute force over the hidden states of the stock model."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prunelit import prune
from prunelit.errors import InputError
from prunelit.models.parts import drop_
from prunelit.pruners import BlockDrop

Dropped = Callable[[PreTrainedModel], set[tuple[int, str]]]


@pytest.fixture
def states(
    read_stream: Callable[..., list[dict[str, np.ndarray]]],
) -> Callable[..., list[np.ndarray]]:
    """`states(model, batch)`: before every block and after the last, real tokens only, (N, D)."""

    def read(model: PreTrainedModel, batch: dict[str, Tensor]) -> list[np.ndarray]:
        blocks = read_stream(model, batch)
        return [*(block["input"] for block in blocks), blocks[-1]["output"]]

    return read


def six_blocks(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=6,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for block in model.model.layers:  # blocks of very different influence
            scale = float(torch.rand(()) * 3 + 0.05)
            for parameter in block.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.2 * scale)
    return model


@pytest.mark.parametrize("kind", ["cosine", "angular"])
@pytest.mark.parametrize(("count", "seed"), list(itertools.product([1, 2, 3, 5], range(3))))
def test_best_run_of_blocks_by_brute_force(
    count: int,
    seed: int,
    kind: str,
    padded: dict[str, Tensor],
    states: Callable[..., list[np.ndarray]],
    distance: Callable[..., float],
    dropped: Dropped,
) -> None:
    model = six_blocks(seed)
    h = states(model, padded)
    runs = range(6 - count + 1)
    scores = [distance(h[i], h[i + count], kind == "angular") for i in runs]
    best = int(np.argmin(scores))
    pruner = BlockDrop(count, consecutive=True, distance=kind)  # type: ignore[arg-type]
    prune(
        model,
        pruner,
        [{k: v[:4] for k, v in padded.items()}, {k: v[4:] for k, v in padded.items()}],
        shrink=False,
    )
    assert {index for index, _ in dropped(model)} == set(range(best, best + count))


@pytest.mark.parametrize(("count", "seed"), list(itertools.product([1, 2, 4], range(3))))
def test_discrete_blocks_by_brute_force(
    count: int,
    seed: int,
    padded: dict[str, Tensor],
    states: Callable[..., list[np.ndarray]],
    distance: Callable[..., float],
    dropped: Dropped,
) -> None:
    model = six_blocks(seed)
    h = states(model, padded)
    scores = [distance(h[i], h[i + 1]) for i in range(6)]
    prune(model, BlockDrop(count), [padded], shrink=False)
    assert {index for index, _ in dropped(model)} == set(np.argsort(scores)[:count].tolist())


@pytest.mark.parametrize("consecutive", [False, True])
def test_later_rounds_only_add(
    consecutive: bool, model: PreTrainedModel, padded: dict[str, Tensor], dropped: Dropped
) -> None:
    pruner = BlockDrop(2, consecutive=consecutive)
    prune(model, pruner.scale(0.5), [padded], shrink=False)
    first = dropped(model)
    assert len(first) == 2  # both sublayers of one block
    prune(model, pruner, [padded], shrink=False)
    assert first < dropped(model)
    assert len(dropped(model)) == 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BlockDrop(3), "below the 3 blocks of the model"),
        (lambda: BlockDrop(1, distance="l2"), "cosine or angular but got 1 and 'l2'"),
    ],
)
def test_bad_settings(
    build: Callable[[], BlockDrop], message: str, model: PreTrainedModel, input_ids: Tensor
) -> None:
    with pytest.raises(InputError, match=message):
        prune(model, build(), input_ids)


def test_blocks_dropped_before_that_fit_in_no_run(padded: dict[str, Tensor]) -> None:
    model = six_blocks(0)
    for index in (0, 5):
        drop_(model.model.layers[index], "mixer", "mlp")
    with pytest.raises(InputError, match=r"\[0, 5\] of an earlier round to lie within 3"):
        prune(model, BlockDrop(3, consecutive=True), [padded])
