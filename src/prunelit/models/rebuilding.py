"""Build the model that `from_pretrained` would build of a configuration, on weights in memory."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from prunelit.models.architecture import decoder_blocks
from prunelit.models.stores import keep_in, store_of
from prunelit.models.without_sublayers import Absent, fields_of, set_fields

Shapes = Mapping[str, torch.Size]
_Found = TypeVar("_Found")


def by_configuration(
    find: Callable[[PreTrainedModel], _Found],
) -> Callable[[PreTrainedModel], _Found]:
    """Remember what a function finds in a model, until the configuration of the model changes.

    Args:
        find: depends on the class and the configuration alone.
    """
    known: WeakKeyDictionary[PreTrainedModel, tuple[str, _Found]] = WeakKeyDictionary()

    @wraps(find)
    def remember(model: PreTrainedModel) -> _Found:
        text = model.config.to_json_string()
        if model not in known or known[model][0] != text:
            known[model] = text, find(model)
        return known[model][1]

    return remember


def changed(config: PreTrainedConfig, changes: Mapping[str, Any]) -> PreTrainedConfig:
    """Copy a configuration, with other values for fields of its language model.

    Args:
        config: of a model, which may have parts for other inputs.
        changes: new values by the name of a field.
    """
    new = copy.deepcopy(config)
    text = new.get_text_config(decoder=True)
    for name, value in changes.items():
        setattr(text, name, value)
    return new


def is_readable(config: PreTrainedConfig) -> bool:
    """Return True if the class of a configuration takes its fields when it reads them."""
    try:
        type(config).from_dict(config.to_diff_dict())
    except Exception:  # noqa: BLE001 - of the family: it refuses a value
        return False
    return True


def build_skeleton(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model of the same class from a configuration, with its buffers and without weights.

    Args:
        model: gives the class, the dtype, blocks of other widths and the sublayers that are left
            out.
        config: of the new model.

    Raises:
        Exception: whatever the class raises for a configuration that it cannot build.
    """
    with _without_weights(model.dtype):
        new = type(model)(config).eval()
        if (fields := fields_of(model)) != fields_of(new):
            set_fields(new, type(model), fields)
    for name, module in model.named_modules():
        if isinstance(module, Absent):
            new.set_submodule(name, module)
    return new


def build_twin(model: PreTrainedModel, changes: Mapping[str, Any]) -> PreTrainedModel:
    """Build a model of a changed configuration, with buffers on the device of a model, no weights.

    Args:
        model: see `build_skeleton`.
        changes: see `changed`.
    """
    new = build_skeleton(model, changed(model.config, changes))
    _place_buffers(new, model.device)
    return new


def _place_buffers(model: PreTrainedModel, device: torch.device) -> None:
    for module in model.modules():
        for key, value in module.named_buffers(recurse=False):
            setattr(module, key, value.to(device))


def check_near(what: str, found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare what two models compute, as far as the dtype of their weights tells.

    Raises:
        ValueError: saying by how much they differ.
    """
    tolerance = 1e-4 if dtype.itemsize >= 4 else 3e-2
    worst = (found - expected).float().abs().max().item()
    if not math.isfinite(worst):
        raise ValueError(f"{what} gives values that are NaN or infinite")
    if not worst <= tolerance * expected.float().abs().max().item():
        raise ValueError(f"{what} differs by {worst:.3g}")


def shapes_of(model: nn.Module) -> Shapes:
    """Return the shape of each tensor that a model stores, by name."""
    return {name: value.shape for name, value in model.state_dict().items()}


def fill(skeleton: PreTrainedModel, model: PreTrainedModel) -> None:
    """Let a skeleton have the weights of a model, in place; they are shared and not copied.

    Weights of blocks that wait in stores come and go in both.

    Args:
        skeleton: of the same shapes.
        model: with its weights.
    """
    stored = set(shapes_of(model))
    for name, own in model.named_modules():
        twin = skeleton.get_submodule(name)
        twin._parameters = own._parameters
        for key, value in own.named_buffers(recurse=False):
            if f"{name}.{key}".removeprefix(".") in stored:
                setattr(twin, key, value)
    _place_buffers(skeleton, model.device)
    blocks = [decoder_blocks(one)[1] for one in (skeleton, model)]
    for twin, own in zip(*blocks, strict=True):
        if (store := store_of(own)) is not None:
            keep_in(twin, store)


def pair(twin: nn.Module, own: nn.Module) -> list[tuple[str, nn.Module, nn.Module]]:
    """List the modules of two trees of one structure, by their names."""
    return [(name, twin.get_submodule(name), module) for name, module in own.named_modules()]


@contextmanager
def exchanged(
    parts: Sequence[tuple[str, nn.Module, nn.Module]],
    make: Callable[[str, nn.Parameter], nn.Parameter],
) -> Iterator[None]:
    """Let modules have parameters that are made of those of others, for a while.

    Args:
        parts: of `pair`; the first module gets what is made of the second one's parameters.
        make: gets the name of a parameter and its value.
    """
    before = [(twin, twin._parameters) for _, twin, _ in parts]
    for name, twin, own in parts:
        twin._parameters = {
            key: None if value is None else make(f"{name}.{key}".removeprefix("."), value)
            for key, value in own._parameters.items()
        }
    try:
        yield
    finally:
        for twin, parameters in before:
            twin._parameters = parameters


def adopt_numbers(module: nn.Module, twin: nn.Module) -> None:
    """Let a module have the numbers that another one keeps as attributes, such as widths."""
    for key, value in vars(twin).items():
        if type(value) in (int, float) and vars(module).get(key) != value:
            setattr(module, key, value)


def find_attribute(small: PreTrainedModel, new: PreTrainedModel) -> str:
    """Name a number that a module of a block keeps and that differs between two models."""
    prefix, _ = decoder_blocks(small)
    for name, own in small.get_submodule(prefix).named_modules():
        twin = new.get_submodule(f"{prefix}.{name}" if name else prefix)
        for key, value in vars(own).items():
            other = vars(twin).get(key)
            if isinstance(value, float | str | bool) and value != other:
                return f", since `{prefix}.{name}.{key}` is {other} and not {value}"
    return ""


@contextmanager
def _without_weights(dtype: torch.dtype) -> Iterator[None]:
    """Let parameters that are made within the context have no values."""
    register, before = nn.Module.register_parameter, torch.get_default_dtype()

    def register_blank(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = register_blank  # type: ignore[method-assign]
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        torch.set_default_dtype(before)
