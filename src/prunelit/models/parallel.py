"""Tensor parallelism: several ranks compute one model together, each with its part of a matrix.

The plan of the family, from transformers, says which matrix is split by its rows and which by its
columns. All ranks of a group run the same batches and get the same whole outputs. The sums of a
split matrix come in another order, so the last bits of a logit differ from those of one device.
"""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.tensor_parallel import (
    ALL_PARALLEL_STYLES,
    apply_tensor_parallelism,
    replace_layer_number_by_wildcard,
)

from prunelit.errors import InputError
from prunelit.models.stores import bring

Value = TypeVar("Value")

_GROUP, _SPLIT = "prunelit_group", "prunelit_split"  # attributes of a model and of its modules
_HEADS = ("num_attention_heads", "num_key_value_heads")


def check_parallel(config: PreTrainedConfig, ranks: int) -> None:
    """Refuse a family without a plan, and heads of attention that the ranks cannot share.

    Args:
        config: of the model.
        ranks: number of ranks in a group.

    Raises:
        InputError: naming the family, or the number of heads.
    """
    text = config.get_text_config(decoder=True)
    if not text.base_model_tp_plan:
        raise InputError(
            f"Expected a family for which transformers has a plan of tensor parallelism but "
            f"{text.model_type!r} has none: set `model.placement` to `sharded` or `resident`."
        )
    for name in _HEADS:
        heads = getattr(text, name, None)
        if isinstance(heads, int) and heads % ranks:
            raise InputError(
                f"Expected a number of devices that divides the model's `{name}` {heads} but got "
                f"{ranks}: set `model.parallel_degree` to a divisor."
            )


def group_ranks(device: torch.device, ranks: int) -> DeviceMesh:
    """Form groups of neighbouring ranks; all ranks must call it.

    Args:
        device: of this rank.
        ranks: number of ranks in a group.

    Returns:
        The group of this rank.
    """
    shape = dist.get_world_size() // ranks, ranks
    return init_device_mesh(device.type, shape, mesh_dim_names=("groups", "ranks"))["ranks"]


@torch.no_grad()
def parallelize(model: PreTrainedModel, mesh: DeviceMesh, device: torch.device) -> None:
    """Let each rank of a group keep its part of the matrices of a model, in place.

    One module after the other comes to the device, and the parts of this rank stay there. Of a
    weight on the CPU that lies in a mapped file, each rank reads its part. What the plan does not
    name stays whole on every rank.

    Args:
        model: the same on all ranks; see `check_parallel`.
        mesh: the ranks of the group, in one dimension.
        device: of this rank.
    """
    first: dict[int, str] = {}
    every = dict(model.named_parameters(remove_duplicate=False))
    tied = {name: first.setdefault(id(weight), name) for name, weight in every.items()}
    del every  # which has the whole weights
    for name, module in list(model.named_modules()):
        bring(module)  # a block, before what is inside
        _split(model, name, module, mesh)
    for name, other in tied.items():
        weight = model.get_parameter(other)
        if _layout(weight) == _layout(model.get_parameter(name)):
            path, _, key = name.rpartition(".")
            model.get_submodule(path).register_parameter(key, weight)
    for weight in model.parameters():
        if not isinstance(weight, DTensor):
            weight.data = weight.data.to(device)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    vars(model)[_GROUP] = mesh.get_group()


def _split(model: PreTrainedModel, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
    """Take the part of this rank of the parameters of a module, and let its forward pass use it."""
    style = _style(model, name)
    own = {f"{name}.{key}": key for key, _ in module.named_parameters(recurse=False)}
    rules = {path: kind for path in own if (kind := _style(model, path) or style)}
    for path in rules:
        alone = module.get_parameter(own[path]).detach()  # a tied one is split in both places
        module.register_parameter(own[path], nn.Parameter(alone, requires_grad=False))
    if style is not None:
        rules[name] = style
    apply_tensor_parallelism(model, mesh, rules)
    for path in own.keys() & rules.keys():
        whole = module.get_parameter(own[path]).detach()
        part = whole.clone()  # without the memory of the whole
        module.register_parameter(own[path], nn.Parameter(part, requires_grad=False))
    if style is not None:
        vars(module)[_SPLIT] = _Split(style, mesh)


def _style(model: PreTrainedModel, name: str) -> str | None:
    """Return the word of the plan for a module or a parameter."""
    return model.tp_plan.get(replace_layer_number_by_wildcard(name))


def _layout(weight: Tensor) -> Any:
    return weight.placements if isinstance(weight, DTensor) else None


class _Split:
    """Forward pass of a module that works with the part of this rank.

    Args:
        style: word of the plan.
        mesh: the ranks of the group.
    """

    def __init__(self, style: str, mesh: DeviceMesh) -> None:
        self._style = style
        self._mesh = mesh

    def install(self, module: nn.Module) -> None:
        """Give the forward pass to a view of the module."""
        vars(module).pop("forward", None)
        ALL_PARALLEL_STYLES[self._style].install_forward(module, self._mesh)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Split":
        raise RuntimeError("A model that several ranks compute together cannot be copied.")


def adopt(view: nn.Module) -> None:
    """Let a module that has the attributes of another one run by itself.

    The forward pass that it has from a module of which each rank has a part is that of the other.
    """
    if (split := vars(view).get(_SPLIT)) is not None:
        split.install(view)


def is_split(model: nn.Module) -> bool:
    """Return True if several ranks compute a model together."""
    return _GROUP in vars(model)


def gather(model: nn.Module | None, value: Value) -> list[Value]:
    """Gather a value of each rank that computes a model together with this one.

    Args:
        model: a model or a view; a model that is whole here, or None, has only this rank.
        value: that can be pickled; all of these ranks must give one.
    """
    group = None if model is None else vars(model).get(_GROUP)
    if group is None:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    return values
