"""Check the arguments of public classes and functions against their annotations.

Numbers of NumPy become those of Python here, so that nothing else has to know them.

The command line checks the values of a YAML in the same way before an object is built.

Internal: nothing here is public.
"""

import collections.abc
import functools
import inspect
import numbers
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union

import numpy as np

from prunelit.errors import InputError

Called = TypeVar("Called", bound=Callable[..., Any])

# Arguments that may be a `pathlib.Path` where their annotation says `str`.
_PATHS = ("path", "source", "qrels", "cache", "output", "dirpath", "folder", "ckpt_path")
_LISTS = (list, collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)


class Checked:
    """Base of classes of prunelit whose constructors refuse arguments of another type."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the arguments of a constructor; a user's own class checks as it likes."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls) and cls.__module__.partition(".")[0] == "prunelit":
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]


def checked(called: Called) -> Called:
    """Return a function that refuses arguments of another type than their annotation.

    Args:
        called: a function, or the constructor of a class; of a class its own constructor is
            replaced, and the class is returned.

    Raises:
        InputError: from the function returned; names the argument.
    """
    if inspect.isclass(called):
        owner: Any = called
        owner.__init__ = checked(owner.__init__)
        return owner

    @functools.wraps(called)
    def check(*args: Any, **kwargs: Any) -> Any:
        signature, hints = _annotations(called)
        bound = signature.bind(*args, **kwargs)  # raises the TypeError of a wrong call
        for name in bound.arguments.keys() & hints.keys():
            bound.arguments[name] = value = _as_python(bound.arguments[name])
            if not _fits(value, hints[name], name):
                constructs = "self" in bound.arguments
                owner = type(args[0]) if constructs else called
                raise (constructs and _own_refusal(called, bound)) or InputError(
                    f"Expected `{name}` of {owner.__name__} as {_show(hints[name])} but got "
                    f"{value!r:.60}."
                )
        return called(*bound.args, **bound.kwargs)

    return typing.cast("Called", check)


@functools.cache
def _annotations(called: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]]:
    signature = inspect.signature(called)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    plain = {name for name, p in signature.parameters.items() if p.kind not in variadic}
    hints = typing.get_type_hints(called)
    return signature, {name: hint for name, hint in hints.items() if name in plain}


def _as_python(value: Any) -> Any:
    """Return a number or a text of NumPy as one of Python, also in lists and dictionaries."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple) and _holds_more(value):
        return type(value)(map(_as_python, value))
    if type(value) is dict and _holds_more([*value, *value.values()]):
        return {_as_python(key): _as_python(item) for key, item in value.items()}
    return value


def _holds_more(values: Any) -> bool:
    """Return True if a value may be, or hold, one of NumPy. Long lists have few types."""
    return any(
        issubclass(kind, np.generic | list | tuple | dict) for kind in set(map(type, values))
    )


def _fits(value: Any, kind: Any, name: str) -> bool:
    """Return True if a value is of a type; True also for types that are not understood."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one, name) for one in inner)
    if origin is Literal:
        return any(value is one or (type(value) is type(one) and value == one) for one in inner)
    if origin in _LISTS:
        if isinstance(value, str | bytes) or not isinstance(value, origin):
            return False
        items = value if isinstance(value, list | tuple) else ()
        if isinstance(inner[0], type):
            items = {type(item): item for item in items}.values()  # one of each type says it
        return all(_fits(item, inner[0], "") for item in items)
    if origin in (dict, collections.abc.Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, inner[0], "") and _fits(item, inner[1], "") for key, item in value.items()
        )
    if origin is collections.abc.Callable or kind is collections.abc.Callable:
        return callable(value)
    if kind in (None, types.NoneType):
        return value is None
    if not isinstance(kind, type) or origin is not None or kind in (object, Any):
        return True
    if _is_module(kind) and _is_module(type(value)):
        return True  # the function refuses another class of module, and says why
    if issubclass(kind, bool):
        return isinstance(value, bool)
    for number, accepted in ((int, numbers.Integral), (float, numbers.Real)):
        if issubclass(kind, number):
            return isinstance(value, accepted) and not isinstance(value, bool)
    if kind is str and name in _PATHS:
        return isinstance(value, str | os.PathLike)
    return isinstance(value, kind)


def _is_module(kind: type) -> bool:
    """Return True for a class of PyTorch modules. This file is imported without torch too."""
    nn = sys.modules.get("torch.nn")
    return nn is not None and issubclass(kind, nn.Module)


def _own_refusal(called: Callable[..., Any], bound: inspect.BoundArguments) -> InputError | None:
    """Return the error of a constructor that looks at the value itself, and so can say more."""
    try:
        called(*bound.args, **bound.kwargs)
    except InputError as error:
        return error
    except Exception:  # noqa: BLE001 - it does not look at the type
        return None
    return None


def _show(kind: Any) -> str:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_show, inner))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if kind is types.NoneType:
        return "None"
    return kind.__name__ if isinstance(kind, type) and not inner else str(kind)
