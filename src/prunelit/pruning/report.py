"""Report of a pruning: removed weights of each tensor and block, time and memory."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import InputError, first_line
from prunelit.models.architecture import block_weights, decoder_blocks, repeated_weights
from prunelit.models.channels import find_empty_channels, find_gone_channels
from prunelit.models.heads import known_heads, lacks_heads
from prunelit.models.stores import each_part, each_whole
from prunelit.models.surgery import Removed, count_stored, find_dropped, find_removed, shrink_
from prunelit.pruning.masks import Masks, count_zeros
from prunelit.recipe import recipe_id
from prunelit.report.tables import as_text, pruning_table


@dataclass
class TensorSparsity:
    """Achieved sparsity of one weight of a block: a matrix, or all matrices of fused experts.

    Args:
        name: name of the parameter in the model.
        shape: its shape in the dense model.
        size: number of its entries there.
        zeros: number of entries that are exactly 0, before dropped parts are taken out.
        removed: number of entries that pruning set to 0, or dropped with their sublayer, neuron or
            head. Other entries that were 0 before do not count. None is all zeros.
        kind: `linear`, or what is left dense unless it is named: `router`, `gate`, `convolution`,
            `other`.
    """

    name: str
    shape: list[int]
    size: int
    zeros: int
    removed: int | None = None
    kind: str = "linear"

    def __post_init__(self) -> None:
        self.removed = self.zeros if self.removed is None else self.removed

    @property
    def sparsity(self) -> float:
        """Share of the entries that pruning removed."""
        assert self.removed is not None
        return self.removed / self.size


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


@dataclass(frozen=True)
class Missing:
    """Entries of a weight that do nothing.

    Args:
        dropped: number of entries in dropped sublayers, neurons and heads, which are taken out.
        zeros: number of other entries that are exactly 0.
        whole: the whole sublayer is dropped.
    """

    dropped: int
    zeros: int
    whole: bool = False

    def beyond(self, earlier: "Missing") -> int:
        """Count the entries that are missing now and were not before."""
        # Zeros of before may be in a part that is dropped now, or filled by an update.
        zeros = max(0, self.zeros - earlier.zeros)
        # A sublayer is dropped with the neurons that had no output before.
        dropped = earlier.dropped if self.whole == earlier.whole else 0
        return max(0, self.dropped - dropped) + zeros


@dataclass
class PruningReport:
    """Recipe, achieved sparsity and cost of a pruning; `pruning.json` holds the same.

    Args:
        recipe: plain data that decides the masks: the pruner and the calibration tokens.
        tensors: every weight inside the blocks with two dimensions or more, pruned or not.
        blocks: time and memory of each block.
        peak_memory: meaning of `peak_bytes` on this device.
        parameters: number of parameters of the dense model; shared ones count once.
        zeros: number of them that are exactly 0, before dropped parts are taken out.
        versions: versions of the packages that decide the result.
        rounds: fraction, sparsity and time of each round of iterative pruning.
        shrinks: True for a method that drops whole parts, which the model no longer has.
        by_block: True if blocks may have different numbers of heads and neurons.
        bytes: size of the dense parameters.
        stored_parameters: number of parameters that the pruned model still has, zeros included.
        stored_bytes: their size.
        removed: parts that the pruned model does not have, see `pruning.json`; None if it has all.
        masks: masks of the removed weights; `pruning.json` does not hold them.
        experts: of a mixture, how many were pruned (`experts`), how many of them read fewer
            calibration tokens than `least` and share statistics (`pooled`), and how many read none
            (`unreached`); None if no data was read or nothing is fused.
        compared: of each method that measured the output of the model, its name (`method`), the
            number of tokens whose next-token distributions it compared (`tokens`), and what it
            found, see its page; None if there is none.

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
    by_block: bool = False
    bytes: int = 0
    stored_parameters: int = 0
    stored_bytes: int = 0
    removed: dict[str, Any] | None = None
    masks: Masks = field(default_factory=Masks, repr=False, compare=False)
    experts: dict[str, int] | None = None
    compared: list[dict[str, Any]] | None = None

    @property
    def sparsity(self) -> float:
        """Share of the weights of all blocks that pruning removed."""
        return _sparsity(self.tensors)

    @property
    def left_out(self) -> dict[str, float]:
        """Share of the weights of all blocks that were left dense as a kind, by kind."""
        size = sum(tensor.size for tensor in self.tensors)
        left: Counter[str] = Counter()
        for tensor in self.tensors:
            if tensor.kind != "linear" and not tensor.removed:
                left[tensor.kind] += tensor.size
        return {kind: count / size for kind, count in left.items()}

    def block_sparsity(self, prefix: str) -> float:
        """Achieved sparsity over the weights under `prefix`, such as `model.layers.0`."""
        return _sparsity([t for t in self.tensors if t.name.startswith(prefix + ".")])

    def __str__(self) -> str:
        """Format the table of blocks that the command line prints."""
        return as_text(pruning_table(self.as_dict()))

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON, with the sparsity of each tensor, block and the model."""
        prefixes = list(dict.fromkeys(block_prefix(t.name) for t in self.tensors))
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "masks"}
        for name in ("removed", "experts", "compared"):
            if plain[name] is None:
                del plain[name]
        return {
            **plain,
            "recipe_id": recipe_id(self.recipe),
            "sparsity": self.sparsity,
            "left_out": self.left_out,
            "tensors": [{**asdict(t), "sparsity": t.sparsity} for t in self.tensors],
            "blocks": [
                {**asdict(b), "name": prefix, "sparsity": self.block_sparsity(prefix)}
                for b, prefix in zip(self.blocks, prefixes, strict=True)
            ],
        }

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "PruningReport":
        """Build a report from the data of `as_dict`, without masks.

        Raises:
            InputError: if a key is missing.
        """
        try:
            known = {f.name: plain[f.name] for f in fields(cls) if f.name in plain}
            known["tensors"] = [
                TensorSparsity(**{f.name: t[f.name] for f in fields(TensorSparsity) if f.name in t})
                for t in plain["tensors"]
            ]
            known["blocks"] = [
                BlockCost(b["index"], b["seconds"], b["peak_bytes"]) for b in plain["blocks"]
            ]
            return cls(**known)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(
                f"Expected the data of a pruning report, as in pruning.json, but got other data "
                f"({first_line(error)})."
            ) from error

    def recount(self, model: PreTrainedModel, dense: Mapping[str, Missing]) -> "PruningReport":
        """Copy the report with the present zeros of `model`, which may have been trained.

        Args:
            model: the pruned model.
            dense: `find_missing` of the dense model.
        """
        if self.removed is not None:
            return self
        zeros, missing = count_entries(model, shrinks=self.shrinks)
        return replace(self, **count_weights(model, dense, missing, zeros))

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model that is not the one of this report, as far as its weights show.

        A model that was trained since then, or has another dtype, is the same one.

        Raises:
            InputError: naming the first tensor that differs.
        """
        removed = Removed(**(self.removed or {}))
        prefix, blocks = decoder_blocks(model)
        count = len(blocks) + len(removed.blocks)
        kept = [index for index in range(count) if index not in removed.blocks]
        present = {
            f"{prefix}.{old}.{part}": list(weight.value.shape)
            for old, block, repeated in zip(kept, blocks, repeated_weights(model), strict=False)
            for part, weight in block_weights(block).items()
            if part not in repeated
        }
        reported = {tensor.name: tensor for tensor in self.tensors}
        stored = count_stored(model)
        if self.removed is None:
            for name in sorted(present.keys() ^ reported.keys()):
                owner = "the model" if name in present else "the report"
                raise _refuse(f"only {owner} has {name!r}")
            for name, shape in present.items():
                if shape != reported[name].shape:
                    raise _refuse(f"{name!r} has the shape {shape}, not {reported[name].shape}")
        elif (
            present.keys() - reported.keys()
            or stored["stored_parameters"] != self.stored_parameters
            or replace(find_removed(model), blocks=removed.blocks)
            != replace(
                removed, widths={}, experts=None, kept_experts={}, heads={}, hidden_size=None
            )
        ):
            raise _refuse("it has other parts than those that were left")
        if unknown := sorted({*self.masks} - {name for name, _ in model.named_parameters()}):
            raise _refuse(f"only the report has {unknown[0]!r}")
        for name, number in self.masks.count_regrown(model).items():
            raise _refuse(f"{number} removed weights of {name!r} are not 0")
        if self.removed is None and stored["stored_bytes"] == self.stored_bytes:
            zeros = count_zeros(model)
            for name, tensor in reported.items():
                if zeros[name] > tensor.zeros:
                    raise _refuse(f"{name!r} has {zeros[name]} zeros, not {tensor.zeros}")

    def shrink(self, model: PreTrainedModel) -> "PruningReport":
        """Take the dropped parts out of `model`, in place; other methods leave it as it is.

        Returns:
            The report of the smaller model.
        """
        if not self.shrinks or self.removed is not None:
            return self
        removed = shrink_(model, by_block=self.by_block).as_dict()
        return replace(self, removed=removed, masks=Masks(), **count_stored(model))


