"""Signatures of functions as plain values. `inspect` is read only if a test needs it."""

from typing import Any


def describe_signature(function: Any) -> list[Any]:
    """Return the parameters of a function, and the annotation of what it returns.

    Raises:
        ValueError: if it has no signature.
        TypeError: if it is no function.
    """
    import inspect

    kinds = [*inspect._ParameterKind]
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

    kinds = [*inspect._ParameterKind]
    return inspect.Signature(
        [inspect.Parameter(name, kinds[kind], **given) for name, kind, given in parameters],
        **returns,
    )
