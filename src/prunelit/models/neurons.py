"""The neurons of the MLP of a block: find them by the shapes of its maps, and take some out."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.models.experts import ExpertMap
from prunelit.models.parts import sublayers, weights_of
from prunelit.models.rebuilding import build_skeleton, changed, shapes_of
from prunelit.models.stores import whole

# Names of the last map. They are asked only if a model has as many neurons as its stream is wide.
_LAST = ("down_proj", "fc2", "dense_4h_to_h", "c_proj", "w2", "Wo", "fc_out")
# Names of fields and attributes that hold the number of neurons.
_WIDTH = re.compile("inter|inner|ffn|ff_dim|mlp|dff", re.IGNORECASE)


@dataclass(frozen=True)
class Neurons:
    """Linear maps of the MLP of a block; all names are inside the block.

    Args:
        inputs: its maps from the residual stream to the neurons.
        output: its map from the neurons to the residual stream.
        width: number of neurons.
    """

    inputs: tuple[str, ...]
    output: str
    width: int


def find_neurons(block: nn.Module) -> Neurons | None:
    """Find the maps of the MLP of a block by their shapes; None if the block has no MLP.

    Raises:
        InputError: if the MLP has other weights than such maps, as a mixture of experts has.
    """
    mlp = sublayers(block).get("mlp")
    if mlp is None:
        return None
    inside = tuple(f"{part}." for part in mlp.parts)
    linears = {
        name: linear
        for name, linear in linear_modules(block).items()
        if f"{name}.".startswith(inside)
    }
    shapes = {name: tuple(oriented_weight(linear).shape) for name, linear in linears.items()}
    family = type(block).__name__
    matrices = sum(weight.ndim > 1 for weight in weights_of(block, mlp))
    fused = any(isinstance(linear, ExpertMap) for linear in linears.values())
    if fused or len(shapes) != matrices:
        raise InputError(
            f"The MLP of {family} has other weights than linear maps, such as experts, so it has "
            "no neurons that all tokens share. Prune its weights instead, or drop sublayers or "
            "blocks."
        )
    for output, (outputs, width) in sorted(shapes.items(), key=lambda item: -item[1][1]):
        inputs = tuple(
            name
            for name, (rows, columns) in shapes.items()
            if name != output and columns == outputs and rows in (width, 2 * width)
        )
        told = width != outputs or output.rpartition(".")[2] in _LAST
        if inputs and told:
            return Neurons(inputs, output, width)
    raise InputError(
        f"Expected maps to the neurons of the MLP of {family} and one back, but its linear maps "
        f"are {shapes}: it cannot be narrowed. Prune its weights instead, or drop sublayers or "
        "blocks."
    )


def neuron_rows(block: nn.Module, name: str, width: int) -> Tensor:
    """Find the output rows of the MLP's input map `name` that belong to each neuron.

    Args:
        block: a decoder block.
        name: name of the input map inside the block.
        width: number of neurons.

    Returns:
        (width, k) int64. k is 1, or 2 if gate and up projection are one map.
    """
    rows = oriented_weight(block.get_submodule(name)).shape[0]
    return torch.arange(rows).view(rows // width, width).T


def find_alive(block: nn.Module, neurons: Neurons) -> Tensor:
    """(I,) bool, True for neurons whose column of the last map is not all zeros."""
    with whole(block):
        return oriented_weight(block.get_submodule(neurons.output)).any(0)


def find_all_neurons(blocks: Iterable[nn.Module]) -> list[Neurons | None] | None:
    """Give `find_neurons` of blocks; None if one of them has an MLP that cannot be narrowed."""
    try:
        return [find_neurons(block) for block in blocks]
    except InputError:
        return None


@torch.no_grad()
def narrow_(block: nn.Module, width: int) -> None:
    """Keep `width` neurons of the MLP of a block, all that are not 0 among them.

    Args:
        block: a decoder block, whole.
        width: a block with fewer living neurons keeps some that are 0.
    """
    neurons = find_neurons(block)
    assert neurons is not None
    alive = find_alive(block, neurons)
    keep = torch.argsort(alive.logical_not(), stable=True)[:width].sort().values
    rows = {name: neuron_rows(block, name, neurons.width) for name in neurons.inputs}
    for name in (*neurons.inputs, neurons.output):
        linear = block.get_submodule(name)
        weight = oriented_weight(linear)
        if name == neurons.output:
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
    for part in sublayers(block)["mlp"].parts:
        for module in block.get_submodule(part).modules():
            for name, value in list(vars(module).items()):
                if value == neurons.width and _WIDTH.search(name):
                    setattr(module, name, width)


def _replace(linear: nn.Module, name: str, value: Tensor) -> None:
    before = linear.get_parameter(name)
    setattr(linear, name, nn.Parameter(value.contiguous(), before.requires_grad))


def find_width_changes(model: PreTrainedModel, width: int) -> dict[str, Any]:
    """Find the fields of the configuration that give the MLPs of a model another width.

    Args:
        model: all its MLPs have one width. It stays as it is.
        width: number of neurons.

    Returns:
        New values of fields, by name.

    Raises:
        InputError: if no field does.
    """
    expected, dense = _narrowed_shapes(model, width)
    for changes in _candidates(model.config.get_text_config(decoder=True), dense, width):
        try:
            if shapes_of(build_skeleton(model, changed(model.config, changes))) == expected:
                return changes
        except Exception:  # noqa: BLE001 - the family cannot be built so: not this field
            continue
    raise InputError(
        f"The MLPs of {type(model).__name__} cannot be narrowed: no field of its config.json gives "
        f"them another width than {dense} and leaves the other tensors alone. Prune weights, or "
        "drop sublayers or blocks."
    )


def _narrowed_shapes(model: PreTrainedModel, width: int) -> tuple[dict[str, torch.Size], int]:
    """Return the shapes that a model with narrower MLPs stores, and the present width."""
    prefix, blocks = decoder_blocks(model)
    shapes = dict(shapes_of(model))
    dense = 0
    for index, block in enumerate(blocks):
        if (neurons := find_neurons(block)) is None:
            continue
        dense = neurons.width
        for name in (*neurons.inputs, neurons.output):
            linear, full = block.get_submodule(name), f"{prefix}.{index}.{name}"
            axis = int((name == neurons.output) != isinstance(linear, Conv1D))
            places = {"weight": axis, **({} if name == neurons.output else {"bias": 0})}
            for key, place in places.items():
                if f"{full}.{key}" in shapes:
                    own = list(shapes[f"{full}.{key}"])
                    own[place] = own[place] // dense * width
                    shapes[f"{full}.{key}"] = torch.Size(own)
    return shapes, dense


def _candidates(config: PreTrainedConfig, dense: int, width: int) -> Iterator[dict[str, Any]]:
    """Give changes of a configuration that may narrow the MLPs; the most likely ones first."""
    fields = config.to_dict()
    same = [name for name, value in fields.items() if type(value) is int and value == dense]
    same.sort(key=lambda name: _WIDTH.search(name) is None)
    yield from ({name: width} for name in same)
    for name, value in fields.items():
        if isinstance(value, list) and value and all(entry == dense for entry in value):
            yield {name: [width] * len(value)}
    # A width of None is a multiple of the hidden size, and some families round theirs.
    open_ones = [n for n, v in fields.items() if _WIDTH.search(n) and (v is None or type(v) is int)]
    yield from ({name: width} for name in open_ones)
    for flag in [name for name, value in fields.items() if value is True]:
        yield from ({name: width, flag: False} for name in open_ones)