def _refuse(reason: str) -> InputError:
    return InputError(
        f"The report is not that of this model: {reason}. Give the report that the last `prune` of "
        "this model returned."
    )


def block_prefix(name: str) -> str:
    """Cut a name after its first number: `model.layers.3.mlp.up_proj` gives `model.layers.3`."""
    parts = name.split(".")
    number = next(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: number + 1])


def find_missing(
    model: PreTrainedModel, *, shrinks: bool, names: Collection[str] | None = None
) -> dict[str, Missing]:
    """Count the missing entries of each weight in the blocks, by name of the parameter.

    A weight that blocks share counts in the first one.

    Args:
        model: with zeros in dropped parts.
        shrinks: a sublayer whose weights are all 0, a neuron or a head without output, and a
            channel of the residual stream that nothing writes, are dropped.
        names: of the parameters of some blocks, all or none of each; None counts in all blocks.
    """
    prefix, blocks = decoder_blocks(model)
    chosen = [
        index
        for index in range(len(blocks))
        if names is None or any(name.startswith(f"{prefix}.{index}.") for name in names)
    ]
    missing = {}
    gone = find_empty_channels(model) if shrinks else None
    repeated = repeated_weights(model)
    for index, block in zip(chosen, each_whole(blocks[i] for i in chosen), strict=True):
        heads = known_heads(model)[index] if shrinks and lacks_heads(block) else None
        dropped = find_dropped(block, heads) if shrinks else {}
        if gone is not None:
            dropped |= find_gone_channels(model, index, gone, dropped)
        for part, weight in block_weights(block).items():
            if part in repeated[index]:
                continue
            entries = dropped.get(part, weight.value[:0])
            zeros = _zeros(weight.value) - _zeros(entries)
            missing[f"{prefix}.{index}.{part}"] = Missing(
                entries.numel(), zeros, whole=entries.numel() == weight.value.numel()
            )
    return missing


