"""`prune`: the calibration driver with its checks, its progress bar and its report."""

import hashlib
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
import torch.distributed as dist
import transformers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import PreTrainedModel

import prunelit
from prunelit.batches import Batch, as_batches, longest
from prunelit.calibration import calibrate
from prunelit.masks import Masks, count_zeros, removed_since
from prunelit.memory import PeakMemory
from prunelit.models.architecture import check_length, decoder_blocks, linear_weights
from prunelit.models.loading import check_weights
from prunelit.models.offload import offload
from prunelit.pruners.base import Pruner
from prunelit.recipe import describe
from prunelit.report.tables import as_text, pruning_table


@dataclass
class TensorSparsity:
    """Achieved sparsity of one weight: `zeros` of `size` entries are exactly 0."""

    name: str
    shape: list[int]
    size: int
    zeros: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.size


@dataclass
class BlockCost:
    """Time and memory of one block's calibration and pruning.

    Args:
        index: of the block.
        seconds: wall clock.
        peak_bytes: on CUDA the most that was allocated on the device while this block was worked
            on; elsewhere the process's resident high-water mark by its end (it never falls).
    """

    index: int
    seconds: float
    peak_bytes: int


@dataclass
class PruningReport:
    """What was done and what came of it; `pruning.json` holds the same.

    Args:
        recipe: plain data that decides the masks: the pruner and the calibration tokens.
        tensors: every linear weight inside the blocks, pruned or not.
        blocks: what each block cost.
        peak_memory: what `peak_bytes` of a block means here.
        parameters: number of parameters of the model, shared ones counted once.
        zeros: how many of these are exactly 0.
        versions: of the packages that decide the outcome.
        rounds: of iterative pruning: what each reached, and when.
        shrinks: whether whole parts became 0 that saving leaves out.
        masks: of what was removed; they stand in a file of their own.
    """

    recipe: dict[str, Any]
    tensors: list[TensorSparsity]
    blocks: list[BlockCost]
    peak_memory: str
    parameters: int
    zeros: int
    versions: dict[str, str] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    shrinks: bool = False
    masks: Masks = field(default_factory=Masks, repr=False, compare=False)

    @property
    def sparsity(self) -> float:
        """Achieved sparsity over the linear weights of all blocks."""
        return sum(t.zeros for t in self.tensors) / sum(t.size for t in self.tensors)

    def block_sparsity(self, prefix: str) -> float:
        """Achieved sparsity over the linear weights under `prefix`, such as `model.layers.0`."""
        chosen = [t for t in self.tensors if t.name.startswith(prefix + ".")]
        return sum(t.zeros for t in chosen) / sum(t.size for t in chosen)

    def __str__(self) -> str:
        """The table of the blocks, as the command line prints it."""
        return as_text(pruning_table(self.as_dict()))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the achieved sparsity of each tensor, block and the model."""
        prefixes = list(dict.fromkeys(block_prefix(t.name) for t in self.tensors))
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "masks"}
        return {
            **plain,
            "sparsity": self.sparsity,
            "tensors": [{**asdict(t), "sparsity": t.sparsity} for t in self.tensors],
            "blocks": [
                {**asdict(b), "name": prefix, "sparsity": self.block_sparsity(prefix)}
                for b, prefix in zip(self.blocks, prefixes, strict=True)
            ],
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "PruningReport":
        """The inverse of `as_dict`, without the masks."""
        known = {f.name: plain[f.name] for f in fields(cls) if f.name in plain}
        known["tensors"] = [
            TensorSparsity(t["name"], t["shape"], t["size"], t["zeros"]) for t in plain["tensors"]
        ]
        known["blocks"] = [
            BlockCost(b["index"], b["seconds"], b["peak_bytes"]) for b in plain["blocks"]
        ]
        return cls(**known)

    def renewed(self, model: PreTrainedModel) -> "PruningReport":
        """The same with the zeros that `model` has now."""
        return replace(self, **_counted(model, count_zeros(model)))


def block_prefix(name: str) -> str:
    """`model.layers.3` of `model.layers.3.mlp.up_proj.weight`: up to the first number."""
    parts = name.split(".")
    number = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: number + 1])


@torch.no_grad()
def prune(
    model: PreTrainedModel,
    pruner: Pruner,
    inputs: Tensor | Iterable[Tensor | Mapping[str, Tensor]] | None = None,
    *,
    batch_size: int = 8,
    progress: bool = True,
    offload_to: torch.device | None = None,
) -> PruningReport:
    """Prune `model` in place, block by block, calibrated on `inputs`.

    Where a process group exists, every rank passes the same model and inputs; batches are dealt out
    by stride and the masks are those of a single process.

    Args:
        model: a decoder-only causal LM; each block is worked on where its weights are.
        pruner: the method.
        inputs: (S, L) token ids, or an iterable of (B, T) token ids or of mappings with `input_ids`
            and `attention_mask`. Padded tokens enter no statistic. None for a method that reads no
            data.
        batch_size: sequences a batch where `inputs` is one tensor. It may change the last bits of
            activations, so it belongs to the recipe.
        progress: show a progress bar over the blocks on rank 0.
        offload_to: work on one block at a time on this device, while the others wait: in memory
            for a GPU, on disk for the CPU. The model has to be on the CPU.

    Returns:
        Achieved sparsity a tensor, block and model; seconds and peak memory a block.

    Raises:
        InputError: before any weight changes, where the model, the pruner and the inputs do not fit
            together.
    """
    batches = None if inputs is None else as_batches(inputs, batch_size)
    if batches is not None:
        check_length(model.config, longest(batches), "a calibration sequence")
    pruner.check(model)
    check_weights(model, type(model).__name__)
    _, blocks = decoder_blocks(model)
    rank, world = (dist.get_rank(), dist.get_world_size()) if _distributed() else (0, 1)
    before = count_zeros(model)
    memory = PeakMemory(offload_to or model.device)
    costs: list[BlockCost] = []
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        disable=not progress or rank > 0 or not sys.stderr.isatty(),
        console=_stderr_console(),
    )
    with bar:
        title = f"Pruning with {type(pruner).__name__}"
        task = bar.add_task(title, total=len(blocks), rate="")

        place = nullcontext if offload_to is None else offload(blocks, offload_to)

        @contextmanager
        def around_block(index: int) -> Iterator[None]:
            memory.start()
            start = time.perf_counter()
            with place(index):
                yield
            peak = memory.peak()
            costs.append(BlockCost(index, time.perf_counter() - start, peak))
            # A method that looks at all blocks first passes through them more than once.
            passes = -(-len(costs) // len(blocks))
            rate = len(costs) / sum(cost.seconds for cost in costs)
            bar.update(task, advance=1, total=passes * len(blocks), rate=f"{rate:.2f} blocks/s")

        was_training = model.training
        model.eval()
        try:
            share = None if batches is None else batches[rank::world]
            first = None if batches is None else _first_sequence(batches)
            calibrate(model, pruner, share, first, around_block)
        finally:
            model.train(was_training)
    zeros = count_zeros(model)
    return PruningReport(
        recipe={"pruner": describe(pruner), "calibration": describe_batches(batches)},
        blocks=_by_block(costs),
        peak_memory=memory.meaning,
        shrinks=pruner.shrinks,
        masks=removed_since(model, before, zeros) if pruner.sparsifies else Masks(),
        versions={
            "prunelit": prunelit.__version__,
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        **_counted(model, zeros),
    )


def describe_batches(batches: list[Batch] | None) -> dict[str, Any] | None:
    """How many sequences and tokens calibrate, in which batches, and the hash of their ids."""
    if batches is None:
        return None
    digest = hashlib.sha256()
    for batch in batches:
        for key in ("input_ids", "attention_mask"):
            digest.update(str(tuple(batch[key].shape)).encode())
            digest.update(batch[key].long().cpu().numpy().tobytes())
    return {
        "sequences": sum(batch["input_ids"].shape[0] for batch in batches),
        "tokens": sum(int(batch["attention_mask"].sum()) for batch in batches),
        "batches": len(batches),
        "sha256": digest.hexdigest(),
    }


def _by_block(costs: list[BlockCost]) -> list[BlockCost]:
    """One cost a block: seconds of all passes added, the highest peak."""
    merged: dict[int, BlockCost] = {}
    for cost in costs:
        known = merged.setdefault(cost.index, BlockCost(cost.index, 0.0, 0))
        known.seconds += cost.seconds
        known.peak_bytes = max(known.peak_bytes, cost.peak_bytes)
    return list(merged.values())


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _stderr_console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _first_sequence(batches: list[Batch]) -> Batch:
    """The first sequence with a real token: enough to check the replay, cheap to run."""
    batch = next(batch for batch in batches if batch["attention_mask"].any())
    row = int(batch["attention_mask"].any(1).nonzero()[0])
    return {key: value[row : row + 1] for key, value in batch.items()}


def _counted(model: PreTrainedModel, zeros: Mapping[str, int]) -> dict[str, Any]:
    """What a report says of the weights, from the `count_zeros` of `model`."""
    prefix, blocks = decoder_blocks(model)
    weights = {
        f"{prefix}.{index}.{name}.weight": weight
        for index, block in enumerate(blocks)
        for name, weight in linear_weights(block).items()
    }
    return {
        "tensors": [
            TensorSparsity(name, list(weight.shape), weight.numel(), zeros[name])
            for name, weight in weights.items()
        ],
        "parameters": sum(p.numel() for p in model.parameters()),
        "zeros": sum(zeros.values()),
    }
