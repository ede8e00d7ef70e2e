"""Dropped sublayers compared with a slow run of the stock model without the sublayer."""

from collections.abc import Callable

import numpy as np
import pytest
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.parts import drop_
from prunelit.pruners import SublayerDrop

MakeModel = Callable[..., PreTrainedModel]
Place = tuple[int, str]
Dropped = Callable[[PreTrainedModel], set[Place]]
PARALLEL = ("phi", "gpt_neox")


@pytest.fixture
def by_hand(
    read_stream: Callable[..., list[dict[str, np.ndarray]]], distance: Callable[..., float]
) -> Callable[..., dict[Place, float]]:
    """`by_hand(model, family, batch)`: how much each sublayer changes its input."""

    def score(model: PreTrainedModel, family: str, batch: dict[str, Tensor]) -> dict[Place, float]:
        found = {}
        for index, block in enumerate(read_stream(model, batch)):
            middle = block["input"] + block["attention"]
            found[index, "attention"] = distance(block["input"], middle)
            start = block["input"] if family in PARALLEL else middle
            found[index, "mlp"] = distance(start, start + block["mlp"])
        return found

    return score


@pytest.mark.parametrize("target", ["attention", "mlp", "both"])
@pytest.mark.parametrize("count", [1, 2])
def test_sublayers_that_change_least_go(
    family: str,
    make_model: MakeModel,
    padded: dict[str, Tensor],
    by_hand: Callable[..., dict[Place, float]],
    dropped: Dropped,
    target: str,
    count: int,
) -> None:
    model = make_model(family)
    scores = by_hand(model, family, padded)
    competing = [place for place in scores if target in ("both", place[1])]
    expected = set(sorted(competing, key=lambda place: scores[place])[:count])
    prune(model, SublayerDrop(count, target), [padded], shrink=False)  # type: ignore[arg-type]
    assert dropped(model) == expected


@pytest.mark.parametrize("target", ["attention", "both"])
def test_scored_again_after_each_drop(
    make_model: MakeModel,
    padded: dict[str, Tensor],
    by_hand: Callable[..., dict[Place, float]],
    dropped: Dropped,
    target: str,
) -> None:
    model, slow = make_model("llama", seed=3), make_model("llama", seed=3)
    expected: set[Place] = set()
    for _ in range(2):
        scores = by_hand(slow, "llama", padded)
        left = [p for p in scores if target in ("both", p[1]) and p not in expected]
        index, kind = min(left, key=lambda place: scores[place])
        expected.add((index, kind))
        drop_(decoder_blocks(slow)[1][index], {"attention": "mixer"}.get(kind, kind))
    prune(model, SublayerDrop(2, target, rescore=True), [padded], shrink=False)  # type: ignore[arg-type]
    assert dropped(model) == expected


def test_later_rounds_only_add(
    model: PreTrainedModel, padded: dict[str, Tensor], dropped: Dropped
) -> None:
    pruner = SublayerDrop(2, "both")
    prune(model, pruner.scale(0.5), [padded], shrink=False)
    first = dropped(model)
    assert len(first) == 1
    prune(model, pruner, [padded], shrink=False)
    assert first < dropped(model)
    assert len(dropped(model)) == 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SublayerDrop(3), r"below the 3 sublayers of the model \(attention\)"),
        (lambda: SublayerDrop(6, "both"), r"below the 6 sublayers of the model \(both\)"),
        (lambda: SublayerDrop(0), "`count` of at least 1"),
        (lambda: SublayerDrop(1, "heads"), "attention, mixer, mlp or both but got 1 and 'heads'"),
    ],
)
def test_bad_settings(
    build: Callable[[], SublayerDrop], message: str, model: PreTrainedModel, input_ids: Tensor
) -> None:
    with pytest.raises(InputError, match=message):
        prune(model, build(), input_ids)
