"""Experts that few calibration tokens reach share statistics."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.activations import SquaredNorm, Statistic
from prunelit.errors import InputError
from prunelit.models.architecture import block_weights, decoder_blocks
from prunelit.pruners import Wanda, oriented_weight
from prunelit.sparsity import Unstructured

MakeModel = Callable[..., PreTrainedModel]
Batch = dict[str, Tensor]


class Unsummed(SquaredNorm):
    add_ = Statistic.add_  # type: ignore[assignment]


class Plain(Wanda):
    def statistic(self, linear: nn.Module) -> Statistic:
        return Unsummed(oriented_weight(linear).shape[1])


def unreachable(model: PreTrainedModel) -> PreTrainedModel:
    """Expert 3 of block 1 is never chosen."""
    router = decoder_blocks(model)[1][1].mlp.router
    with torch.no_grad():
        router.bias[3] = -1e4
    return model


def test_experts_without_a_token_are_told_with_the_text_that_they_need(
    make_model: MakeModel, padded: Batch
) -> None:
    model = unreachable(make_model("gpt_oss"))
    with pytest.warns(UserWarning, match=(
        r"1 of 12 experts read none of the 111 calibration tokens\..* needs 8 times as much text, "
        r"888 tokens"
    )):  # fmt: skip
        report = prune(model, Wanda(Unstructured(0.5), expert_tokens=8), [padded])
    assert report.experts == {"least": 8, "experts": 12, "pooled": 1, "unreached": 1}
    assert "1 of 12 experts read fewer than 8 calibration tokens and share" in " ".join(
        str(report).split()
    )
    for block in decoder_blocks(model)[1]:
        for weight in block_weights(block).values():
            zeros = (weight.value == 0).double().mean()
            assert zeros == (0.5 if weight.kind == "linear" else 0)


def test_a_statistic_that_cannot_be_added_up_is_named(make_model: MakeModel, padded: Batch) -> None:
    with pytest.raises(InputError, match=r"Few .* an expert, and Unsummed cannot .* `add_`"):
        prune(unreachable(make_model("gpt_oss")), Plain(Unstructured(0.5)), [padded])
    prune(make_model("gpt_oss"), Plain(Unstructured(0.5), expert_tokens=1), [padded])


def test_fewer_than_one_token_is_refused() -> None:
    with pytest.raises(InputError, match=r"`expert_tokens` of at least 1 but got 0"):
        Wanda(Unstructured(0.5), expert_tokens=0)
