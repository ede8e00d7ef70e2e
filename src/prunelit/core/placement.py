"""Placement of the models of a run: the memory that it takes, and the one that fits."""

from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from prunelit.core.datamodule import PruneData
from prunelit.models.architecture import decoder_blocks
from prunelit.models.comparison import tokens_per_chunk

Placement = Literal["auto", "resident", "streamed"]
# Share of the free memory that a run may fill: the allocator and the libraries take some.
_SHARE = 0.9


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


def measure_sizes(config: PreTrainedConfig, dtype: torch.dtype) -> Sizes:
    """Measure a model that is not read, from its configuration.

    Args:
        config: of a causal LM whose code is in transformers.
        dtype: of the weights.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    blocks = [
        sum(weight.nbytes for weight in block.parameters()) for block in decoder_blocks(model)[1]
    ]
    total = sum(weight.nbytes for weight in model.parameters())
    return Sizes(total - sum(blocks), max(blocks), sum(blocks))


@dataclass(frozen=True)
class Needs:
    """Memory that a run takes on a device at its peak, by arithmetic, in bytes.

    Args:
        weights: of the dense and the pruned model, as far as they are there at one time.
        activations: hidden states of the calibration text, or one batch of a task and its cache.
        logits: of the tokens that are compared at one time, and their intermediates.
    """

    weights: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.activations + self.logits

    def __str__(self) -> str:
        """Words for the sum and its parts."""
        parts = (("weights", self.weights), ("activations", self.activations))
        named = ", ".join(
            f"{name} {_gib(size)}" for name, size in (*parts, ("logits", self.logits))
        )
        return f"{_gib(self.total)} ({named})"


def find_needs(
    sizes: Sizes,
    config: PreTrainedConfig,
    data: PruneData,
    device: torch.device,
    dtype: torch.dtype,
    *,
    models: int,
    streamed: bool,
) -> Needs:
    """Compute the memory that a run takes on a device; statistics of the method come on top.

    Args:
        sizes: of a model.
        config: of the model.
        data: prepared.
        device: where the models compute.
        dtype: of the weights and the activations.
        models: 2 with the dense reference, 1 without.
        streamed: one block is on the device at a time.
    """
    text = config.get_text_config(decoder=True)
    width = text.hidden_size
    inner = getattr(text, "intermediate_size", None) or 4 * width
    weights = models * sizes.skeleton + sizes.block if streamed else models * sizes.model
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or width // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * heads * head
    held = [0]
    if data.calibration is not None:
        one = data.calibration
        working = one.batch_size * one.length * (4 * width + 3 * inner)
        held.append(one.sequences * one.length * width + working)
    for task in data.tasks.values():
        held.append(task.batch_size * task.longest * (4 * width + 3 * inner + cache))
    chunk = tokens_per_chunk(device, text.vocab_size)
    logits = (models * 4 + 40) * chunk * text.vocab_size if data.tasks else 0
    return Needs(weights, max(held) * dtype.itemsize, logits)


def free_memory(device: torch.device) -> int:
    """Return the bytes of memory that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def choose(needs: Needs, streamed: Needs, free: int) -> tuple[bool, str]:
    """Choose the placement that fits.

    Args:
        needs: of a resident run.
        streamed: of a streamed run.
        free: bytes of the device.

    Returns:
        True for `streamed`, and a sentence that says what was chosen and why.
    """
    if needs.total <= _SHARE * free:
        return False, f"Placement `resident`: the run takes {needs} of {_gib(free)} that are free."
    return True, (
        f"Placement `streamed`: resident the run would take {needs}, and {_gib(free)} are free. "
        f"Streamed it takes {streamed}; blocks wait in files."
    )


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
