"""Outputs of a model with variations of its blocks, against models that were changed."""

import copy
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from prunelit.data.batches import as_batches
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.replay import Form
from prunelit.models.variation import Variation
from prunelit.pruning.outputs import Outputs


def narrow(block: nn.Module) -> None:
    block.mlp.down_proj.weight[:, ::2] = 0  # type: ignore[union-attr, operator, index]


VARIATIONS = [Variation(0, narrow), Variation(1), Variation(2, narrow)]


def measure(
    model: PreTrainedModel,
    ids: Tensor,
    compared: Sequence[Tensor],
    kind: Literal["kl", "loss"] = "kl",
    ticks: list[tuple[int, int]] | None = None,
) -> list[float]:
    """Measure `VARIATIONS`, in batches of two sequences."""
    noted = [] if ticks is None else ticks
    batches = as_batches(ids, 2)
    outputs = Outputs(model, batches, compared, Form(None), kind, lambda *own: noted.append(own))
    for _ in outputs.measure(VARIATIONS):
        for index, block in enumerate(decoder_blocks(model)[1]):
            outputs.work(index, block)
    return outputs.values


def changed(model: PreTrainedModel, variation: Variation) -> PreTrainedModel:
    model = copy.deepcopy(model)
    blocks = decoder_blocks(model)[1]
    if variation.edit is None:
        for weight in blocks[variation.block].parameters():
            weight.data.mul_(weight.ndim == 1)
    else:
        variation.edit(blocks[variation.block])
    return model


@torch.no_grad()
@pytest.mark.parametrize("kind", ["kl", "loss"])
def test_means_are_those_of_changed_models(
    model: PreTrainedModel, input_ids: Tensor, kind: Literal["kl", "loss"]
) -> None:
    ids = input_ids[:4]
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    chosen[0, 2:5], chosen[1, 0] = True, True  # and none of the second batch
    ticks: list[tuple[int, int]] = []
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    found = measure(model, ids, chosen.split(2), kind, ticks)
    assert all(weight.equal(before[name]) for name, weight in model.named_parameters())
    p = model(ids, use_cache=False).logits.double().log_softmax(-1)[chosen]
    for value, variation in zip(found, VARIATIONS, strict=True):
        q = changed(model, variation)(ids, use_cache=False).logits.double().log_softmax(-1)[chosen]
        if kind == "loss":
            expected = F.nll_loss(q, ids.roll(-1, 1)[chosen])
        else:
            expected = (p.exp() * (p - q)).sum(-1).mean()
        assert value == pytest.approx(float(expected), rel=1e-3)
    assert [done for done, _ in ticks] == [*range(1, len(ticks) + 1)]
    assert {every for _, every in ticks} == {len(ticks)}  # the second batch runs for nothing


@torch.no_grad()
def test_logits_that_are_not_finite_are_refused(model: PreTrainedModel, input_ids: Tensor) -> None:
    model.model.norm.weight.fill_(torch.inf)
    compared = [torch.ones(2, input_ids.shape[1], dtype=torch.bool)]
    with pytest.raises(InputError, match="logits on the calibration text are not finite"):
        measure(model, input_ids[:2], compared)
