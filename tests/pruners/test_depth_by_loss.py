"""Blocks and sublayers by the output without them, against the model with zeros in their place."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import InputError, prune
from prunelit.models.architecture import decoder_blocks
from prunelit.models.parts import drop_, find_zeros, sublayers
from prunelit.pruners import DepthByLoss

MakeModel = Callable[..., PreTrainedModel]
Place = tuple[int, str]


class Noting(DepthByLoss):
    """Note what was measured."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.found: list[list[float]] = []

    def settle(self, model: PreTrainedModel, changes: Sequence[float]) -> bool:
        self.found.append([*changes])
        return super().settle(model, changes)


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, padded: dict[str, Tensor]) -> Tensor:
    positions = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return model(**padded, position_ids=positions).logits.double().log_softmax(-1)


def measure(
    dense: PreTrainedModel, model: PreTrainedModel, padded: dict[str, Tensor], kind: str
) -> float:
    real = padded["attention_mask"].bool()
    p, q = log_probabilities(dense, padded), log_probabilities(model, padded)
    if kind == "kl":
        return float((p.exp() * (p - q)).sum(-1)[real].mean())
    following = padded["input_ids"][:, 1:, None]
    return float(-q[:, :-1].gather(-1, following)[..., 0][real[:, :-1] & real[:, 1:]].mean())


def places(model: PreTrainedModel, target: str) -> list[Place]:
    count = len(decoder_blocks(model)[1])
    kinds = {"attention": ["mixer"], "mlp": ["mlp"], "both": ["mixer", "mlp"]}.get(
        target, ["block"]
    )
    return [(index, kind) for index in range(count) for kind in kinds]


def without(model: PreTrainedModel, place: Place) -> PreTrainedModel:
    other = copy.deepcopy(model)
    block = decoder_blocks(other)[1][place[0]]
    drop_(block, *(sublayers(block) if place[1] == "block" else [place[1]]))
    return other


@pytest.mark.parametrize(
    ("target", "kind", "rescore"),
    [
        ("block", "kl", False),
        ("both", "kl", True),
        ("attention", "loss", False),
        ("mlp", "loss", True),
    ],
)
def test_parts_go_whose_absence_changes_the_output_least(
    target: Any,
    kind: Any,
    rescore: bool,
    family: str,
    make_model: MakeModel,
    padded: dict[str, Tensor],
) -> None:
    dense, model = make_model(family), make_model(family)
    pruner = Noting(2, target, kind, rescore)
    prune(model, pruner, [padded], shrink=False)
    expected, left = dense, places(dense, target)
    for found in pruner.found:
        scores = [measure(dense, without(expected, place), padded, kind) for place in left]
        assert found == pytest.approx(scores, rel=1e-3, abs=1e-6)
        ranked = sorted(range(len(left)), key=lambda number: found[number])
        chosen = [left[number] for number in ranked[: 1 if rescore else 2]]
        for place in chosen:
            expected = without(expected, place)
            left.remove(place)
    assert len(pruner.found) == (2 if rescore else 1)
    blocks = zip(decoder_blocks(model)[1], decoder_blocks(expected)[1], strict=True)
    assert all(find_zeros(mine) == find_zeros(theirs) for mine, theirs in blocks)


def test_batches_count_by_their_tokens(make_model: MakeModel, padded: dict[str, Tensor]) -> None:
    together, apart = Noting(1), Noting(1)
    prune(make_model("llama"), together, [padded])
    rows = [{name: value[place] for name, value in padded.items()} for place in ([0, 1], [2])]
    rest = {name: value[3:] for name, value in padded.items()}
    prune(make_model("llama"), apart, [*rows, rest] if len(rest["input_ids"]) else rows)
    assert apart.found[0] == pytest.approx(together.found[0], rel=1e-4)


def test_rounds_drop_more_of_the_same(make_model: MakeModel, padded: dict[str, Tensor]) -> None:
    whole, model = make_model("llama"), make_model("llama")
    prune(whole, DepthByLoss(2, "both", rescore=True), [padded], shrink=False)
    for fraction in (0.5, 1):
        prune(model, DepthByLoss(2, "both", rescore=True).scale(fraction), [padded], shrink=False)
    for mine, theirs in zip(decoder_blocks(model)[1], decoder_blocks(whole)[1], strict=True):
        assert find_zeros(mine) == find_zeros(theirs)


def test_a_text_without_a_next_token_is_refused(make_model: MakeModel) -> None:
    with pytest.raises(InputError, match="each sequence has one token"):
        prune(make_model("llama"), DepthByLoss(measure="loss"), torch.ones(6, 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "`count` of at least 1"),
        ((3,), "`count` below the 3 blocks"),
        ((6, "both"), "`count` below the 6 sublayers"),
    ],
)
def test_too_many_are_refused(
    arguments: tuple[Any, ...], message: str, make_model: MakeModel, padded: dict[str, Tensor]
) -> None:
    with pytest.raises(InputError, match=message):
        prune(make_model("llama"), DepthByLoss(*arguments), [padded])
