"""The neurons of MLPs and experts: find them by the shapes of their maps, and take some out."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prunelit.errors import InputError
from prunelit.models.architecture import (
    block_weights,
    decoder_blocks,
    left_dense,
    linear_modules,
    names_of,
    oriented_weight,
)
from prunelit.models.experts import (
    ExpertMap,
    find_experts,
    fused_tensors,
    has_pairs,
    is_transposed,
)
from prunelit.models.parts import MLP_NAME, sublayers
from prunelit.models.rebuilding import build_skeleton, changed, shapes_of
from prunelit.models.stores import each_whole

# Names of the last map. A map of another name is found by its shape.
_LAST = ("down_proj", "fc2", "dense_4h_to_h", "c_proj", "w2", "Wo", "fc_out")
# Names of fields and attributes that hold the number of neurons.
_WIDTH = re.compile("inter|inner|ffn|ff_dim|mlp|dff|expert_dim", re.IGNORECASE)


@dataclass(frozen=True)
class Neurons:
    """Linear maps of an MLP, or of one expert of a mixture; all names are inside the block.

    Args:
        inputs: its maps from the residual stream to the neurons.
        output: its map from the neurons to the residual stream.
        width: number of neurons.
        fused: they belong to an expert whose maps are in one tensor with those of other experts.
    """

    inputs: tuple[str, ...]
    output: str
    width: int
    fused: bool = False


def find_neurons(block: nn.Module) -> list[Neurons]:
    """Find the maps of the MLP of a block by their shapes.

    Returns:
        One entry for an MLP, one for each expert of a mixture and for each shared expert, none for
        a block without an MLP.

    Raises:
        InputError: if the MLP has weights in another form.
    """
    mlp = sublayers(block).get("mlp")
    if mlp is None:
        return []
    # Gemma 3n has small maps beside its MLP that serve other ends.
    named = [part for part in mlp.parts if MLP_NAME.search(part)]
    inside, dense = tuple(f"{part}." for part in named or mlp.parts), left_dense(block)
    for name, weight in block_weights(block).items():
        if name.startswith(inside) and weight.kind not in ("linear", "router", "gate"):
            raise InputError(
                f"The MLP of {type(block).__name__} has {name!r}, which is no linear map, so its "
                "neurons cannot be told. Prune its weights instead, or drop sublayers or blocks."
            )
    linears = {
        name: linear
        for name, linear in linear_modules(block).items()
        if f"{name}.".startswith(inside) and name not in dense
    }
    return [_match(type(block).__name__, group) for group in _group(linears)]


def _group(linears: Mapping[str, nn.Module]) -> list[dict[str, nn.Module]]:
    """Put the maps of one MLP or one expert together."""
    own: dict[Any, dict[str, nn.Module]] = {}
    for name, linear in linears.items():
        fused = isinstance(linear, ExpertMap)
        key = (linear.experts, linear.index) if fused else name.rpartition(".")[0]
        own.setdefault(key, {})[name] = linear
    apart = [key for key in own if isinstance(key, str)]
    if any(len(own[key]) == 1 for key in apart):  # each map is in a module of its own
        together = {name: linear for key in apart for name, linear in own.pop(key).items()}
        return [*own.values(), together]
    return list(own.values())


def _match(family: str, linears: Mapping[str, nn.Module]) -> Neurons:
    """Find the last map among those of one MLP: by its name, else as the one with most inputs."""
    shapes = {name: tuple(oriented_weight(linear).shape) for name, linear in linears.items()}
    named = {
        output
        for output, linear in linears.items()
        if any(name.rpartition(".")[2] in _LAST for name in names_of(output, linear))
    }
    for output in sorted(shapes, key=lambda name: (name not in named, -shapes[name][1])):
        outputs, width = shapes[output]
        inputs = tuple(
            name
            for name, (rows, columns) in shapes.items()
            if name != output and columns == outputs and rows in (width, 2 * width)
        )
        if inputs and (width != outputs or output in named):
            return Neurons(inputs, output, width, isinstance(linears[output], ExpertMap))
    raise InputError(
        f"Expected maps to the neurons of the MLP of {family} and one back, but its linear maps "
        f"are {shapes}: it cannot be narrowed. Prune its weights instead, or drop sublayers or "
        "blocks."
    )


def neuron_rows(linear: nn.Module, width: int) -> Tensor:
    """Find the output rows of an input map of an MLP that belong to each neuron.

    Args:
        linear: the map.
        width: number of neurons.

    Returns:
        (width, k) int64. k is 1, or 2 if gate and up projection are one map.
    """
    rows = torch.arange(oriented_weight(linear).shape[0])
    if len(rows) > width and isinstance(linear, ExpertMap) and has_pairs(linear.experts):
        return rows.view(width, -1)
    return rows.view(-1, width).T


def find_tied(block: nn.Module, found: Iterable[Neurons]) -> str | None:
    """Find a parameter beside the linear maps of an MLP that has an entry for each neuron too."""
    linears = linear_modules(block)
    own = {name for name, _ in block.named_parameters() if name.rpartition(".")[0] in linears}
    for name, experts in find_experts(block).items():
        own |= {f"{name}.{part}" for part, _ in experts.named_parameters(recurse=False)}
    widths = {neurons.width for neurons in found}
    for part in sublayers(block)["mlp"].parts if widths else ():
        for name, value in block.get_submodule(part).named_parameters(prefix=part):
            if name not in own and widths.intersection(value.shape):
                return name
    return None


@torch.no_grad()
def reorder_(block: nn.Module, neurons: Neurons, order: Tensor) -> None:
    """Give the neurons of an MLP another order, which changes none of its outputs.

    Args:
        block: a decoder block, whole.
        neurons: of one MLP, or of one expert.
        order: (width,) int64, the present neuron at each new place.
    """
    linears = linear_modules(block)
    output = oriented_weight(linears[neurons.output])
    output.copy_(output[:, order])
    for name in neurons.inputs:
        rows = neuron_rows(linears[name], neurons.width).to(order.device)
        for value in (oriented_weight(linears[name]), getattr(linears[name], "bias", None)):
            if value is not None:
                value[rows.flatten()] = value[rows[order].flatten()]


def find_alive(output: nn.Module) -> Tensor:
    """(I,) bool, True for neurons whose column of the last map is not all zeros.

    Args:
        output: the last map, whole.
    """
    return oriented_weight(output).any(0)


def find_all_neurons(blocks: Iterable[nn.Module]) -> list[list[Neurons]] | None:
    """Give `find_neurons` of blocks; None if one of them has an MLP that cannot be narrowed."""
    try:
        return [find_neurons(block) for block in blocks]
    except InputError:
        return None


def find_gone(block: nn.Module) -> dict[str, Tensor]:
    """Find the entries of a block's weights that belong to neurons without output.

    Args:
        block: a decoder block, whole.

    Returns:
        By name of the parameter; only those that have such entries. None are given for an MLP that
        cannot be narrowed.
    """
    found: dict[str, list[Tensor]] = {}
    linears = linear_modules(block)
    for neurons in (find_all_neurons([block]) or [[]])[0]:
        gone = ~find_alive(linears[neurons.output])
        if not gone.any():
            continue
        for name in (*neurons.inputs, neurons.output):
            linear, weight = linears[name], oriented_weight(linears[name])
            if name == neurons.output:
                entries = weight[:, gone]
            else:
                rows = neuron_rows(linear, neurons.width)[gone.cpu()].flatten()
                entries = weight[rows.to(weight.device)]
            fused = isinstance(linear, ExpertMap)
            part = name.rpartition(".")[0] if fused else f"{name}.weight"
            found.setdefault(part, []).append(entries.flatten())
    return {name: torch.cat(entries) for name, entries in found.items()}


def find_widths(blocks: Iterable[nn.Module]) -> dict[int, int]:
    """Find the widths that MLPs and experts can have without their neurons that are 0.

    Args:
        blocks: they may wait in stores.

    Returns:
        By the present width, the smaller one that all of this width can have.
    """
    blocks = list(blocks)
    neurons = find_all_neurons(blocks)
    if neurons is None:
        return {}
    alive: dict[int, int] = {}
    for block, found in zip(each_whole(blocks), neurons, strict=True):
        linears = linear_modules(block)
        for own in found:
            living = int(find_alive(linears[own.output]).sum())
            alive[own.width] = max(alive.get(own.width, 0), living)
    return {width: count for width, count in alive.items() if 0 < count < width}


@torch.no_grad()
def narrow_(block: nn.Module, widths: Mapping[int, int]) -> None:
    """Make MLP and experts of a block smaller; all neurons that are not 0 stay.

    Args:
        block: a decoder block, whole.
        widths: new ones by the present ones; where fewer neurons are not 0, some that are stay too.
    """
    linears = linear_modules(block)
    fused: dict[tuple[nn.Module, str], list[tuple[ExpertMap, Tensor]]] = {}
    for neurons in find_neurons(block):
        if neurons.width not in widths:
            continue
        alive = find_alive(linears[neurons.output])
        order = torch.argsort(alive.logical_not(), stable=True)
        keep = order[: widths[neurons.width]].sort().values
        for name in (*neurons.inputs, neurons.output):
            linear, chosen = linears[name], keep
            if name != neurons.output:
                rows = neuron_rows(linear, neurons.width)
                chosen = rows[keep.cpu()].flatten().sort().values.to(keep.device)
            if isinstance(linear, ExpertMap):
                fused.setdefault((linear.experts, linear.tensor), []).append((linear, chosen))
            else:
                _narrow_linear(linear, chosen, axis=int(name == neurons.output))
    parts = {key: _keep_experts(maps) for key, maps in fused.items()}  # all, as one tells the form
    for (experts, tensor), own in parts.items():
        for name, value in own.items():
            _replace(experts, f"{tensor}{name}", value)
    for part in sublayers(block)["mlp"].parts if "mlp" in sublayers(block) else ():
        for module in block.get_submodule(part).modules():
            for name, value in list(vars(module).items()):
                if type(value) is int and value in widths and _WIDTH.search(name):
                    setattr(module, name, widths[value])


def _narrow_linear(linear: nn.Module, chosen: Tensor, axis: int) -> None:
    """Keep some outputs (axis 0) or inputs (axis 1) of a linear map."""
    weight = oriented_weight(linear).index_select(axis, chosen)
    outputs, inputs = weight.shape
    if axis == 0 and getattr(linear, "bias", None) is not None:
        _replace(linear, "bias", linear.get_parameter("bias")[chosen])
    if isinstance(linear, nn.Linear):
        _replace(linear, "weight", weight)
        linear.in_features, linear.out_features = inputs, outputs
    else:
        _replace(linear, "weight", weight.T)
        linear.nx, linear.nf = inputs, outputs  # type: ignore[assignment]


def _keep_experts(maps: Sequence[tuple[ExpertMap, Tensor]]) -> dict[str, Tensor]:
    """Keep some neurons in one tensor that holds a map of each expert, and in its biases.

    Returns:
        The tensors as they are stored, by what follows the name of the first one.
    """
    (first, _), *_ = maps
    experts = first.experts
    axis = fused_tensors(experts).index(first.tensor)
    weights = torch.stack([one.weight.index_select(axis, chosen) for one, chosen in maps])
    kept = {"": weights.mT if is_transposed(experts) else weights}
    if axis == 0 and first.bias is not None:
        kept["_bias"] = torch.stack([one.bias[chosen] for one, chosen in maps])  # type: ignore[index]
    return kept


def _replace(linear: nn.Module, name: str, value: Tensor) -> None:
    before = linear.get_parameter(name)
    setattr(linear, name, nn.Parameter(value.contiguous(), before.requires_grad))


def find_width_changes(model: PreTrainedModel, widths: Mapping[int, int]) -> dict[str, Any]:
    """Find the fields of the configuration that give the MLPs of a model other widths.

    Args:
        model: stays as it is.
        widths: new ones by the present ones.

    Returns:
        New values of fields, by name.

    Raises:
        InputError: if no fields do.
    """
    expected = _narrowed_shapes(model, widths)
    for changes in _candidates(model.config.get_text_config(decoder=True), widths):
        try:
            if shapes_of(build_skeleton(model, changed(model.config, changes))) == expected:
                return changes
        except Exception:  # noqa: BLE001 - the family cannot be built so: not this field
            continue
    dense = " and ".join(map(str, sorted(widths)))
    raise InputError(
        f"The MLPs of {type(model).__name__} cannot be narrowed: no field of its config.json gives "
        f"them another width than {dense} and leaves the other tensors alone. Prune weights, or "
        "drop sublayers or blocks."
    )


def _narrowed_shapes(model: PreTrainedModel, widths: Mapping[int, int]) -> dict[str, torch.Size]:
    """Return the shapes that a model with narrower MLPs stores, by name."""
    prefix, blocks = decoder_blocks(model)
    dense = shapes_of(model)
    shapes = dict(dense)
    for index, block in enumerate(blocks):
        linears = linear_modules(block)
        for neurons in find_neurons(block):
            if neurons.width not in widths:
                continue
            for name in (*neurons.inputs, neurons.output):
                axes = _find_axes(name, linears[name], last=name == neurons.output)
                for part, axis in axes.items():
                    if (full := f"{prefix}.{index}.{part}") in dense:
                        size = list(dense[full])
                        size[axis] = size[axis] // neurons.width * widths[neurons.width]
                        shapes[full] = torch.Size(size)
    return shapes


def _find_axes(name: str, linear: nn.Module, *, last: bool) -> dict[str, int]:
    """Give the axes of neurons in the tensors of a map: its weight, and the bias of a first one."""
    if isinstance(linear, ExpertMap):
        owner = name.rpartition(".")[0]
        axes = {owner: 1 + (last != is_transposed(linear.experts)), f"{owner}_bias": 1}
    else:
        axes = {f"{name}.weight": int(last != isinstance(linear, Conv1D)), f"{name}.bias": 0}
    return dict([*axes.items()][: 1 if last else 2])


def _candidates(config: PreTrainedConfig, widths: Mapping[int, int]) -> Iterator[dict[str, Any]]:
    """Give changes of a configuration that may narrow the MLPs; the most likely ones first.

    A width that no field has may follow from that of another part, as the width of shared experts
    follows from that of the others.
    """
    fields = config.to_dict()
    each = [_find_fields(fields, dense, width) for dense, width in widths.items()]
    for chosen in product(*([*own, {}] for own in each)):
        if changes := {name: value for own in chosen for name, value in own.items()}:
            yield changes
    if len(widths) > 1:
        return
    (width,) = widths.values()
    # A width of None is a multiple of the hidden size, and some families round theirs.
    open_ones = [n for n, v in fields.items() if _WIDTH.search(n) and (v is None or type(v) is int)]
    yield from ({name: width} for name in open_ones)
    for flag in [name for name, value in fields.items() if value is True]:
        yield from ({name: width, flag: False} for name in open_ones)


def _find_fields(fields: Mapping[str, Any], dense: int, width: int) -> list[dict[str, Any]]:
    """Find fields that have a width: each one, all with the name of a width, or a list of it."""
    same = [name for name, value in fields.items() if type(value) is int and value == dense]
    same.sort(key=lambda name: _WIDTH.search(name) is None)
    found = [{name: width} for name in same]
    if len(named := [name for name in same if _WIDTH.search(name)]) > 1:
        found.append(dict.fromkeys(named, width))
    return found + [
        {name: [width] * len(value)}
        for name, value in fields.items()
        if isinstance(value, list) and value and all(entry == dense for entry in value)
    ]
