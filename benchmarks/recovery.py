"""Train a random Llama on two processes, with whole weights and with shards; print memory.

    python benchmarks/recovery.py FOLDER [--width 512] [--blocks 12] [--keep]

A run prunes with Wanda in two rounds, distils the dense model for four steps of AdamW, measures
perplexity between two steps and at the end, and writes the model; all in float32. Printed is the
peak of the anonymous memory of a process, above that of the same run with a tiny model, and beside
it the bytes of a model. FOLDER holds the models and runs; without --keep all of it is removed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

SHARDS = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1},
}
RUNS = {
    "ddp": ("ddp", "resident"),
    "shards, resident": (SHARDS, "resident"),
    "shards, sharded": (SHARDS, "sharded"),
}
_POLL = 0.01  # seconds


def write_model(folder: Path, width: int, blocks: int) -> int:
    """Write a random Llama that knows bytes alone; return the bytes of its weights."""
    set_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=8,
        vocab_size=256,
        bos_token_id=None,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    own = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, eos_token=letters[0])
    own.save_pretrained(folder)
    return sum(weight.nbytes for weight in model.parameters())


def settings(model: Path, run: Path, strategy: Any, placement: str) -> dict[str, Any]:
    """Return the configuration of a run."""
    text = {"path": "prunelit:facts.jsonl", "column": "context"}
    wanda = {
        "class_path": "prunelit.pruners.Wanda",
        "init_args": {
            "sparsity": {
                "class_path": "prunelit.sparsity.Unstructured",
                "init_args": {"ratio": 0.5},
            }
        },
    }
    rounds = {"class_path": "prunelit.schedule.Cubic", "init_args": {"rounds": 2}}
    measured = {**text, "length": 32, "limit": 4, "batch_size": 2}
    return {
        "model": {
            "source": str(model),
            "placement": placement,
            "recovery": {"lm": 0.5, "kl": 1.0},
            "dense_cache": False,
        },
        "data": {
            "calibration": {**text, "sequences": 4, "length": 32, "batch_size": 2},
            "recovery": {**text, "sequences": 8, "length": 32, "batch_size": 2},
            "tasks": [{"class_path": "prunelit.tasks.Perplexity", "init_args": measured}],
        },
        "pruning": {"pruner": wanda, "schedule": rounds},
        "speed": False,
        "trainer": {
            "accelerator": "cpu",
            "devices": 2,
            "strategy": strategy,
            "max_epochs": 2,
            "num_sanity_val_steps": 0,
            "default_root_dir": str(run),
            "logger": False,
        },
    }


def watch(command: list[str]) -> tuple[int, float]:
    """Run a command; return the peak of anonymous memory of one of its processes, and seconds."""
    start, peak = time.perf_counter(), 0
    # Else freed weights stay in the heap.
    plain = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**17), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env={**os.environ, **plain})
    while process.poll() is None:
        try:
            family = psutil.Process(process.pid)
            for one in (family, *family.children(recursive=True)):
                status = Path("/proc", str(one.pid), "status").read_text()
                anonymous = status.partition("RssAnon:")[2].split()
                peak = max(peak, 1024 * int(anonymous[0]) if anonymous else 0)
        except (OSError, psutil.Error):
            continue  # one ends
        time.sleep(_POLL)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}.")
    return peak, time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Train whole weights and shards; print memory.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    shapes = {"tiny": (32, options.blocks), "real": (options.width, options.blocks)}
    sizes = {name: write_model(options.folder / name, *own) for name, own in shapes.items()}
    print(f"The model has {sizes['real'] / 1e6:.0f} MB.", flush=True)
    for name, (strategy, placement) in RUNS.items():
        peaks = {}
        for shape in shapes:
            run = options.folder / "runs" / shape / name.replace(", ", "_")
            run.mkdir(parents=True)
            config = run / "given.yaml"
            chosen = settings(options.folder / shape, run, strategy, placement)
            config.write_text(yaml.safe_dump(chosen))
            command = [sys.executable, "-m", "prunelit", "fit", "--config", str(config)]
            peaks[shape], seconds = watch(command)
        above = peaks["real"] - peaks["tiny"]
        report = json.loads((run / "pruned" / "pruning.json").read_text())
        print(
            f"{name}: {above / 1e6:.0f} MB ({above / sizes['real']:.2f} models) above "
            f"{peaks['tiny'] / 1e6:.0f} MB, {seconds:.0f} s; sparsity {report['sparsity']:.3f}",
            flush=True,
        )
    if not options.keep:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
