"""Plain data that says how an object was built, in the form that a YAML file has.

Internal: nothing here is public.
"""

import ast
import functools
import hashlib
import inspect
import json
import os
import sys
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from prunelit.errors import InputError, is_library

# Parts of a run's recipe that say where something was. Its content is in other parts.
_PLACES = (("model", "source"), ("training", "text", "init_args", "path"))
# The hashes of all weights, which only some runs compute.
_ON_REQUEST = ("model", "full")
_MOST_NAMED = 4
_LONGEST_VALUE = 40


def describe(value: Any) -> Any:
    """Return plain data that rebuilds `value`: `{class_path, init_args}` for an object.

    Plain values stay as they are. A function becomes the path it is imported by. An object must
    store each constructor argument in an attribute of the same name (the scikit-learn convention).
    Classes of a user then need no registry. Their recipe has the hash of their file too, see
    `describe_code`; a function of a user becomes `{function, code_sha256}`.

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
        path, code = public_path(value), describe_code(value)
        return {"function": path, **code} if code else path
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
    for name in arguments_of(cls):
        if name not in getattr(value, "__dict__", {}):
            raise InputError(
                f"Expected {cls.__qualname__} to store its argument `{name}` as `self.{name}` "
                "for its recipe: add that line to its constructor."
            )
        arguments[name] = describe(vars(value)[name])
    return {"class_path": public_path(cls), "init_args": arguments, **describe_code(cls)}


@functools.cache
def describe_code(target: Any) -> dict[str, str | None]:
    """Return `{code_sha256: hash}` for a class or a function of a user; `{}` for any other one.

    The hash is that of the file which defines it, of those of the classes that it builds on, and of
    the files of the user that one of these imports, in turn. It is read once a process, as Python
    reads the files. Code that is in no file has the hash None, and a sentence says so.

    Args:
        target: a class or a function.

    Example:
        >>> from prunelit.pruners import Wanda
        >>> from prunelit.recipe import describe_code
        >>> describe_code(Wanda)
        {}
    """
    files = [_find_file(part) for part in getattr(target, "__mro__", (target,))]
    own = list(dict.fromkeys(file for file in files if file is None or not is_library(file)))
    if not own:
        return {}
    if None in own:
        rank_zero_warn(
            f"The code of `{public_path(target)}` is in no file: a change of it is not noticed. "
            "Write it into a file, or remove what it produced when you change it."
        )
        return {"code_sha256": None}
    found = [file for file in own if file is not None]
    for file in found:  # it grows
        found += [one for one in _find_imports(file) if one not in found]
    digest = hashlib.sha256()
    for file in found:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return {"code_sha256": digest.hexdigest()}


def _find_imports(file: Path) -> list[Path]:
    """Find the files of the user that a file imports, wherever in it, in order."""
    package = next(
        (
            module.__spec__.parent
            for module in list(sys.modules.values())
            if getattr(module, "__file__", None) == str(file) and module.__spec__ is not None
        ),
        "",
    )
    try:
        nodes = [*ast.walk(ast.parse(file.read_bytes()))]
    except (SyntaxError, ValueError):  # a compiled file
        return []
    names: list[str] = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            home = resolve_name("." * node.level + (node.module or ""), package)
            names += [home, *(f"{home}.{alias.name}" for alias in node.names)]
    origins = [_find_origin(name) for name in dict.fromkeys(names)]
    return list(dict.fromkeys(one for one in origins if one and not is_library(one)))


def _find_origin(name: str) -> Path | None:
    """Find the file of a module; None if there is none, or if it is not in Python."""
    if name.partition(".")[0] in sys.stdlib_module_names:
        return None
    try:
        spec = find_spec(name)
    except (ImportError, AttributeError, ValueError):  # a name in a module that is no package
        return None
    origin = None if spec is None else spec.origin
    return Path(origin) if origin and origin.endswith(".py") and Path(origin).is_file() else None


def _find_file(part: Any) -> Path | None:
    """Find the file that defines a class or function; None if there is none.

    Code that Python or a compiled library brings is in the file of its module.
    """
    name = str(getattr(getattr(part, "__objclass__", part), "__module__", None) or "builtins")
    if name.partition(".")[0] in sys.stdlib_module_names - {"__main__"}:
        return Path(os.__file__)
    try:
        found = inspect.getsourcefile(part)
    except (TypeError, OSError):  # code that was typed, or that a library compiled
        found = None
    found = found or getattr(sys.modules.get(name), "__file__", None)
    return Path(found).absolute() if found is not None and os.path.isfile(found) else None


def check_own(name: str, function: Any) -> None:
    """Refuse a function that is neither prunelit's nor from a file of the user.

    A configuration names functions that are called with the text of a model. A function such as
    `os.system` would run it.

    Args:
        name: of the option, for the error.
        function: a function, or an object that can be called. Methods of `str` are allowed.

    Raises:
        InputError: naming the function and the option.
    """
    if getattr(function, "__objclass__", None) is str:
        return
    module = str(getattr(function, "__module__", None) or "builtins")
    top = module.partition(".")[0]
    if top in ("prunelit", "__main__"):
        return
    called = getattr(function, "__qualname__", type(function).__qualname__)
    file = getattr(sys.modules.get(module), "__file__", None)
    installed = {sysconfig.get_path(key) for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    # A module without a file is a notebook or a built-in one, which is in the list.
    if top in sys.stdlib_module_names or (
        file is not None
        and any(Path(file).resolve().is_relative_to(Path(path).resolve()) for path in installed)
    ):
        raise InputError(
            f"Expected `{name}` to be a function of prunelit or of a file of your own but got "
            f"'{module}.{called}': write a function that calls it."
        )


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


def find_differences(mine: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Find the keys in which two recipes differ. Paths do not count, as their content does.

    Args:
        mine: recipe of this run.
        other: a recipe that was stored; None is an empty one.

    Returns:
        Both values of each such key; None for a key that a recipe lacks. The level `init_args` is
        left out of the keys.

    Example:
        >>> from prunelit.recipe import find_differences
        >>> find_differences({"pruner": {"ratio": 0.3}}, {"pruner": {"ratio": 0.5}})
        {'pruner.ratio': (0.3, 0.5)}
    """
    pair = [json.loads(json.dumps(_deciding(recipe or {}))) for recipe in (mine, other)]
    full = [_find(recipe, _ON_REQUEST) for recipe in (mine, other)]
    found = dict(_differing("", *pair))
    return found | dict(_differing("model.full", *full) if None not in full else ())


