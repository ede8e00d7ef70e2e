"""Placement of the models of a run: the memory that it takes, and the one that fits."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import psutil
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from prunelit.core.datamodule import PruneData
from prunelit.core.private_api import imagined_group
from prunelit.files import readable
from prunelit.models.architecture import decoder_blocks
from prunelit.models.comparison import tokens_per_chunk
from prunelit.models.fingerprint import stored_parts
from prunelit.models.parallel import parallelize
from prunelit.pruners.base import Probe, Pruner

Placement = Literal["auto", "resident", "streamed", "sharded", "parallel"]
# Share of the free memory that a run may fill: the allocator and the libraries take some.
_SHARE = 0.9
_HERE = 2  # blocks at one time: the one that is worked on and the next one


@dataclass(frozen=True)
class Sizes:
    """Bytes of the parts of a model.

    Args:
        skeleton: embedding, final norm, unembedding: all that is in no block; tied weights once.
        block: of the largest block.
        blocks: of all blocks together.
    """

    skeleton: int
    block: int
    blocks: int

    @property
    def model(self) -> int:
        """Bytes of all weights."""
        return self.skeleton + self.blocks


def measure_mask(sizes: Sizes, dtype: torch.dtype) -> int:
    """Compute the bytes of the masks that take the place of all blocks of a pruned model.

    Args:
        sizes: of the model.
        dtype: of its weights.
    """
    return sizes.blocks // (8 * dtype.itemsize)


def build_shapes(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Build a model whose weights have shapes and no values.

    Args:
        config: of a causal LM whose code is in transformers.
        dtype: of the weights.
    """
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def measure_sizes(model: PreTrainedModel) -> Sizes:
    """Measure a model, which may have no values, or the part of this rank."""
    blocks = [_count_bytes(block) for block in decoder_blocks(model)[1]]
    total = _count_bytes(model)
    return Sizes(total - sum(blocks), max(blocks), sum(blocks))


def _count_bytes(module: nn.Module) -> int:
    return sum(part.nbytes for weight in module.parameters() for part in stored_parts(weight))


def measure_part(config: PreTrainedConfig, dtype: torch.dtype, ranks: int) -> Sizes:
    """Measure what one rank keeps of a model that several compute together.

    Args:
        config: of a model for which transformers has a plan.
        dtype: of the weights.
        ranks: number of ranks that compute it; the first one may have a little more than others.
    """
    model = build_shapes(config, dtype)
    with imagined_group(ranks) as mesh:
        parallelize(model, mesh, torch.device("meta"))
    return measure_sizes(model)


def measure_statistics(model: PreTrainedModel, pruner: Pruner) -> int:
    """Measure what a method keeps about the inputs of a block while it prunes the block.

    Args:
        model: may have no values.
        pruner: the method; it checks the model first.

    Returns:
        Bytes of the tensors of all statistics, in the block that has most, and of those that are
        kept for all blocks.
    """

    def measure(probes: Mapping[str, Probe]) -> int:
        kept = {id(one.statistic): vars(one.statistic) for one in probes.values()}
        values = (value for own in kept.values() for value in own.values())
        return sum(value.nbytes for value in values if isinstance(value, Tensor))

    pruner.check(model)
    blocks = decoder_blocks(model)[1]
    most = max(measure(step.watch(block)) for step in pruner.steps for block in blocks)
    return most + sum(measure(own) for step in pruner.steps for own in step.kept(model))


def measure_training(
    sizes: Sizes, placement: Placement, models: int, ranks: int, *, adapters: bool
) -> int:
    """Compute what a process keeps beside the weights while the pruned model is trained.

    Args:
        sizes: of a model.
        placement: of the models; not `auto`.
        models: 2 with the dense reference, 1 without.
        ranks: number of processes that share what is trained; 1 if none does.
        adapters: adapters are trained, which are about 1% of the weights.

    Returns:
        Bytes of the gradients and of two moments, as AdamW has them, and of shares of the weights
        beside whole models.
    """
    trained = sizes.model // 100 if adapters else sizes.model
    beside = models * sizes.model if placement == "resident" and ranks > 1 else 0
    return (3 * trained + beside) // ranks


