"""Print the memory that models of 8, 70 and 235 billion parameters take on a device, by arithmetic.

    python benchmarks/placements.py

It is what `model.placement: auto` and `--dry_run` compute: both models in bfloat16, calibration on
128 sequences of 2048 tokens in batches of 8, and a task with batches of 32 prompts of 512 tokens,
of which one is under way. No weight is read.
"""

import torch
from transformers import LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from prunelit.core.datamodule import CalibrationText, PruneData
from prunelit.core.placement import (
    Placement,
    build_shapes,
    find_needs,
    fits,
    measure_sizes,
    measure_statistics,
)
from prunelit.pruners import SparseGPT
from prunelit.sparsity import Unstructured
from prunelit.tasks import Generation

GB = 10**9
DEVICES = (24, 80)
RUNS: dict[str, tuple[Placement, int]] = {
    "resident": ("resident", 1),
    "streamed": ("streamed", 1),
    "sharded, 8 devices": ("sharded", 8),
    "sharded, 16 devices": ("sharded", 16),
}


def llama(width: int, inner: int, blocks: int, heads: int) -> LlamaConfig:
    """Return the configuration of a Llama 3.1."""
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    )


def configs() -> dict[str, PreTrainedConfig]:
    """Return the configurations, as on their pages of the hub."""
    mixture = Qwen3MoeConfig(
        hidden_size=4096,
        intermediate_size=12288,
        moe_intermediate_size=1536,
        num_hidden_layers=94,
        num_attention_heads=64,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        vocab_size=151936,
        tie_word_embeddings=False,
    )
    return {
        "Llama 3.1 8B": llama(4096, 14336, 32, 32),
        "Llama 3.1 70B": llama(8192, 28672, 80, 64),
        "Qwen3 235B-A22B": mixture,
    }


def main() -> None:
    """Print a table in Markdown."""
    task = Generation("prunelit:facts.jsonl", batch_size=32)
    task.longest = 512
    data = PruneData(CalibrationText("text", sequences=128, length=2048, batch_size=8), [task])
    gpu = torch.device("cuda")
    columns = ["model", "placement", "weights", "activations", "logits", "sum", "with SparseGPT"]
    columns += [f"fits {size} GB" for size in DEVICES]
    print(f"| {' | '.join(columns)} |")
    print(f"|{' --- |' * len(columns)}")
    for name, config in configs().items():
        shapes = build_shapes(config, torch.bfloat16)
        sizes, gram = measure_sizes(shapes), None
        if not isinstance(config, Qwen3MoeConfig):  # whose experts are one tensor
            gram = measure_statistics(shapes, SparseGPT(Unstructured(0.5)))
        for title, (placement, ranks) in RUNS.items():
            needs = find_needs(
                sizes,
                config,
                data,
                gpu,
                torch.bfloat16,
                placement=placement,
                ranks=ranks,
            )
            parts = [needs.weights, needs.activations, needs.logits, needs.total]
            cells = [f"{part / GB:.1f}" for part in parts]
            cells.append("" if gram is None else f"{(needs.total + gram) / GB:.1f}")
            cells += ["yes" if fits(needs, size * GB) else "no" for size in DEVICES]
            print(f"| {name} | {title} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
