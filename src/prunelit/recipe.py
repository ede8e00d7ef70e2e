"""What an object was built from, as plain data: the form in which it stands in a YAML file."""

import inspect
from typing import Any

from prunelit.errors import InputError


def describe(value: Any) -> Any:
    """Plain data that rebuilds `value`: `{class_path, init_args}` for an object, itself otherwise.

    An object keeps each constructor argument under an attribute of the same name (the scikit-learn
    estimator convention), so that any pruner, a user's own too, can be described without a
    registry.

    Raises:
        InputError: if an argument was not kept under its name.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    cls = type(value)
    arguments = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name not in vars(value):
            raise InputError(
                f"Expected {cls.__qualname__} to keep its argument `{name}` as `self.{name}`, so "
                "that its recipe can be written down."
            )
        arguments[name] = describe(vars(value)[name])
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": arguments}
