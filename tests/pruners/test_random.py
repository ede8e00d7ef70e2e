import torch
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.models.architecture import block_weights, decoder_blocks
from prunelit.pruners import Random
from prunelit.sparsity import SemiStructured, Unstructured


def zeros(model: PreTrainedModel) -> list[torch.Tensor]:
    return [
        weight.value == 0
        for block in decoder_blocks(model)[1]
        for weight in block_weights(block).values()
    ]


def test_the_asked_number_at_places_that_the_seed_draws(make_model) -> None:
    masks = []
    for seed in (0, 0, 1):
        model = make_model()
        prune(model, Random(Unstructured(0.3), seed=seed))
        masks.append(zeros(model))
        for mask in masks[-1]:
            assert int(mask.sum()) == round(0.3 * mask.numel())
    assert all(torch.equal(a, b) for a, b in zip(masks[0], masks[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(masks[0], masks[2], strict=True))
    # Blocks are drawn apart, and small weights are no likelier than others.
    assert not torch.equal(masks[0][0], masks[0][7])


def test_rounds_only_add(model: PreTrainedModel) -> None:
    pruner = Random(Unstructured(0.6))
    prune(model, pruner.scale(0.5))
    first = zeros(model)
    prune(model, pruner)
    for before, after in zip(first, zeros(model), strict=True):
        assert not (before & ~after).any()
        assert int(after.sum()) == round(0.6 * after.numel())


def test_groups(model: PreTrainedModel) -> None:
    prune(model, Random(SemiStructured(2, 4)))
    for mask in zeros(model):
        assert (mask.reshape(-1, 4).sum(1) == 2).all()