@dataclass(frozen=True)
class Needs:
    """Memory that a run takes on a device at its peak, by arithmetic, in bytes.

    Args:
        weights: of the dense and the pruned model, as far as they are there at one time.
        activations: hidden states of the calibration text, or one batch of a task and its cache,
            times the batches under way.
        logits: of the tokens that are compared at one time, and their intermediates.
        statistics: of the inputs of a block that is pruned.
        training: gradients and what the optimizer keeps.
    """

    weights: int
    activations: int
    logits: int
    statistics: int = 0
    training: int = 0

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes of each part by its name."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    def __str__(self) -> str:
        """Words for the sum and its parts."""
        named = ", ".join(f"{name} {readable(size)}" for name, size in self.parts.items() if size)
        return f"{readable(self.total)} ({named})"


def find_needs(
    sizes: Sizes,
    config: PreTrainedConfig,
    data: PruneData,
    device: torch.device,
    dtype: torch.dtype,
    *,
    placement: Placement,
    models: int = 2,
    skeletons: int | None = None,
    ranks: int = 1,
    flight: int = 1,
    statistics: int = 0,
    training: int = 0,
) -> Needs:
    """Compute the memory that a run takes on one device.

    Args:
        sizes: of a model; of the part of a rank with the placement `parallel`.
        config: of the model.
        data: prepared.
        device: where the models compute.
        dtype: of the weights and the activations.
        placement: of the models; not `auto`.
        models: 2 with the dense reference, 1 without.
        skeletons: 1 if both models have what is outside the blocks in one memory; None if each has
            its own.
        ranks: number of processes that share the blocks of a sharded run.
        flight: batches that are measured together where blocks wait.
        statistics: of the method, see `measure_statistics`.
        training: see `measure_training`; 0 trains nothing.
    """
    text = config.get_text_config(decoder=True)
    width = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * width
    blocks = models * sizes.blocks
    if placement in ("resident", "parallel"):
        flight = 1
    else:
        waiting = 0 if placement == "streamed" else math.ceil(blocks / ranks)
        blocks = waiting + _HERE * sizes.block
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * heads * head
    held = [0]
    if data.calibration is not None:
        one = data.calibration
        working = one.batch_size * one.length * (4 * width + 3 * inner)
        own = math.ceil(one.sequences / ranks) * one.length * width
        held.append(own + working)
    if training and data.recovery is not None:  # of all blocks, for the backward pass
        kept = text.num_hidden_layers * (4 * width + 3 * inner)
        held.append(data.recovery.batch_size * data.recovery.length * kept)
    for task in data.tasks.values():
        waits = flight * (width + cache)  # of one model at a time
        held.append(task.batch_size * task.longest * (4 * width + 3 * inner + waits))
    chunk = tokens_per_chunk(device, text.vocab_size)
    logits = (models * 4 + 40) * chunk * text.vocab_size if data.tasks else 0
    weights = (skeletons or models) * sizes.skeleton + blocks
    return Needs(weights, max(held) * dtype.itemsize, logits, statistics, training)


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def fits(needs: Needs, free: int) -> bool:
    """Return True if a run fits the free memory, and some is left.

    Args:
        needs: of the run, on one device.
        free: bytes of the device, for this run.
    """
    return needs.total <= _SHARE * free


def tell_choice(chosen: Placement, needs: Mapping[Placement, Needs], free: int) -> str:
    """Say which placement was chosen and why.

    Args:
        chosen: one of those in `needs`.
        needs: of `resident`, and of the other placement that was possible.
        free: bytes of the device, for this run.
    """
    own, resident = needs[chosen], needs["resident"]
    if chosen == "resident":
        return f"Placement `resident`: the run takes {own} of {readable(free)} that are free."
    where = "in files" if chosen == "streamed" else "on all processes, each with a share"
    return (
        f"Placement `{chosen}`: resident the run would take {resident}, and {readable(free)} are "
        f"free. So it takes {own}; blocks wait {where}."
    )
