"""Find what modules return that add nothing, and make those that take their place."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunelit.models.parts import Sublayer, place_of
from prunelit.models.stores import whole
from prunelit.models.without_sublayers import Absent, parameters_of


def make_absent(
    block: nn.Module, sublayer: Sublayer, returns: Mapping[str, str]
) -> dict[str, Absent]:
    """Make the modules that take the place of a sublayer, by their names in the block.

    Args:
        block: a decoder block.
        sublayer: of the block; some of its modules may be absent already.
        returns: values that they return, by name, as `find_returns` gives them.
    """
    absent = {}
    for number, part in enumerate(sublayer.parts):
        original = block.get_submodule(part)
        place = None if number else place_of(original)  # one of them counts the tokens
        absent[part] = Absent(sublayer.name, returns[part], original, place)
    return absent


@contextmanager
def filled(block: nn.Module, parts: tuple[str, ...], value: float) -> Iterator[None]:
    """Have a number in the place of all weights of modules of a block, within the context.

    Args:
        block: a decoder block.
        parts: names of modules in it.
        value: of every weight.
    """
    known: dict[tuple[Any, ...], nn.Parameter] = {}
    modules = {module for part in parts for module in block.get_submodule(part).modules()}
    with whole(block):
        own = {module: module._parameters for module in modules}
        for module, parameters in own.items():
            module._parameters = {
                name: None if weight is None else _like(weight, value, known)
                for name, weight in parameters.items()
            }
        try:
            yield
        finally:
            for module, parameters in own.items():
                module._parameters = parameters


def _like(
    weight: nn.Parameter, value: float, known: dict[tuple[Any, ...], nn.Parameter]
) -> nn.Parameter:
    """Make a weight of one number; equal ones share their memory."""
    key = (weight.shape, weight.dtype, weight.device)
    if key not in known:
        known[key] = nn.Parameter(torch.full_like(weight, value), requires_grad=False)
    return known[key]


@contextmanager
def scratch(block: nn.Module, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Have copies of all weights of a block in their place, within the context: edits vanish.

    Changes of what a module keeps as a number, such as its width, and other buffers vanish too.

    Args:
        block: a decoder block.
        dtype: of the copies; None is that of each weight.
    """
    copies: dict[int, nn.Parameter] = {}
    with whole(block):
        own = {module: module._parameters for module in block.modules()}
        numbers = {module: _numbers(module) for module in own}
        buffers = {module: dict(module._buffers) for module in own}
        for module, parameters in own.items():
            for weight in parameters.values():
                if weight is not None and id(weight) not in copies:
                    copy = weight.detach().to(dtype or weight.dtype, copy=True)
                    copies[id(weight)] = nn.Parameter(copy, requires_grad=False)
            module._parameters = {
                name: None if weight is None else copies[id(weight)]
                for name, weight in parameters.items()
            }
        try:
            yield
        finally:
            for module, parameters in own.items():
                module._parameters, module._buffers = parameters, buffers[module]
                vars(module).update(numbers[module])


def _numbers(module: nn.Module) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if type(value) is int}


def zeroed(block: nn.Module, parts: tuple[str, ...]) -> AbstractContextManager[None]:
    """Have zeros in the place of all weights of modules of a block, within the context.

    Args:
        block: a decoder block.
        parts: names of modules in it.
    """
    return filled(block, parts, 0.0)


@contextmanager
def find_returns(block: nn.Module, parts: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """Note what modules of a block return while their weights are 0, within the context.

    Args:
        block: a decoder block, which runs inside the context.
        parts: names of modules in it.

    Yields:
        By name, the returned values with commas between them. The first is `zeros`, or `zeros 8` if
        it has another width than the input, or the name of the argument that is passed on, as in
        families that add the residual inside. `zeros` alone is a tensor; `zeros, None` is a tuple.
    """
    found: dict[str, str] = {}

    def note(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        named = {**dict(zip(parameters_of(module), args, strict=False)), **kwargs}
        first = output if isinstance(output, Tensor) else output[0]
        hidden = next(value for value in named.values() if isinstance(value, Tensor))
        width = first.shape[-1]
        passed = "zeros" if width == hidden.shape[-1] else f"zeros {width}"
        if first.any():
            equal = (key for key, value in named.items() if value is first or _equal(value, first))
            passed = next(equal, passed)
        rest = "" if isinstance(output, Tensor) else "," + ",".join([" None"] * (len(output) - 1))
        found[name] = passed + rest

    handles = [
        block.get_submodule(name).register_forward_hook(
            lambda *call, name=name: note(name, *call),  # type: ignore[misc]
            with_kwargs=True,
        )
        for name in parts
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _equal(value: Any, other: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == other.shape and value.equal(other)
