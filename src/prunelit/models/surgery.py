"""Drop, remove and shrink parts of a model."""

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import (
    decoder_blocks,
    linear_modules,
    oriented_weight,
    sublayers,
)

# The configuration's names for the width of the MLP.
_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")


@dataclass
class Removed:
    """What a stored model lacks of the dense one.

    Args:
        blocks: indices in the dense model.
        attention: indices in the stored model of blocks without attention.
        mlp: indices in the stored model of blocks without MLP.
        intermediate_size: of the MLPs; None is the dense one's.
    """

    blocks: list[int] = field(default_factory=list)
    attention: list[int] = field(default_factory=list)
    mlp: list[int] = field(default_factory=list)
    intermediate_size: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@torch.no_grad()
def drop_(block: nn.Module, kind: str) -> None:
    """Zero the last linear map of a sublayer, weight and bias, so that it contributes nothing."""
    for parameter in block.get_submodule(sublayers(block)[kind].output).parameters():
        parameter.zero_()


def is_dropped(block: nn.Module, kind: str) -> bool:
    """Whether the last linear map of a sublayer is all zeros."""
    linear = block.get_submodule(sublayers(block)[kind].output)
    return not any(bool(parameter.any()) for parameter in linear.parameters())


def neuron_rows(block: nn.Module, name: str, width: int) -> Tensor:
    """Which output rows of the MLP's input map `name` belong to each neuron, (width, k).

    One row, or two where gate and up projection are fused into one map.

    Raises:
        InputError: if the rows are no multiple of the neurons.
    """
    rows = oriented_weight(block.get_submodule(name)).shape[0]
    if rows % width:
        raise InputError(
            f"Expected {name!r} to have a row, or two, for each of {width} neurons but it has "
            f"{rows}: the MLP of {type(block).__name__} cannot be narrowed."
        )
    return torch.arange(rows).view(rows // width, width).T


@torch.no_grad()
def build_exported(model: PreTrainedModel) -> tuple[PreTrainedModel, Removed]:
    """The model without what was dropped: fewer blocks, narrower MLPs, no dropped sublayers.

    Blocks whose sublayers are both dropped are gone, and all MLPs lose the neurons that are zero,
    as many as every block can spare. A sublayer dropped alone leaves its place empty, see
    `remove_sublayers`.

    Args:
        model: where dropped parts are zero; not changed. Weights that stay are shared with it.

    Returns:
        A model to be saved, and what it lacks.
    """
    prefix, blocks = decoder_blocks(model)
    gone = [{kind for kind in ("attention", "mlp") if is_dropped(b, kind)} for b in blocks]
    removed = Removed(blocks=[i for i, kinds in enumerate(gone) if len(kinds) == 2])
    kept = [i for i in range(len(blocks)) if i not in removed.blocks]
    if not kept:
        raise InputError("Expected a block to be left but all were dropped.")
    removed.attention = [new for new, i in enumerate(kept) if "attention" in gone[i]]
    removed.mlp = [new for new, i in enumerate(kept) if "mlp" in gone[i]]
    config = copy.deepcopy(model.config)
    _forget_blocks(config.get_text_config(decoder=True), kept, len(blocks))
    widths = [_alive(blocks[i]) for i in kept if "mlp" not in gone[i]]
    narrow = max((int(alive.sum()) for alive in widths), default=0)
    dense_width = len(widths[0]) if widths else 0
    if 0 < narrow < dense_width:
        removed.intermediate_size = narrow
        _set_width(config.get_text_config(decoder=True), dense_width, narrow)
    state = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if not name.startswith(f"{prefix}."):
            state[name] = value
    for new, old in enumerate(kept):
        for name, value in _block_state(blocks[old], gone[old], removed.intermediate_size).items():
            state[f"{prefix}.{new}.{name}"] = value
    with torch.device("meta"):
        smaller = type(model)(config)
    smaller.generation_config = model.generation_config
    for kind in ("attention", "mlp"):
        for index in getattr(removed, kind):
            _leave_out(decoder_blocks(smaller)[1][index], kind)
    smaller.load_state_dict(state, assign=True)
    smaller.tie_weights()
    return smaller, removed


def remove_sublayers(model: PreTrainedModel, removed: Removed) -> PreTrainedModel:
    """Take out of a stock model the sublayers that its folder lacks, in place.

    Attention is replaced by one that puts out nothing and keeps a cache entry of width 1, which
    counts the tokens; MLPs by one that puts out zeros.
    """
    _, blocks = decoder_blocks(model)
    for kind in ("attention", "mlp"):
        for index in getattr(removed, kind):
            _leave_out(blocks[index], kind)
    return model


def find_removed(model: PreTrainedModel) -> Removed:
    """The sublayers that a model lacks since `remove_sublayers`."""
    removed = Removed()
    for index, block in enumerate(decoder_blocks(model)[1]):
        kinds = [type(module) for module in block.children()]
        removed.attention += [index] if NoAttention in kinds else []
        removed.mlp += [index] if NoMLP in kinds else []
    return removed


def check_whole(model: PreTrainedModel) -> None:
    """Refuse a model that lacks sublayers where more is to be dropped or narrowed.

    Raises:
        InputError: saying which.
    """
    if (removed := find_removed(model)) != Removed():
        raise InputError(
            f"This model lacks attention in blocks {removed.attention} and MLPs in blocks "
            f"{removed.mlp} already: drop all that is to go from the dense model in one run."
        )


def find_missing_names(model: PreTrainedModel, removed: Removed) -> set[str]:
    """The tensors of a stock `model` that a folder with these sublayers removed lacks."""
    prefix, blocks = decoder_blocks(model)
    inside = [
        f"{prefix}.{index}.{part}."
        for kind in ("attention", "mlp")
        for index in getattr(removed, kind)
        for part in sublayers(blocks[index])[kind].parts
    ]
    return {name for name in model.state_dict() if any(name.startswith(start) for start in inside)}


class NoAttention(nn.Module):
    """Puts out zeros, and keeps the length of the cache right.

    Args:
        layer_idx: of the block.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Zeros like the hidden state, and no attention weights."""
        hidden = args[0] if args else kwargs["hidden_states"]
        caches = [value for value in [*args, *kwargs.values()] if hasattr(value, "get_seq_length")]
        if caches:
            entry = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
            caches[0].update(entry, entry, self.layer_idx)
        return torch.zeros_like(hidden), None


class NoMLP(nn.Module):
    """Puts out zeros like its input."""

    def forward(self, hidden: Tensor, *_: Any) -> Tensor:
        """Zeros."""
        return torch.zeros_like(hidden)


def zero_modules(block: nn.Module, kind: str, parts: tuple[str, ...]) -> dict[str, nn.Module]:
    """What takes the place of the modules `parts` of a sublayer, so that it puts out nothing."""
    if kind == "attention":
        return {parts[0]: NoAttention(int(block.get_submodule(parts[0]).layer_idx))}  # type: ignore[arg-type]
    # Where the MLP's maps lie in the block itself, the first passes the hidden state on.
    return {**{part: nn.Identity() for part in parts[:-1]}, parts[-1]: NoMLP()}


def _leave_out(block: nn.Module, kind: str) -> None:
    for name, module in zero_modules(block, kind, sublayers(block)[kind].parts).items():
        setattr(block, name, module)


def _alive(block: nn.Module) -> Tensor:
    """(I,) bool, the neurons of the MLP whose column of the last map is not all zeros."""
    return oriented_weight(block.get_submodule(sublayers(block)["mlp"].output)).any(0)


def _block_state(block: nn.Module, gone: set[str], width: int | None) -> dict[str, Any]:
    """The tensors of a block that are stored, MLP narrowed to `width`."""
    parts = sublayers(block)
    missing = tuple(f"{part}." for kind in gone for part in parts[kind].parts)
    state = {
        name: value
        for name, value in block.state_dict(keep_vars=True).items()
        if not name.startswith(missing or ("\0",))
    }
    if width is None or "mlp" in gone:
        return state
    alive = _alive(block)
    # Blocks with fewer live neurons keep some dead ones: all are equally wide.
    keep = torch.argsort(alive.logical_not(), stable=True)[:width].sort().values
    linears, mlp = linear_modules(block), parts["mlp"]
    for name in (*mlp.inputs, mlp.output):
        weight = oriented_weight(linears[name])
        if name == mlp.output:
            narrowed = weight[:, keep]
        else:
            rows = neuron_rows(block, name, len(alive))[keep.cpu()].T.reshape(-1).to(weight.device)
            narrowed = weight[rows]
            if f"{name}.bias" in state:
                state[f"{name}.bias"] = nn.Parameter(state[f"{name}.bias"][rows])
        stored = narrowed if isinstance(linears[name], nn.Linear) else narrowed.T
        state[f"{name}.weight"] = nn.Parameter(stored.contiguous())
    return state


def _forget_blocks(config: PreTrainedConfig, kept: list[int], count: int) -> None:
    """Lists with an entry a block lose those of removed ones; the number of blocks falls."""
    if len(kept) == count:
        return
    changes: dict[str, Any] = {
        name: [value[i] for i in kept]
        for name, value in vars(config).items()
        if isinstance(value, list) and len(value) == count
    }
    for name, value in {**changes, "num_hidden_layers": len(kept)}.items():
        setattr(config, name, value)


def _set_width(config: PreTrainedConfig, dense: int, width: int) -> None:
    names = [name for name in _WIDTHS if getattr(config, name, None) == dense]
    # GPT-2 leaves it open and means four times the hidden size.
    if not names and getattr(config, "n_inner", dense) is None:
        names = ["n_inner"]
    if not names:
        raise InputError(
            f"Expected {type(config).__name__} to give the width {dense} of its MLPs under one of "
            f"{', '.join(_WIDTHS)}: it cannot say that they are narrower."
        )
    setattr(config, names[0], width)
