"""The report of a pruning: what was removed, by tensor and block, and what it cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks, linear_weights
from prunelit.pruning.masks import Masks, count_zeros
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

    def recount(self, model: PreTrainedModel) -> "PruningReport":
        """The same with the zeros that `model` has now."""
        return replace(self, **count_weights(model, count_zeros(model)))


def block_prefix(name: str) -> str:
    """`model.layers.3` of `model.layers.3.mlp.up_proj.weight`: up to the first number."""
    parts = name.split(".")
    number = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: number + 1])


def count_weights(model: PreTrainedModel, zeros: Mapping[str, int]) -> dict[str, Any]:
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
