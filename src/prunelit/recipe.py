"""Plain data that says how an object was built, in the form that a YAML file has.

Internal: nothing here is public.
"""

import functools
import inspect
import os
import sys
from typing import Any

from prunelit.errors import InputError


def describe(value: Any) -> Any:
    """Return plain data that rebuilds `value`: `{class_path, init_args}` for an object.

    Plain values stay as they are. A function becomes the path it is imported by. An object must
    store each constructor argument in an attribute of the same name (the scikit-learn convention).
    Classes of a user then need no registry.

    Raises:
        InputError: if an argument is not stored under its name, or a function cannot be imported.

    Example:
        >>> from prunelit.recipe import describe
        >>> from prunelit.schedule import Linear
        >>> describe(Linear(rounds=3))["class_path"]
        'prunelit.schedule.Linear'
        >>> describe(Linear(rounds=3))["init_args"]["rounds"]
        3
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if inspect.isroutine(value):
        bound = getattr(value, "__self__", None)  # the module, for a built-in function
        if "<" in value.__qualname__ or not (bound is None or inspect.ismodule(bound)):
            raise InputError(
                f"Expected a function that can be imported but got {value.__qualname__!r}: define "
                "it with a name in a file."
            )
        return public_path(value)
    if isinstance(value, functools.partial):
        raise InputError(
            "Expected a function with a name but got a `functools.partial`: define a function in a "
            "file."
        )
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
                f"Expected {cls.__qualname__} to store its argument `{name}` as `self.{name}` "
                "for its recipe: add that line to its constructor."
            )
        arguments[name] = describe(vars(value)[name])
    return {"class_path": public_path(cls), "init_args": arguments}


def public_path(target: Any) -> str:
    """Return the shortest path that a class or function can be imported by.

    If a package above the file exports the object, the path names the package and not the file.
    Moving the file inside that package then changes no recipe.

    Args:
        target: a class or a function that is defined in a module.

    Example:
        >>> from prunelit.pruners.wanda import Wanda
        >>> from prunelit.recipe import public_path
        >>> public_path(Wanda)
        'prunelit.pruners.Wanda'
    """
    # A method of a built-in class, such as `str.lower`, names its class but not its module.
    home = getattr(target, "__objclass__", target).__module__
    path = target.__qualname__
    # A nested class is reached through the outermost one, which is what a package exports.
    outermost = path.partition(".")[0]
    owner = _attribute(home, outermost)
    parts = home.split(".")
    for length in range(1, len(parts)):
        package = ".".join(parts[:length])
        private = any(part.startswith("_") for part in parts[:length])
        if owner is not None and not private and _attribute(package, outermost) is owner:
            return f"{package}.{path}"
    return f"{home}.{path}"


def _attribute(module: str, name: str) -> Any:
    """Return an attribute of an imported module; None if there is none."""
    return getattr(sys.modules.get(module), name, None)


def _arguments(cls: type) -> list[str]:
    """List the constructor's arguments, with those that `**kwargs` passes on to a base."""
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
