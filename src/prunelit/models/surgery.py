"""Drop, remove and shrink parts of a model."""

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import (
    KINDS,
    decoder_blocks,
    linear_modules,
    oriented_weight,
    sublayers,
)
from prunelit.models.fewer_experts import drop_experts_, is_mixture
from prunelit.models.stores import each_whole, whole

# The configuration's names for the width of the MLP.
_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")


@dataclass
class Removed:
    """Parts of the dense model that a stored model does not have.

    Args:
        blocks: indices of blocks in the dense model.
        attention: indices, in the stored model, of blocks without attention.
        mlp: indices, in the stored model, of blocks without MLP.
        intermediate_size: width of the MLPs; None means that of the dense model.
        experts: number of experts of each mixture; None means that of the dense model.
    """

    blocks: list[int] = field(default_factory=list)
    attention: list[int] = field(default_factory=list)
    mlp: list[int] = field(default_factory=list)
    intermediate_size: int | None = None
    experts: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return a dict that JSON can hold."""
        return asdict(self)


@torch.no_grad()
def drop_(block: nn.Module, kind: str) -> None:
    """Set weight and bias of the last linear map of a sublayer to 0, so that it adds nothing."""
    with whole(block, edited=True):
        for parameter in block.get_submodule(sublayers(block)[kind].output).parameters():
            parameter.zero_()


def is_dropped(block: nn.Module, kind: str) -> bool:
    """Return True if weight and bias of the last linear map of a sublayer are all 0."""
    linear = block.get_submodule(sublayers(block)[kind].output)
    with whole(block):
        return not any(bool(parameter.any()) for parameter in linear.parameters())


@torch.no_grad()
def find_dropped(block: nn.Module) -> dict[str, Tensor]:
    """Find the entries of a block's linear weights that `shrink_` takes out.

    Args:
        block: a decoder block, whole.

    Returns:
        By name of the linear map: all its entries if its sublayer is dropped; those of neurons
        without output for a map of the MLP. Other maps are left out.
    """
    linears, parts = linear_modules(block), sublayers(block)
    found = {}
    for kind in KINDS:
        if is_dropped(block, kind):
            inside = tuple(f"{part}." for part in parts[kind].parts)
            names = [name for name in linears if f"{name}.".startswith(inside)]
            found |= {name: oriented_weight(linears[name]) for name in names}
    mlp, alive = parts["mlp"], _alive(block)
    if mlp.output not in found and not alive.all():
        gone = ~alive
        found[mlp.output] = oriented_weight(linears[mlp.output])[:, gone]
        for name in mlp.inputs:
            rows = neuron_rows(block, name, len(alive))[gone.cpu()].flatten()
            weight = oriented_weight(linears[name])
            found[name] = weight[rows.to(weight.device)]
    return found


def neuron_rows(block: nn.Module, name: str, width: int) -> Tensor:
    """Find the output rows of the MLP's input map `name` that belong to each neuron.

    Args:
        block: a decoder block.
        name: name of the input map inside the block.
        width: number of neurons.

    Returns:
        (width, k) int64. k is 1, or 2 if gate and up projection are one map.

    Raises:
        InputError: if the number of rows is not a multiple of `width`.
    """
    rows = oriented_weight(block.get_submodule(name)).shape[0]
    if rows % width:
        raise InputError(
            f"Expected {name!r} to have one or two rows for each of {width} neurons but it has "
            f"{rows} rows: the MLP of {type(block).__name__} cannot be narrowed."
        )
    return torch.arange(rows).view(rows // width, width).T


@torch.no_grad()
def shrink_(model: PreTrainedModel) -> Removed:
    """Take dropped blocks, dropped sublayers and zero neurons out of a model, in place.

    A mixture loses its dropped experts, see `drop_experts_`. In other models a block is removed if
    both its sublayers are dropped. All MLPs get the same width: that of the block with the most
    neurons that are not 0. If one sublayer is dropped, its module is replaced as in
    `remove_sublayers`. The model gets a configuration of its own.

    Args:
        model: with zeros in dropped parts.

    Returns:
        The parts that it does not have any more.

    Raises:
        InputError: if all blocks are dropped, or the configuration cannot hold the new shape.
    """
    _, blocks = decoder_blocks(model)
    if is_mixture(model):
        _own_config(model)
        removed = Removed(experts=drop_experts_(model))
        _check_shape(model, removed)
        return removed
    gone = [{kind for kind in KINDS if is_dropped(b, kind)} for b in each_whole(blocks)]
    removed = Removed(blocks=[i for i, kinds in enumerate(gone) if len(kinds) == 2])
    kept = [i for i in range(len(blocks)) if i not in removed.blocks]
    if not kept:
        raise InputError("Expected a block to be left but all were dropped: drop fewer.")
    removed.attention = [new for new, i in enumerate(kept) if "attention" in gone[i]]
    removed.mlp = [new for new, i in enumerate(kept) if "mlp" in gone[i]]
    widths = [_alive(blocks[i]) for i in kept if "mlp" not in gone[i]]
    narrow = max((int(alive.sum()) for alive in widths), default=0)
    dense_width = len(widths[0]) if widths else 0
    _own_config(model)  # other models may share the present one
    config = model.config.get_text_config(decoder=True)
    _forget_blocks(config, kept, len(blocks))
    if 0 < narrow < dense_width:
        removed.intermediate_size = narrow
        _set_width(config, dense_width, narrow)
    for new, old in enumerate(kept):
        block = blocks[old]
        narrows = removed.intermediate_size is not None and "mlp" not in gone[old]
        if narrows or gone[old]:
            with whole(block, edited=True):
                if narrows:
                    _narrow(block, narrow)
                for kind in gone[old]:
                    _leave_out(block, kind)
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = new  # type: ignore[assignment]
    for index in reversed(removed.blocks):
        del blocks[index]
    _check_shape(model, removed)
    return removed


def build_exported(model: PreTrainedModel) -> tuple[PreTrainedModel, Removed]:
    """Build the model to save, see `shrink_`.

    Args:
        model: with zeros in dropped parts. It is not changed; the new model shares its weights.

    Returns:
        The model to save, and the parts that it does not have.

    Raises:
        InputError: as `shrink_` does.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    smaller = copy.deepcopy(model, shared)
    return smaller, shrink_(smaller)


