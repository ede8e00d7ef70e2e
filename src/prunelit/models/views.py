"""Views of a model: module trees of their own on the same weights."""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.models.parallel import adopt
from prunelit.models.stores import Store, keep_in, store_of, whole

_ORIGIN = "prunelit_origin"
_Module = TypeVar("_Module", bound=nn.Module)


def view(model: _Module) -> _Module:
    """Return a model with the same weights, whose hooks, modules and attributes are its own.

    Weights that come and go, as those of a block in a store, come and go in all views.

    Args:
        model: a model, or a view of one.
    """
    new = _copy_tree(model, {})
    vars(new)[_ORIGIN] = (original(model),)  # in a tuple, since a module would be a submodule
    return new


def original(model: _Module) -> _Module:
    """Return the model that a view was made of; a model that is no view is its own."""
    (found,) = vars(model).get(_ORIGIN, (model,))
    return found


def blank(model: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return a model with modules of its own, whose parameters have shapes and no values.

    Buffers are those of the model.

    Args:
        model: stays as it is.
        dtype: of the parameters; None keeps theirs.
    """
    new = _copy_tree(model, {})
    shapes: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in new.modules():
        _make(module, module, partial(torch.empty_like, dtype=dtype, device="meta"), shapes)
    return new


def recast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model with the same weights in another dtype. Buffers keep theirs, as when loading.

    A block that waits in a store is cast whenever it comes.

    Args:
        model: stays as it is.
        dtype: of the parameters.
    """
    new = blank(model, dtype)
    cast: dict[int, nn.Parameter] = {}  # tied weights stay tied
    waiting: set[nn.Module] = set()
    for twin, own in zip(new.modules(), model.modules(), strict=True):
        if twin in waiting:
            continue
        if (store := store_of(own)) is not None:
            keep_in(twin, _Recast(twin, own, store, dtype))
            waiting |= set(twin.modules())
        else:
            _make(twin, own, partial(Tensor.to, dtype=dtype), cast)
    return new


class _Recast(Store):
    """Casts the weights of a block when they come, and forgets them when they go.

    Args:
        twin: gets the weights; it has none.
        block: has them in a store.
        store: of the block.
        dtype: of the weights that `twin` gets.
    """

    def __init__(self, twin: nn.Module, block: nn.Module, store: Store, dtype: torch.dtype) -> None:
        super().__init__()
        self.collective = store.collective
        self._twin, self._block, self._dtype = twin, block, dtype
        self._away = {module: module._parameters for module in twin.modules()}
        self._here = ExitStack()

    def fetch(self) -> None:
        with ExitStack() as stack:
            stack.enter_context(whole(self._block))
            cast: dict[int, nn.Parameter] = {}
            for twin, own in zip(self._twin.modules(), self._block.modules(), strict=True):
                _make(twin, own, partial(Tensor.to, dtype=self._dtype), cast)
            self._here = stack.pop_all()

    def leave(self, edited: bool) -> None:
        assert not edited, "a copy in another dtype cannot be edited"
        for module, parameters in self._away.items():
            module._parameters = parameters
        self._here.close()


def _make(
    twin: nn.Module,
    own: nn.Module,
    make: Callable[[Tensor], Tensor],
    made: dict[int, nn.Parameter],
) -> None:
    """Give a module what `make` makes of the parameters of another one; `made` keeps all of it."""
    parameters: dict[str, nn.Parameter | None] = {}
    for name, parameter in own._parameters.items():
        if parameter is not None and id(parameter) not in made:
            made[id(parameter)] = nn.Parameter(make(parameter.detach()), requires_grad=False)
        parameters[name] = None if parameter is None else made[id(parameter)]
    twin._parameters = parameters


def _copy_tree(module: _Module, known: dict[int, nn.Module]) -> _Module:
    """Copy the modules of a tree, but neither parameters nor buffers."""
    if id(module) in known:
        return known[id(module)]  # type: ignore[return-value]
    new = type(module).__new__(type(module))
    known[id(module)] = new
    attributes = dict(vars(module))
    attributes.pop(_ORIGIN, None)
    for name, value in attributes.items():
        if isinstance(value, OrderedDict) and "hooks" in name:
            attributes[name] = OrderedDict(value)
    attributes["_buffers"] = dict(module._buffers)
    attributes["_modules"] = {
        name: None if child is None else _copy_tree(child, known)
        for name, child in attributes["_modules"].items()
    }
    vars(new).update(attributes)
    if (store := store_of(module)) is not None and "forward" in attributes:
        keep_in(new, store)  # the `forward` of the other block would run its modules
    adopt(new)
    return new