def tell_differences(mine: Any, other: Any) -> str:
    """Name the first keys in which two recipes differ, each with both values.

    Args:
        mine: recipe of this run.
        other: a recipe that was stored; None is an empty one.

    Example:
        >>> from prunelit.recipe import tell_differences
        >>> tell_differences({"pruner": {"ratio": 0.3}}, {"pruner": {"ratio": 0.5}})
        'pruner.ratio: 0.3 now, 0.5 there'
    """
    found = find_differences(mine, other)
    named = [f"{key}: {' now, '.join(_show(*values))} there" for key, values in found.items()]
    more = len(named) - _MOST_NAMED
    return "; ".join([*named[:_MOST_NAMED], *([f"and {more} more keys"] if more > 0 else [])])


def recipe_id(recipe: Any) -> str:
    """Return 8 hexadecimal digits that are equal for recipes without a difference.

    Example:
        >>> from prunelit.recipe import recipe_id
        >>> recipe_id({"model": {"source": "here"}}) == recipe_id({"model": {"source": "there"}})
        True
    """
    text = json.dumps(_deciding(recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _deciding(recipe: Any) -> Any:
    """Leave out the parts of a recipe that decide nothing."""
    for path in (*_PLACES, _ON_REQUEST):
        recipe = _without(recipe, path)
    return recipe


def _without(value: Any, path: tuple[str, ...]) -> Any:
    if not isinstance(value, Mapping) or path[0] not in value:
        return value
    rest = {key: item for key, item in value.items() if key != path[0]}
    return rest if len(path) == 1 else {**rest, path[0]: _without(value[path[0]], path[1:])}


def _find(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _differing(key: str, mine: Any, other: Any) -> list[tuple[str, tuple[Any, Any]]]:
    if mine == other:
        return []
    both = isinstance(mine, dict) and isinstance(other, dict)
    if not both or mine.get("class_path") != other.get("class_path"):
        return [(key, (mine, other))]
    return [
        found
        for name in dict.fromkeys([*mine, *other])
        for found in _differing(
            key if name == "init_args" else f"{key}.{name}".lstrip("."),
            mine.get(name),
            other.get(name),
        )
    ]


def _show(mine: Any, other: Any) -> tuple[str, str]:
    shown = _short(mine), _short(other)
    return shown if shown[0] != shown[1] else (str(mine), str(other))


def _short(value: Any) -> str:
    """Show a value; an object of a recipe by its name."""
    if isinstance(value, dict) and "class_path" in value:
        return value["class_path"].rpartition(".")[2]
    text = "nothing" if value is None else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _attribute(module: str, name: str) -> Any:
    """Return an attribute of an imported module; None if there is none."""
    return getattr(sys.modules.get(module), name, None)


def arguments_of(cls: type) -> list[str]:
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