def count_stored(model: PreTrainedModel) -> dict[str, int]:
    """Count the parameters of a model and their bytes; shared ones count once."""
    parameters = list(model.parameters())
    return {
        "stored_parameters": sum(p.numel() for p in parameters),
        "stored_bytes": sum(p.nbytes for p in parameters),
    }


def remove_sublayers(model: PreTrainedModel, removed: Removed) -> PreTrainedModel:
    """Remove sublayers from a model, in place.

    Attention is replaced by `NoAttention`, which returns zeros and keeps a cache entry of width 1
    to count the tokens. An MLP is replaced by `NoMLP`, which returns zeros.

    Args:
        model: with all sublayers, as `from_pretrained` returns it.
        removed: the sublayers to remove.

    Returns:
        The same model.
    """
    _, blocks = decoder_blocks(model)
    for kind in KINDS:
        for index in getattr(removed, kind):
            _leave_out(blocks[index], kind)
    return model


def find_removed(model: PreTrainedModel) -> Removed:
    """Find the sublayers that `remove_sublayers` removed from a model."""
    removed = Removed()
    for index, block in enumerate(decoder_blocks(model)[1]):
        kinds = [type(module) for module in block.children()]
        removed.attention += [index] if NoAttention in kinds else []
        removed.mlp += [index] if NoMLP in kinds else []
    return removed


def check_whole(model: PreTrainedModel) -> None:
    """Refuse a model without some sublayers if more parts are to be dropped or narrowed.

    Raises:
        InputError: naming the missing sublayers.
    """
    if (removed := find_removed(model)) != Removed():
        raise InputError(
            f"Expected a model with all its sublayers but it lacks attention in blocks "
            f"{removed.attention} and MLPs in blocks {removed.mlp}: start from the dense model and "
            "drop all parts in one run."
        )


def find_missing_names(model: PreTrainedModel, removed: Removed) -> set[str]:
    """Names of the tensors of a whole `model` that belong to removed sublayers."""
    prefix, blocks = decoder_blocks(model)
    inside = [
        f"{prefix}.{index}.{part}."
        for kind in KINDS
        for index in getattr(removed, kind)
        for part in sublayers(blocks[index])[kind].parts
    ]
    return {name for name in model.state_dict() if any(name.startswith(start) for start in inside)}


class NoAttention(nn.Module):
    """Attention that returns zeros and counts its tokens in the cache.

    Args:
        layer_idx: index of the block.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Return zeros like the hidden state, and no attention weights."""
        hidden = args[0] if args else kwargs["hidden_states"]
        caches = [value for value in [*args, *kwargs.values()] if hasattr(value, "get_seq_length")]
        if caches:
            entry = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
            caches[0].update(entry, entry, self.layer_idx)
        return torch.zeros_like(hidden), None


