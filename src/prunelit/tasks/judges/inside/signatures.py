"""Signatures of functions and fields of data classes as plain values.

`inspect` and `dataclasses` are slow to read, so this happens only if a test needs them.
"""

from typing import Any

_KINDS = (
    "POSITIONAL_ONLY",
    "POSITIONAL_OR_KEYWORD",
    "VAR_POSITIONAL",
    "KEYWORD_ONLY",
    "VAR_KEYWORD",
)


def describe_signature(function: Any) -> list[Any]:
    """Return the parameters of a function, and the annotation of what it returns.

    Raises:
        ValueError: if it has no signature.
        TypeError: if it is no function.
    """
    import inspect

    kinds = [getattr(inspect.Parameter, kind) for kind in _KINDS]
    found = inspect.signature(function)

    def given(thing: Any, *names: str) -> dict[str, Any]:
        values = {name: getattr(thing, name) for name in names}
        return {name: value for name, value in values.items() if value is not found.empty}

    parameters = [
        [one.name, kinds.index(one.kind), given(one, "default", "annotation")]
        for one in found.parameters.values()
    ]
    return [parameters, given(found, "return_annotation")]


def make_signature(parameters: list[Any], returns: dict[str, Any]) -> Any:
    """Return the signature that was described."""
    import inspect

    kinds = [getattr(inspect.Parameter, kind) for kind in _KINDS]
    return inspect.Signature(
        [inspect.Parameter(name, kinds[kind], **given) for name, kind, given in parameters],
        **returns,
    )


def describe_fields(value: Any) -> list[str]:
    """Return the names of the fields of a data class, or of its object.

    Raises:
        TypeError: if it is none.
    """
    import dataclasses

    return [one.name for one in dataclasses.fields(value)]


def make_fields(names: list[str]) -> dict[str, Any]:
    """Return the fields of a data class with these names, as `dataclasses` keeps them."""
    import dataclasses

    return dataclasses.make_dataclass("Fields", names).__dataclass_fields__
