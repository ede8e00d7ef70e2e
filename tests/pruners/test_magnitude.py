from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunelit import prune
from prunelit.allocation import LinearDepth
from prunelit.errors import InputError
from prunelit.models.architecture import block_weights, decoder_blocks
from prunelit.pruners import Magnitude, Wanda
from prunelit.sparsity import SemiStructured, Unstructured

MakeModel = Callable[..., PreTrainedModel]
GOLDEN = Path(__file__).parents[1] / "golden"


def matrices(model: PreTrainedModel) -> dict[str, Tensor]:
    prefix, blocks = decoder_blocks(model)
    return {
        f"{prefix}.{index}.{name}": weight.value.detach().clone()
        for index, block in enumerate(blocks)
        for name, weight in block_weights(block).items()
    }


def lowest(values: np.ndarray, count: int) -> np.ndarray:
    """Mark the `count` smallest magnitudes; of equal ones, the first."""
    gone = np.zeros(values.size, dtype=bool)
    gone[np.argsort(np.abs(values).ravel(), kind="stable")[:count]] = True
    return gone


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.77])
def test_within_a_matrix(family: str, make_model: MakeModel, ratio: float) -> None:
    model = make_model(family)
    before = matrices(model)
    prune(model, Magnitude(Unstructured(ratio)))
    for name, weight in matrices(model).items():
        dense = before[name].numpy()
        expected = lowest(dense, round(ratio * dense.size)).reshape(dense.shape)
        np.testing.assert_array_equal(weight.numpy() == 0, expected, name)
        np.testing.assert_array_equal(weight.numpy()[~expected], dense[~expected])


def test_over_the_model(family: str, make_model: MakeModel) -> None:
    model = make_model(family)
    before = matrices(model)
    prune(model, Magnitude(Unstructured(0.4, within="model")))
    everything = np.concatenate([value.numpy().ravel() for value in before.values()])
    expected = lowest(everything, round(0.4 * everything.size))
    found = np.concatenate([value.numpy().ravel() == 0 for value in matrices(model).values()])
    np.testing.assert_array_equal(found, expected)


def test_over_the_model_with_ties(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for block in decoder_blocks(model)[1]:
            for weight in block_weights(block).values():
                weight.value.copy_((weight.value * 4).round() / 4)
    before = np.concatenate([value.numpy().ravel() for value in matrices(model).values()])
    # The premise: far more ties at the threshold than weights to remove there.
    assert (before == 0).mean() < 0.7 < (np.abs(before) <= 0.25).mean()
    prune(model, Magnitude(Unstructured(0.7, within="model")))
    found = np.concatenate([value.numpy().ravel() == 0 for value in matrices(model).values()])
    assert found.sum() == round(0.7 * found.size)
    assert (np.abs(before[found]) <= 0.25).all()


def test_within_a_row_and_within_groups(model: PreTrainedModel) -> None:
    prune(model, Magnitude(Unstructured(0.5, within="row"), exclude=["mlp.*"]))
    prune(model, Magnitude(SemiStructured(2, 4), include=["mlp.*"]))
    for name, weight in matrices(model).items():
        if "mlp" in name:
            assert ((weight.reshape(-1, 4) == 0).sum(1) == 2).all()
        else:
            assert ((weight == 0).sum(1) == weight.shape[1] // 2).all()


def test_rounds_only_add(model: PreTrainedModel) -> None:
    for within in ("matrix", "model"):
        pruner = Magnitude(Unstructured(0.6, within=within))
        prune(model, pruner.scale(0.5))
        first = matrices(model)
        prune(model, pruner)
        second = matrices(model)
        for name, weight in first.items():
            assert not ((weight == 0) & (second[name] != 0)).any(), name
        zeros = sum(int((weight == 0).sum()) for weight in second.values())
        assert zeros == round(0.6 * sum(weight.numel() for weight in second.values()))


def test_what_does_not_go_with_the_whole_model(model: PreTrainedModel, input_ids: Tensor) -> None:
    wide = Unstructured(0.5, within="model")
    with pytest.raises(InputError, match="row or matrix but got model: Wanda"):
        prune(model, Wanda(wide), input_ids)
    with pytest.raises(InputError, match="`within: model` or `allocation` and `ratios`"):
        prune(model, Magnitude(wide, allocation=LinearDepth()))


def test_the_public_implementation_agrees() -> None:
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "dense")
    prune(model, Magnitude(Unstructured(0.5)))
    golden = load_file(GOLDEN / "magnitude_0.5.safetensors")
    same = total = 0
    weights = model.state_dict()
    assert golden
    for name, packed in golden.items():
        weight = weights[name if name in weights else f"{name}.weight"]
        keep = np.unpackbits(packed.numpy(), count=weight.numel(), bitorder="little").astype(bool)
        same += int((keep == (weight.numpy().ravel() != 0)).sum())
        total += keep.size
    # The public code removes one weight of a matrix more.
    assert same / total >= 0.999
    assert total - same <= len(golden)