class NoMLP(nn.Module):
    """MLP that returns zeros."""

    def forward(self, hidden: Tensor, *_: Any) -> Tensor:
        """Return zeros like the input."""
        return torch.zeros_like(hidden)


def zero_modules(block: nn.Module, kind: str, parts: tuple[str, ...]) -> dict[str, nn.Module]:
    """Make the modules that replace `parts` of a sublayer, so that the sublayer adds nothing."""
    if kind == "attention":
        return {parts[0]: NoAttention(int(block.get_submodule(parts[0]).layer_idx))}  # type: ignore[arg-type]
    # If the maps of the MLP are directly in the block, the first ones return their input.
    return {**{part: nn.Identity() for part in parts[:-1]}, parts[-1]: NoMLP()}


def _leave_out(block: nn.Module, kind: str) -> None:
    for name, module in zero_modules(block, kind, sublayers(block)[kind].parts).items():
        setattr(block, name, module)


def _alive(block: nn.Module) -> Tensor:
    """(I,) bool, True for neurons of the MLP whose column of the last map is not all zeros."""
    with whole(block):
        return oriented_weight(block.get_submodule(sublayers(block)["mlp"].output)).any(0)


def _narrow(block: nn.Module, width: int) -> None:
    """Keep `width` neurons of the MLP of a block, all that are not 0 among them."""
    alive, mlp = _alive(block), sublayers(block)["mlp"]
    # A block with fewer neurons than `width` keeps some zero neurons, so all widths are equal.
    keep = torch.argsort(alive.logical_not(), stable=True)[:width].sort().values
    rows = {name: neuron_rows(block, name, len(alive)) for name in mlp.inputs}
    for name in (*mlp.inputs, mlp.output):
        linear = block.get_submodule(name)
        weight = oriented_weight(linear)
        if name == mlp.output:
            narrowed = weight[:, keep]
        else:
            chosen = rows[name][keep.cpu()].T.reshape(-1).to(weight.device)
            narrowed = weight[chosen]
            if getattr(linear, "bias", None) is not None:
                _replace(linear, "bias", linear.get_parameter("bias")[chosen])
        outputs, inputs = narrowed.shape
        if isinstance(linear, nn.Linear):
            _replace(linear, "weight", narrowed)
            linear.in_features, linear.out_features = inputs, outputs
        else:
            _replace(linear, "weight", narrowed.T)
            linear.nx, linear.nf = inputs, outputs  # type: ignore[assignment]
    for part in mlp.parts:
        for name in _WIDTHS:
            if getattr(block.get_submodule(part), name, None) == len(alive):
                setattr(block.get_submodule(part), name, width)


def _replace(linear: nn.Module, name: str, value: Tensor) -> None:
    before = linear.get_parameter(name)
    setattr(linear, name, nn.Parameter(value.contiguous(), before.requires_grad))


def _own_config(model: PreTrainedModel) -> None:
    """Give a model and its parts a copy of their configuration."""
    copies: dict[int, Any] = {}
    copy.deepcopy(model.config, copies)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, PreTrainedConfig):
                setattr(module, name, copies.get(id(value), value))


def _check_shape(model: PreTrainedModel, removed: Removed) -> None:
    """Refuse a model that `from_pretrained` would not build from its configuration."""
    with torch.device("meta"):
        built = remove_sublayers(type(model)(copy.deepcopy(model.config)), removed)
    shapes = [{name: value.shape for name, value in m.state_dict().items()} for m in (built, model)]
    if shapes[0] != shapes[1]:
        different = sorted(dict(set(shapes[0].items()) ^ set(shapes[1].items())))
        raise InputError(
            f"{type(model).__name__} cannot be made smaller: its configuration makes another "
            f"{different[0]!r} than the pruned model has."
        )


def _forget_blocks(config: PreTrainedConfig, kept: list[int], count: int) -> None:
    """Remove the entries of removed blocks from a configuration, and lower its block count."""
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
    # GPT-2 has None, which means four times the hidden size.
    if not names and getattr(config, "n_inner", dense) is None:
        names = ["n_inner"]
    if not names:
        raise InputError(
            f"Expected {type(config).__name__} to have the width {dense} of its MLPs as one of "
            f"{', '.join(_WIDTHS)} but it has none of them: its MLPs cannot be narrowed."
        )
    setattr(config, names[0], width)
