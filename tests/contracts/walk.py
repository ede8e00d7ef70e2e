"""Find the classes and functions of a room by walking its files, so that none is missed."""

import importlib
import inspect
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TypeVar

import prunelit

PACKAGE = Path(prunelit.__file__).parent

Kind = TypeVar("Kind")


def modules(room: str) -> list[ModuleType]:
    """Import the modules of a room such as `tasks.judges`, and of the rooms inside it."""
    folder = PACKAGE.joinpath(*room.split("."))
    files = [path.relative_to(PACKAGE) for path in sorted(folder.rglob("*.py"))]
    names = [path.parent if path.name == "__init__.py" else path.with_suffix("") for path in files]
    return [importlib.import_module(".".join(("prunelit", *name.parts))) for name in names]


def classes(room: str, base: type[Kind]) -> list[type[Kind]]:
    """List the classes of a room that derive from `base` and can be built.

    A class that lacks a method of its base is found too, unless another class builds on it.
    """
    found = [
        member
        for module in modules(room)
        for member in vars(module).values()
        if inspect.isclass(member)
        and issubclass(member, base)
        and member.__module__ == module.__name__
    ]
    bases = {base for member in found for base in member.__mro__[1:]}
    return [member for member in found if member not in bases or not inspect.isabstract(member)]


def formats() -> list[FunctionType]:
    """List the functions that turn one row of a data set into a question or an example."""
    return [
        member
        for module in modules("tasks.formats")
        for name, member in vars(module).items()
        if inspect.isfunction(member)
        and member.__module__ == module.__name__
        and list(inspect.signature(member).parameters) == ["row"]
        and not name.startswith("_")
    ]


def unexported(room: str, member: type | FunctionType) -> str | None:
    """Return an error sentence if a room does not export one of its names."""
    package = importlib.import_module(f"prunelit.{room}")
    name = member.__name__
    if name in package.__all__ and getattr(package, name) is member:
        return None
    return (
        f"`{name}` of {member.__module__} is not exported, so `prunelit.{room}.{name}` does not "
        f"work. Add two lines to src/prunelit/{room.replace('.', '/')}/__init__.py: "
        f"`from {member.__module__} import {name}`, and {name!r} in `__all__`."
    )
