"""`prune`: check the inputs, prune block by block, show progress, build the report."""

import hashlib
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
import torch.distributed as dist
import transformers
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.arguments import checked
from prunelit.data.batches import (
    Batch,
    as_batches,
    check_ids,
    choose_tokens,
    hold_out,
    longest,
    one_by_one,
)
from prunelit.errors import InputError
from prunelit.models.architecture import (
    check_length,
    check_model,
    check_plain,
    decoder_blocks,
    embedded_tokens,
)
from prunelit.models.read_checks import check_weights
from prunelit.models.removal import check_zero_blocks
from prunelit.models.stores import each_part
from prunelit.models.streaming import offloaded
from prunelit.pruners.base import Pruner
from prunelit.pruning.blockwise import RankText, prune_blocks, try_blocks
from prunelit.pruning.masks import Masks, build_masks, count_zeros
from prunelit.pruning.peak_memory import PeakMemory
from prunelit.pruning.pooling import Reach
from prunelit.pruning.report import (
    BlockCost,
    PruningReport,
    count_entries,
    count_weights,
    find_missing,
)
from prunelit.pruning.saved_look import SavedChanges, SavedLook
from prunelit.recipe import describe

_A_MINUTE = 60.0  # seconds


@torch.no_grad()
@checked
def prune(
    model: PreTrainedModel,
    pruner: Pruner,
    inputs: Tensor | Iterable[Tensor | Mapping[str, Tensor]] | None = None,
    *,
    batch_size: int = 8,
    progress: bool = True,
    offload_to: torch.device | None = None,
    shrink: bool = True,
    dense_cache: bool = False,
) -> PruningReport:
    """Prune `model` in place, block by block, calibrated on `inputs`.

    If a process group exists, call it on every rank with the same model and inputs: each rank runs
    a part of the batches, and the masks are those of a single process.

    Args:
        model: a decoder-only causal LM; each block is pruned on the device of its weights.
        pruner: the method.
        inputs: (S, L) token ids, or an iterable of (B, T) token ids or of mappings with `input_ids`
            and `attention_mask`. Statistics leave padding out. None for a method that reads no
            data.
        batch_size: sequences in a batch if `inputs` is one tensor. It may change the last bits of
            activations, so it is part of the recipe.
        progress: show a progress bar over the blocks on rank 0.
        offload_to: device for one block at a time. The other blocks wait in files without a name.
            The model must be on the CPU.
        shrink: take the blocks, sublayers, heads and neurons that the method drops out of the
            model, so that time and memory are those of the saved model. False leaves them as zeros,
            so that a later call can drop more.
        dense_cache: keep on disk what a method with `amounts` finds in its first pass, and read it
            in later calls.

    Returns:
        Achieved sparsity of each tensor, each block and the model: the share of the weights that
        this call removed. Seconds and peak memory of each block.

    Raises:
        InputError: before any weight changes, if the model, the pruner and the inputs do not fit
            together.

    Example:
        >>> import torch
        >>> from prunelit import prune
        >>> from prunelit.pruners import Wanda
        >>> from prunelit.sparsity import Unstructured
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,
        ...                      num_hidden_layers=2, num_attention_heads=2)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> report = prune(model, Wanda(Unstructured(0.5)), torch.arange(64).view(4, 16))
        >>> report.sparsity
        0.5
    """
    check_model(model)
    check_plain(model)
    if not isinstance(pruner, Pruner):
        raise InputError(f"Expected a Pruner of `prunelit.pruners` but got {pruner!r}.")
    batches = None if inputs is None else as_batches(inputs, batch_size)
    if batches is not None:
        check_ids(batches, embedded_tokens(model))
        check_length(model.config, longest(batches), "a calibration sequence")
        if any(step.measure == "loss" for step in pruner.steps):
            _check_followed(batches)
    pruner.check(model)
    check_weights(model, type(model).__name__)
    _, blocks = decoder_blocks(model)
    calibration = describe_batches(batches)
    rank, world = (dist.get_rank(), dist.get_world_size()) if _is_distributed() else (0, 1)
    readings = [_read(batches, step, rank, world) for step in pruner.steps]
    zeros, missing = count_entries(model, shrinks=pruner.shrinks)
    memory = PeakMemory(offload_to or model.device)
    costs: list[BlockCost] = []
    now = missing
    masks = Masks()
    reach = Reach(pruner.expert_tokens)
    compared: list[dict[str, Any]] = []
    was_training = model.training
    model.eval()
    try:
        if pruner.drops_blocks and not shrink:
            check_zero_blocks(model)
        with offloaded(blocks, offload_to):
            if len(pruner.steps) > 1:  # so that the last one is refused before the first one begins
                for step, (_, text) in zip(pruner.steps, readings, strict=True):
                    try_blocks(model, step, text)
            for step, (held, text) in zip(pruner.steps, readings, strict=True):
                reach = Reach(step.expert_tokens)
                saved = changes = None
                if dense_cache and batches is not None:
                    where = batches, offload_to or model.device
                    if step.amounts:
                        saved = SavedLook(model, step, step.amounts, *where)
                    if step.settled:
                        changes = SavedChanges(model, step, step.settled, *where)
                tokens = 0
                if text is not None and held is not None and step.measured(model)[0]:
                    followed = step.measure == "loss"
                    chosen = choose_tokens(held, step.tokens, followed=followed)
                    text.compared = chosen[rank::world]
                    tokens = sum(int(own.sum()) for own in chosen)
                    rank_zero_info(
                        f"{type(step).__name__} compares outputs at {tokens:,} of "
                        f"{sum(int(own['attention_mask'].sum()) for own in held):,} tokens."
                    )
                own: list[BlockCost] = []
                shown = progress and rank == 0
                with _BlockProgress(type(step).__name__, len(blocks), shown=shown) as bar:
                    for cost in prune_blocks(
                        model, step, text, memory, reach, saved, changes, bar.count
                    ):
                        own.append(cost)
                        bar.show(own)
                costs += own
                if tokens:
                    compared.append({"method": type(step).__name__, "tokens": tokens} | step.told())
                if calibration is not None and (warning := reach.warning(calibration["tokens"])):
                    rank_zero_warn(warning)
                if not step.sparsifies:
                    masks.apply_(model)  # rounding may give removed weights another value
                before, zeros, found = zeros, {}, {}
                for names in each_part(model):  # brings every block once
                    zeros |= (there := count_zeros(model, names))
                    # A method that only rounds weights, such as quantisation, removes none.
                    if step.sparsifies:
                        found |= find_missing(model, shrinks=pruner.shrinks, names=names)
                        masks.merge(build_masks(model, before, there))
                now = found or now
    finally:
        model.train(was_training)
    report = PruningReport(
        recipe={"pruner": describe(pruner), "calibration": calibration},
        blocks=_by_block(costs),
        peak_memory=memory.meaning,
        shrinks=pruner.shrinks,
        by_block=pruner.by_block,
        masks=masks,
        experts=asdict(reach) if reach.experts else None,
        compared=compared or None,
        versions={
            "prunelit": version("prunelit"),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        **count_weights(model, missing, now, zeros),
    )
    return report.shrink(model) if shrink else report


class _BlockProgress(Progress):
    """Progress bar over the blocks, on stderr; in a log, a line a minute.

    Args:
        method: name of the method.
        blocks: number of blocks.
        shown: False hides both.
    """

    def __init__(self, method: str, blocks: int, shown: bool) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            disable=not shown or not sys.stderr.isatty(),
            transient=True,  # a sentence follows
            console=_stderr_console(),
        )
        self._blocks = blocks
        self._logs = shown and self.disable  # no terminal
        self._said = time.monotonic()
        self._pruning = f"Pruning with {method}"
        self._comparing = f"Comparing outputs for {method}"
        self._bar = self.add_task(self._pruning, total=blocks, rate="")
        self._began: float | None = None  # when the measurement began that is under way

    def show(self, costs: list[BlockCost]) -> None:
        """Show how many blocks are done; a method may take each of them more than once."""
        if self._began is not None:
            return
        passes = -(-len(costs) // self._blocks)
        rate = len(costs) / sum(cost.seconds for cost in costs)
        self._tell(self._pruning, len(costs), passes * self._blocks, "blocks", rate)

    def count(self, done: int, total: int) -> None:
        """Show how much of a measurement of the output is done, in runs of a block."""
        self._began = time.monotonic() if self._began is None else self._began
        rate = done / max(time.monotonic() - self._began, 1e-9)
        self._tell(self._comparing, done, total, "runs of a block", rate)
        if done == total:
            self._began = None

    def _tell(self, title: str, done: int, total: int, unit: str, rate: float) -> None:
        text = f"{rate:.2f} {unit}/s"
        self.update(self._bar, description=title, completed=done, total=total, rate=text)
        if self._logs and time.monotonic() - self._said >= _A_MINUTE:
            self._said = time.monotonic()
            rank_zero_info(f"{title}: {done} of {total} {unit}, {text}.")


def describe_batches(batches: list[Batch] | None) -> dict[str, Any] | None:
    """Describe calibration batches: number of sequences, tokens and batches, hash of their ids."""
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
    """Merge the costs of each block: sum of the seconds, highest peak."""
    merged: dict[int, BlockCost] = {}
    for cost in costs:
        known = merged.setdefault(cost.index, BlockCost(cost.index, 0.0, 0))
        known.seconds += cost.seconds
        known.peak_bytes = max(known.peak_bytes, cost.peak_bytes)
    return list(merged.values())


def _check_followed(batches: list[Batch]) -> None:
    """Refuse a text without a next token."""
    if not sum(int(mask.sum()) for mask in choose_tokens(batches, None, followed=True)):
        raise InputError(
            "Expected calibration text with a token after another one, since the loss is that of "
            "the next token, but each sequence has one token: make the sequences longer."
        )


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _stderr_console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _read(
    batches: list[Batch] | None, step: Pruner, rank: int, world: int
) -> tuple[list[Batch] | None, RankText | None]:
    """Give the text at which a method compares outputs, of all ranks; and the text of this one."""
    if batches is None:
        return None, None
    if step.replays:
        batches = one_by_one(batches)
    fitted, held = hold_out(batches, step.held_out)
    text = RankText(fitted[rank::world], _first_sequence(batches), held[rank::world])
    return held, text


def _first_sequence(batches: list[Batch]) -> Batch:
    """Find the first sequence with a real token; it is enough to check the replay."""
    batch = next(batch for batch in batches if batch["attention_mask"].any())
    row = int(batch["attention_mask"].any(1).nonzero()[0])
    return {key: value[row : row + 1] for key, value in batch.items()}
