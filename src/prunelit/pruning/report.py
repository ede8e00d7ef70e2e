"""Report of a pruning: removed weights of each tensor and block, time and memory."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks, linear_weights
from prunelit.pruning.masks import Masks, count_zeros
from prunelit.report.tables import as_text, pruning_table


@dataclass
class TensorSparsity:
    """Achieved sparsity of one weight matrix.

    Args:
        name: name of the parameter in the model.
        shape: its shape.
        size: number of its entries.
        zeros: number of entries that are exactly 0.
    """

    name: str
    shape: list[int]
    size: int
    zeros: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.size


@dataclass
class BlockCost:
    """Time and memory that one block takes to calibrate and prune.

    Args:
        index: place of the block in the model.
        seconds: wall-clock time.
        peak_bytes: on CUDA, the peak of allocated device memory during this block; elsewhere, the
            resident high-water mark of the process at the end of the block (it never falls).
    """

    index: int
    seconds: float
    peak_bytes: int


@dataclass
class PruningReport:
    """Recipe, achieved sparsity and cost of a pruning; `pruning.json` holds the same.

    Args:
        recipe: plain data that decides the masks: the pruner and the calibration tokens.
        tensors: every linear weight inside the blocks, pruned or not.
        blocks: time and memory of each block.
        peak_memory: meaning of `peak_bytes` on this device.
        parameters: number of parameters of the model; shared ones count once.
        zeros: number of parameters that are exactly 0.
        versions: versions of the packages that decide the result.
        rounds: fraction, sparsity and time of each round of iterative pruning.
        shrinks: True if whole parts are 0, so that saving leaves them out.
        masks: masks of the removed weights; `pruning.json` does not hold them.

    Example:
        >>> from prunelit import PruningReport
        >>> from prunelit.pruning.report import BlockCost, TensorSparsity
        >>> weight = TensorSparsity("model.layers.0.mlp.up_proj.weight", [2, 4], size=8, zeros=4)
        >>> cost = BlockCost(index=0, seconds=0.1, peak_bytes=1000)
        >>> report = PruningReport({}, [weight], [cost], "process", parameters=20, zeros=4)
        >>> report.sparsity, report.block_sparsity("model.layers.0")
        (0.5, 0.5)
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
        """Format the table of blocks that the command line prints."""
        return as_text(pruning_table(self.as_dict()))

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON, with the sparsity of each tensor, block and the model."""
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
        """Build a report from the data of `as_dict`, without masks."""
        known = {f.name: plain[f.name] for f in fields(cls) if f.name in plain}
        known["tensors"] = [
            TensorSparsity(t["name"], t["shape"], t["size"], t["zeros"]) for t in plain["tensors"]
        ]
        known["blocks"] = [
            BlockCost(b["index"], b["seconds"], b["peak_bytes"]) for b in plain["blocks"]
        ]
        return cls(**known)

    def recount(self, model: PreTrainedModel) -> "PruningReport":
        """Copy the report with the present zeros of `model`."""
        return replace(self, **count_weights(model, count_zeros(model)))


def block_prefix(name: str) -> str:
    """Cut a name after its first number: `model.layers.3.mlp.up_proj` gives `model.layers.3`."""
    parts = name.split(".")
    number = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: number + 1])


def count_weights(model: PreTrainedModel, zeros: Mapping[str, int]) -> dict[str, Any]:
    """Build the fields of a report about weights from the `count_zeros` of `model`."""
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
