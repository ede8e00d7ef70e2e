"""Modules in the place of a sublayer that was left out: they add nothing and cost nothing."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunelit.models.parts import Sublayer, place_of
from prunelit.models.stores import whole


class Absent(nn.Module):
    """Module that returns what the one in its place returned when all its weights were 0.

    It keeps no keys, values or states. In a cache it leaves one number for each token or sequence,
    by which the library counts the tokens.

    Args:
        kind: `attention`, `mixer` or `mlp`.
        returns: values that it returns, as `find_returns` writes them.
        original: the module in whose place it is.
        counts: it counts the tokens of its block in a cache.
    """

    def __init__(self, kind: str, returns: str, original: nn.Module, *, counts: bool) -> None:
        super().__init__()
        self.kind = kind
        self.returns = returns
        self.layer_idx = place_of(original) if counts else None
        values = returns.split(",")
        self._length = None if len(values) == 1 else len([text for text in values if text.strip()])
        self._first = values[0]
        own = original if isinstance(original, Absent) else None
        self._names = own._names if own else _parameters(original)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros like the hidden state, or the argument that the module passed on."""
        values = [*args, *kwargs.values()]
        hidden = next(value for value in values if isinstance(value, Tensor))
        if self.layer_idx is not None:
            for cache in [value for value in values if hasattr(value, "get_seq_length")][:1]:
                _count_tokens(cache, self.layer_idx, hidden)
        named = {**dict(zip(self._names, args, strict=False)), **kwargs}
        word, _, width = self._first.partition(" ")
        if word == "zeros":
            first = hidden.new_zeros(*hidden.shape[:-1], int(width or hidden.shape[-1]))
        else:
            first = named[word]
        return first if self._length is None else (first, *[None] * (self._length - 1))


def _parameters(module: nn.Module) -> list[str]:
    return [name for name in inspect.signature(type(module).forward).parameters if name != "self"]


def make_absent(
    block: nn.Module, sublayer: Sublayer, returns: Mapping[str, str]
) -> dict[str, Absent]:
    """Make the modules that take the place of a sublayer, by their names in the block.

    Args:
        block: a decoder block.
        sublayer: of the block; some of its modules may be absent already.
        returns: values that they return, by name, as `find_returns` gives them.
    """
    return {
        part: Absent(sublayer.name, returns[part], block.get_submodule(part), counts=not place)
        for place, part in enumerate(sublayer.parts)
    }


def _count_tokens(cache: Any, index: int, hidden: Tensor) -> None:
    """Leave in a layer of a cache what the library counts the tokens by."""
    batch, length = hidden.shape[:2]
    layer: Any = cache.layers[index] if index < len(cache.layers) else None
    if hasattr(layer, "update_conv_state"):
        for state in range(layer.number_of_states):
            cache.update_conv_state(hidden.new_zeros(batch, 1, 1), index, state_idx=state)
    if layer is None or hasattr(layer, "get_seq_length"):
        entry = hidden.new_zeros(batch, 1, length, 1)
        cache.update(entry, entry, index)


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
def scratch(block: nn.Module) -> Iterator[None]:
    """Have copies of all weights of a block in their place, within the context: edits vanish.

    Args:
        block: a decoder block.
    """
    copies: dict[int, nn.Parameter] = {}
    with whole(block):
        own = {module: module._parameters for module in block.modules()}
        for module, parameters in own.items():
            for weight in parameters.values():
                if weight is not None and id(weight) not in copies:
                    copies[id(weight)] = nn.Parameter(weight.detach().clone(), requires_grad=False)
            module._parameters = {
                name: None if weight is None else copies[id(weight)]
                for name, weight in parameters.items()
            }
        try:
            yield
        finally:
            for module, parameters in own.items():
                module._parameters = parameters


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
        named = {**dict(zip(_parameters(module), args, strict=False)), **kwargs}
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
