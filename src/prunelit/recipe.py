"""What an object was built from, as plain data: the form in which it stands in a YAML file.

Internal: nothing here is public.
"""

import functools
import inspect
import os
import sys
from typing import Any

from prunelit.errors import InputError


def describe(value: Any) -> Any:
    """Plain data that rebuilds `value`: `{class_path, init_args}` for an object, itself otherwise.

    A function is given by the path it is imported by. An object keeps each constructor argument
    under an attribute of the same name (the scikit-learn estimator convention), so that any pruner,
    a user's own too, can be described without a registry.

    Raises:
        InputError: if an argument was not kept under its name, or a function cannot be imported.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if inspect.isroutine(value):
        bound = getattr(value, "__self__", None)  # for `len`, say, the module
        if "<" in value.__qualname__ or not (bound is None or inspect.ismodule(bound)):
            raise InputError(
                f"Expected a function that can be imported but got {value.__qualname__!r}: define "
                "it with a name in a file."
            )
        return public_path(value)
    if isinstance(value, functools.partial):
        raise InputError("Expected a function with a name but got a `functools.partial`.")
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, os.PathLike):
        return str(value)
    cls = type(value)
    arguments = {}
    for name in _arguments(cls):
        if name not in getattr(value, "__dict__", {}):
            raise InputError(
                f"Expected {cls.__qualname__} to keep its argument `{name}` as `self.{name}`, so "
                "that its recipe can be written down."
            )
        arguments[name] = describe(vars(value)[name])
    return {"class_path": public_path(cls), "init_args": arguments}


def public_path(target: Any) -> str:
    """Shortest path by which a class or function can be imported: `prunelit.pruners.Wanda`.

    It does not name the file where a package exports the object, so that moving the file changes
    no recipe.

    Args:
        target: a class or a function that is defined in a module.
    """
    # A method of a built-in class, such as `str.lower`, names its class but not its module.
    home = getattr(target, "__objclass__", target).__module__
    first, *others = target.__qualname__.split(".")
    owner = getattr(sys.modules[home], first, None)
    parts = home.split(".")
    for length in range(1, len(parts)):
        package = ".".join(parts[:length])
        private = any(part.startswith("_") for part in parts[:length])
        if owner is not None and not private and _exported(package, first) is owner:
            return ".".join([package, first, *others])
    return f"{home}.{target.__qualname__}"


def _exported(package: str, name: str) -> Any:
    """Object that a package holds under a name; None if it holds none."""
    return getattr(sys.modules.get(package), name, None)


def _arguments(cls: type) -> list[str]:
    """Names of the constructor's arguments, those that `**kwargs` passes on to a base included."""
    names: dict[str, None] = {}
    for base in cls.__mro__[:-1]:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        variadic = [p for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        names |= dict.fromkeys(p.name for p in list(parameters)[1:] if p not in variadic)
        if not variadic:
            return list(names)
    return list(names)