def count_entries(
    model: PreTrainedModel, *, shrinks: bool
) -> tuple[dict[str, int], dict[str, Missing]]:
    """Give `count_zeros` and `find_missing` of a model; every block is brought once.

    Args:
        model: see `find_missing`.
        shrinks: see `find_missing`.
    """
    zeros: dict[str, int] = {}
    missing: dict[str, Missing] = {}
    for names in each_part(model):
        zeros |= count_zeros(model, names)
        missing |= find_missing(model, shrinks=shrinks, names=names)
    return zeros, missing


def count_weights(
    model: PreTrainedModel,
    before: Mapping[str, Missing],
    after: Mapping[str, Missing],
    zeros: Mapping[str, int],
) -> dict[str, Any]:
    """Build the fields of a report about weights.

    Args:
        model: the pruned model, with all its parts.
        before: `find_missing` of the dense model.
        after: `find_missing` of the pruned model.
        zeros: `count_zeros` of the pruned model.
    """
    parameters = dict(model.named_parameters())
    prefix, blocks = decoder_blocks(model)
    kinds = {
        f"{prefix}.{index}.{part}": weight.kind
        for index, block in enumerate(blocks)
        for part, weight in block_weights(block).items()
    }
    stored = count_stored(model)
    return {
        "tensors": [
            TensorSparsity(
                name,
                list(parameters[name].shape),
                parameters[name].numel(),
                zeros[name],
                after[name].beyond(before[name]),
                kinds[name],
            )
            for name in after
        ],
        "parameters": stored["stored_parameters"],
        "bytes": stored["stored_bytes"],
        "zeros": sum(zeros.values()),
        **stored,
    }


def _zeros(weight: Tensor) -> int:
    return weight.numel() - int(weight.count_nonzero())


def _sparsity(tensors: Sequence[TensorSparsity]) -> float:
    return sum(t.removed or 0 for t in tensors) / sum(t.size for t in tensors)
