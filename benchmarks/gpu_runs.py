"""The models of `benchmarks/gpu.py`, and the runs that several of its checks look at."""

import contextlib
import gc
import json
import random
import string
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pruning import METHODS
from safetensors.torch import load_file
from streamed import write_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import prunelit
from prunelit.callbacks import Pruning
from prunelit.core.placement import Needs, Placement
from prunelit.models.loading import DType
from prunelit.tasks import Deviation, Generation, MultipleChoice, Perplexity, Retrieval, Task

FACTS = "prunelit:facts.jsonl"
# Shapes as in `streamed.SHAPES`: width, inner width, blocks, heads, key-value heads, vocabulary.
TINY = (32, 64, 2, 2, 1, 512)


@dataclass(frozen=True)
class Scale:
    """Sizes of models and of their work.

    Args:
        shapes: of the small model, whose results a CPU computes too, and of the large one.
        calibration: sequences, and tokens of each.
        timed: the same, of the lines that take the time.
        items: most items of a task.
        new_tokens: of a rollout.
        matrix: rows and columns of a product.
        repeats: of a time.
    """

    shapes: dict[str, tuple[int, ...]]
    calibration: tuple[int, int]
    timed: tuple[int, int]
    items: int
    new_tokens: int
    matrix: int
    repeats: int


SCALES = {
    "cuda": Scale(
        shapes={"small": (512, 1536, 4, 8, 4, 4096), "large": (2048, 8192, 8, 32, 8, 32000)},
        calibration=(32, 512),
        timed=(32, 2048),
        items=64,
        new_tokens=32,
        matrix=4096,
        repeats=3,
    ),
    "cpu": Scale(
        shapes={"small": TINY, "large": TINY},
        calibration=(2, 16),
        timed=(2, 16),
        items=2,
        new_tokens=2,
        matrix=64,
        repeats=1,
    ),
}


@dataclass(frozen=True)
class Plan:
    """A run of the trainer: `prunelit fit` without a training.

    Args:
        model: `small` or `large`.
        placement: of both models.
        method: name of the pruner.
        measured: with the tasks; False prunes alone.
        dtype: of the weights.
        precision: of the trainer.
    """

    model: str
    placement: Placement
    method: str
    measured: bool = True
    dtype: DType = "bfloat16"
    precision: Any = "32-true"


@dataclass
class Run:
    """What a run of the trainer gave.

    Args:
        values: the value of each result by task, metric and model.
        folder: of the pruned model.
        peak: bytes on the device, beyond those that were there before; 0 on a CPU.
        needs: what the run was expected to take.
    """

    values: dict[tuple[str, str, str], float]
    folder: Path
    peak: int
    needs: Needs

    def weights(self) -> dict[str, Tensor]:
        """Read the pruned model."""
        found: dict[str, Tensor] = {}
        for file in self.folder.glob("model*.safetensors"):
            found |= load_file(file)
        return found


class Bench:
    """The models, and the runs that several checks look at.

    Args:
        device: `cuda` or `cpu`.
        folder: empty, on a disk.
    """

    def __init__(self, device: torch.device, folder: Path) -> None:
        self.device = device
        self.gpu = device.type == "cuda"
        self.scale = SCALES[device.type]
        self.tokenizer = byte_tokenizer()
        self._folder = folder
        self._runs: dict[Plan, Run] = {}
        for name, shape in self.scale.shapes.items():
            write_model(folder / name, shape, self.tokenizer)
        draw = random.Random(0)
        words = ["".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(20_000)]
        (folder / "text.jsonl").write_text(json.dumps({"text": " ".join(words)}) + "\n")

    def load(self, name: str, dtype: DType = "bfloat16") -> PreTrainedModel:
        """Read a model to the CPU."""
        return prunelit.load_pretrained(str(self._folder / name), dtype=dtype)[0]

    def ids(self, name: str, sequences: int, length: int) -> Tensor:
        """Draw token ids of a model."""
        vocabulary = self.scale.shapes[name][-1]
        generator = torch.Generator().manual_seed(0)
        return torch.randint(0, vocabulary, (sequences, length), generator=generator)

    def tasks(self) -> list[Task]:
        """Return a task of each kind of data."""
        length = self.scale.calibration[1] // 2
        path, limit = str(self._folder / "text.jsonl"), self.scale.items
        facts: dict[str, Any] = {"path": FACTS, "limit": limit, "batch_size": 16}
        return [
            Deviation(path, length=length, limit=limit),
            Perplexity(path, length=length, limit=limit),
            MultipleChoice(**facts),
            Retrieval(**facts),
            Generation(**facts, chat=False, max_new_tokens=self.scale.new_tokens),
        ]

    def run(self, plan: Plan) -> Run:
        """Prune and measure as `prunelit fit` does; a run that was made already is kept."""
        if plan not in self._runs:
            with contextlib.redirect_stdout(sys.stderr), deterministic(self.gpu):
                self._runs[plan] = self._run(plan)
        return self._runs[plan]

    def _run(self, plan: Plan) -> Run:
        sequences, length = self.scale.calibration
        path = str(self._folder / "text.jsonl")
        text = prunelit.CalibrationText(path, sequences=sequences, length=length)
        data = prunelit.PruneData(text, self.tasks() if plan.measured else None)
        module = prunelit.PairedLM(
            str(self._folder / plan.model), plan.dtype, placement=plan.placement, dense_cache=False
        )
        pruning = Pruning(METHODS[plan.method]())
        trainer = prunelit.PruneTrainer(
            accelerator="gpu" if self.gpu else "cpu",
            devices=1,
            callbacks=[pruning],
            default_root_dir=tempfile.mkdtemp(dir=self._folder),
            precision=plan.precision,
            max_epochs=0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        before = 0
        if self.gpu:
            free_memory()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        trainer.fit(module, data)
        assert pruning.report is not None
        assert pruning.written is not None
        peak = 0
        if self.gpu:  # the allocator's peak begins anew with each block that is pruned
            blocks = [block["peak_bytes"] for block in pruning.report["blocks"]]
            peak = max(torch.cuda.max_memory_allocated(), *blocks) - before
        config = module.weights.load_config()
        needs = module.needs(config, [plan.placement], pruning.pruner)[plan.placement]
        values = {(one.task, one.metric, one.model): one.value for one in module.results}
        return Run(values, pruning.written, peak, needs)


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Build a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {symbol: number for number, symbol in enumerate(alphabet, 1)}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    ends = {"eos_token": "<end>", "pad_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side="left", **ends)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Take kernels with a fixed order of sums; PyTorch warns of operations that have none."""
    if not wanted:
        yield
        return
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def free_memory() -> None:
    """Give up what nothing uses, so that it counts in no other measurement."""
    gc.collect()
    torch.cuda.empty_cache()
