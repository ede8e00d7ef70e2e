import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunelit import prune
from prunelit.activations import Gram, Statistic
from prunelit.errors import InputError
from prunelit.pruners import SparseGPT
from prunelit.pruners.compensation import inverse_factor
from prunelit.sparsity import SemiStructured, Unstructured

MakeModel = Callable[..., PreTrainedModel]
GramOf = Callable[[np.ndarray], Gram]
GOLDEN = Path(__file__).parents[1] / "golden"


def test_choice_of_one_block_is_by_saliency(gram_of: GramOf) -> None:
    rng = np.random.default_rng(1)
    x, weight = rng.normal(size=(30, 6)), rng.normal(size=(4, 6))
    gram = gram_of(x @ rng.normal(size=(6, 6)))
    upper = inverse_factor(gram.value, 0.01).numpy()
    saliency = (weight / np.diag(upper)) ** 2
    pruner = SparseGPT(Unstructured(0.25, within="matrix"))
    found = pruner.prune_weight(torch.from_numpy(weight).float(), gram).numpy() == 0
    expected = np.zeros(24, dtype=bool)
    expected[np.argsort(saliency.ravel())[:6]] = True
    np.testing.assert_array_equal(found.ravel(), expected)


@pytest.mark.parametrize("within", ["row", "matrix"])
@pytest.mark.parametrize("block_size", [5, 16])
def test_column_blocks_add_up_to_the_asked_number(
    within: str, block_size: int, gram_of: GramOf
) -> None:
    rng = np.random.default_rng(2)
    gram = gram_of(rng.normal(size=(90, 33)))
    weight = torch.from_numpy(rng.normal(size=(7, 33))).float()
    for ratio in (0.1, 0.5, 0.77):
        pruner = SparseGPT(Unstructured(ratio, within=within), block_size=block_size)  # type: ignore[arg-type]
        zeros = int((pruner.prune_weight(weight, gram) == 0).sum())
        assert zeros == math.ceil(ratio * weight.numel() - 0.5)


class OneMore(SparseGPT):
    """Removes one weight more in every block of 128 columns, as the public code does."""

    rows = 0

    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        OneMore.rows = weight.shape[0]
        return super().prune_weight(weight, statistic)

    @classmethod
    def count_removed(cls, ratio: float, size: int) -> int:
        full, rest = divmod(size, cls.rows * 128)
        counts = [cls.rows * 128] * full + ([rest] if rest else [])
        return sum(int(ratio * count) + 1 for count in counts)


def against_golden(pruner: SparseGPT, name: str, batch_size: int = 16) -> tuple[float, float]:
    """Share of mask entries that agree, and the greatest relative error of a weight matrix."""
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "dense", dtype=torch.float32).eval()
    ids = load_file(GOLDEN / "calibration.safetensors")["input_ids"]
    prune(model, pruner, ids, batch_size=batch_size)
    golden = load_file(GOLDEN / f"{name}.safetensors")
    weights = dict(model.named_parameters())
    assert len(golden) == 14
    agree = [((weights[n] == 0) == (expected == 0)).flatten() for n, expected in golden.items()]
    errors = [float((weights[n].detach() - g).norm() / g.norm()) for n, g in golden.items()]
    return float(torch.cat(agree).float().mean()), max(errors)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_groups_equal_the_public_reference(batch_size: int) -> None:
    agree, error = against_golden(SparseGPT(SemiStructured(4, 8)), "sparsegpt_4-8", batch_size)
    assert agree == 1
    assert error < 1e-3


def test_weights_equal_the_public_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunelit.pruners.sparsegpt.count_removed", OneMore.count_removed)
    agree, error = against_golden(OneMore(Unstructured(0.5)), "sparsegpt_0.5")
    assert agree == 1
    assert error < 1e-3


def test_exactly_as_many_as_asked_differs_little_from_the_public_reference() -> None:
    agree, error = against_golden(SparseGPT(Unstructured(0.5)), "sparsegpt_0.5")
    assert agree >= 0.999
    assert (
        error < 0.1
    )  # one more removal changes the other weights, and later blocks get other inputs


def test_shared_inputs_share_one_factor(
    model: PreTrainedModel, input_ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counting(gram: Tensor, damping: float) -> Tensor:
        sizes.append(len(gram))
        return inverse_factor(gram, damping)

    monkeypatch.setattr("prunelit.pruners.compensation.inverse_factor", counting)
    prune(model, SparseGPT(Unstructured(0.5)), input_ids)
    # A block has four distinct inputs: q/k/v, o, gate/up, down.
    assert sorted(sizes) == [32] * 9 + [48] * 3


def test_later_rounds_only_add(
    family: str,
    make_model: MakeModel,
    input_ids: Tensor,
    rounds_only_add: Callable[..., None],
) -> None:
    rounds_only_add(make_model(family), SparseGPT(Unstructured(0.6)), input_ids)


def test_dead_inputs_lose_their_weights_and_nothing_breaks(gram_of: GramOf) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 8))
    x[:, 3] = 0
    weight = torch.from_numpy(rng.normal(size=(6, 8))).float()
    pruned = SparseGPT(Unstructured(0.5)).prune_weight(weight, gram_of(x))
    assert not pruned[:, 3].any()
    assert int((pruned == 0).sum()) == 24


def test_hopeless_hessian_names_the_module(
    model: PreTrainedModel, input_ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gram, "value", property(lambda gram: -torch.eye(len(gram._sum))))
    with pytest.raises(InputError, match=r"In 'self_attn\.q_proj': .* not positive definite, even"):
        prune(model, SparseGPT(Unstructured(0.5)), input_ids)


@pytest.mark.parametrize(
    "build",
    [
        lambda: SparseGPT(Unstructured(0.5), damping=0.0),
        lambda: SparseGPT(SemiStructured(2, 4), block_size=6),
    ],
)
def test_bad_settings(build: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="Expected `damping` > 0 and `block_size`"):
        build()
