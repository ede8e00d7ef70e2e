import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.errors import InputError
from prunelit.pruners import Quantize


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("group", [4, 5, 64])
def test_nearest_of_evenly_spaced_levels(bits: int, group: int) -> None:
    weight = np.random.default_rng(bits).normal(size=(6, 18)).astype(np.float32)
    found = Quantize(bits, group).prune_weight(torch.from_numpy(weight), None).numpy()  # type: ignore[arg-type]
    for row in range(6):
        for start in range(0, 18, group):
            piece = weight[row, start : start + group]
            levels = np.linspace(piece.min(), piece.max(), 2**bits)
            nearest = levels[np.abs(piece[:, None] - levels).argmin(1)]
            np.testing.assert_allclose(found[row, start : start + group], nearest, atol=1e-5)


def test_equal_weights_stay() -> None:
    weight = torch.full((2, 8), 0.3)
    assert torch.equal(Quantize(2, 4).prune_weight(weight, None), weight)  # type: ignore[arg-type]


def test_fewer_bits_hurt_more(make_model, input_ids: Tensor) -> None:
    dense = make_model()
    with torch.no_grad():
        expected = dense(input_ids=input_ids).logits
        errors = []
        for bits in (8, 4, 3, 2):
            model = make_model()
            prune(model, Quantize(bits))
            errors.append(float((model(input_ids=input_ids).logits - expected).square().mean()))
    assert errors == sorted(errors)
    assert errors[0] > 0


def test_it_has_no_rounds_and_no_other_widths(model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="cannot work in rounds"):
        Quantize().scale(0.5)
    with pytest.raises(InputError, match="`bits` 8, 4, 3 or 2 but got 5"):
        Quantize(5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`group` of at least 1 but got 0"):
        Quantize(4, 0)
