import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunelit import prune
from prunelit.activations import Probe, SquaredNorm
from prunelit.errors import InputError
from prunelit.pruners import Wanda
from prunelit.sparsity import SemiStructured, Sparsity, Unstructured

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {
    "wanda_0.5": Unstructured(0.5),
    "wanda_2-4": SemiStructured(2, 4),
    "wanda_4-8": SemiStructured(4, 8),
}


@pytest.fixture
def golden_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "dense", dtype=torch.float32).eval()


def test_known_scores() -> None:
    statistic = SquaredNorm(4)
    statistic.update(torch.tensor([[1.0, 2.0, 0.0, 4.0], [1.0, 2.0, 0.0, 0.0]]))
    # Mean squares 1, 4, 0, 8, so norms 1, 2, 0 and 2.83.
    weight = torch.tensor([[3.0, -1.0, 9.0, 1.0], [0.1, 0.2, 9.0, -0.3]])
    by_row = Wanda(Unstructured(0.75)).prune_weight(weight, statistic)
    assert torch.equal(by_row, torch.tensor([[3.0, 0, 0, 0], [0, 0, 0, -0.3]]))
    by_group = Wanda(SemiStructured(1, 2)).prune_weight(weight, statistic)
    assert torch.equal(by_group, torch.tensor([[3.0, 0, 0, 1], [0, 0.2, 0, -0.3]]))


def test_weight_is_not_edited_and_kept_entries_are_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 8, generator=generator)
    before = weight.clone()
    statistic = SquaredNorm(8)
    statistic.update(torch.rand(3, 8, generator=generator))
    pruned = Wanda(Unstructured(0.5)).prune_weight(weight, statistic)
    assert torch.equal(weight, before)
    assert torch.equal(pruned[pruned != 0], weight[pruned != 0])
    assert ((pruned == 0).sum(1) == 4).all()


def test_statistic_is_of_the_inputs(model: PreTrainedModel) -> None:
    pruner = Wanda(Unstructured(0.5))
    up, down = model.model.layers[0].mlp.up_proj, model.model.layers[0].mlp.down_proj
    for linear, channels in ((up, 32), (down, 48)):
        statistic = pruner.statistic(linear)
        statistic.update(torch.ones(1, channels))
        assert statistic.value.shape == (channels,)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch_size", [1, 16])
def test_masks_equal_the_public_reference(
    golden_model: PreTrainedModel, name: str, batch_size: int
) -> None:
    ids = load_file(GOLDEN / "calibration.safetensors")["input_ids"]
    sparsity: Sparsity = CASES[name]
    prune(golden_model, Wanda(sparsity), ids, batch_size=batch_size)
    packed = load_file(GOLDEN / f"{name}.safetensors")
    parameters = dict(golden_model.named_parameters())
    assert len(packed) == 14
    for weight, bits in packed.items():
        parameter = parameters[weight]
        keep = np.unpackbits(bits.numpy(), bitorder="little", count=parameter.numel())
        found = (parameter != 0).flatten().numpy()
        np.testing.assert_array_equal(found, keep.astype(bool), err_msg=weight)
    zeros = sum(int((parameters[weight] == 0).sum()) for weight in packed)
    size = sum(parameters[weight].numel() for weight in packed)
    recorded = json.loads((GOLDEN / "summary.json").read_text())[name]
    assert zeros / size == pytest.approx(recorded["zeros"], abs=1e-6)
    with torch.no_grad():
        logits = golden_model(ids[:4]).logits
    assert logits.abs().mean().item() == pytest.approx(recorded["mean_abs_logit"], abs=1e-5)


class ExactlyAsMany(Wanda):
    """Removes from each weight as many as the golden mask does."""

    counts: dict[str, int]

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        for name, module in model.named_modules():
            if f"{name}.weight" in self.counts:
                ratio = self.counts[f"{name}.weight"] / module.get_parameter("weight").numel()
                self._plan[module] = Unstructured(ratio)
        return False


@pytest.mark.parametrize("exactly", [True, False])
def test_variant_equals_the_public_one(golden_model: PreTrainedModel, exactly: bool) -> None:
    ids = load_file(GOLDEN / "calibration.safetensors")["input_ids"]
    packed = load_file(GOLDEN / "wanda_variant_0.5.safetensors")
    weights = dict(golden_model.named_parameters())
    golden = {
        name: np.unpackbits(bits.numpy(), bitorder="little", count=weights[name].numel()) == 1
        for name, bits in packed.items()
    }
    pruner = (ExactlyAsMany if exactly else Wanda)(Unstructured(0.5), variant=True)
    if exactly:
        pruner.counts = {name: int((~keep).sum()) for name, keep in golden.items()}
    prune(golden_model, pruner, ids)
    assert len(golden) == 14
    for name, keep in golden.items():
        found = (weights[name] != 0).flatten().numpy()
        if exactly:
            np.testing.assert_array_equal(found, keep, err_msg=name)
        else:
            # The public bisection stops within 0.1% of the ratio. Later blocks get other inputs.
            assert (~found).sum() == found.size // 2
            assert (found != keep).mean() < 0.01


def test_variant_by_hand() -> None:
    statistic = SquaredNorm(4)
    statistic.update(torch.ones(1, 4))
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 10.0], [0.0, 0.0, 0.0, 0.0]])
    # Shares of a row up to each weight: .1 .3 .6 1 | 0 0 0 1 | 0 0 0 0: nine are up to .3.
    pruner = Wanda(Unstructured(9 / 12, within=None), variant=True)
    pruner.sparsity = pruner.sparsity.with_default(pruner.within)
    expected = torch.tensor([[0.0, 0, 3, 4], [0, 0, 0, 10], [0, 0, 0, 0]])
    assert torch.equal(pruner.prune_weight(weight, statistic), expected)


@pytest.mark.parametrize("sparsity", [SemiStructured(2, 4), Unstructured(0.5, within="row")])
def test_variant_needs_a_free_choice(sparsity: Sparsity) -> None:
    with pytest.raises(InputError, match="without `within` for the variant"):
        Wanda(sparsity, variant=True)
