"""Errors of the other interpreter: classes without its code, and what an error holds."""

import sys
from typing import Any

# What a standard error holds beside its arguments. `obj` of an AttributeError may be anything.
_DECODE = ("encoding", "object", "start", "end", "reason")
_FIELDS: dict[type[BaseException], tuple[str, ...]] = {
    SystemExit: ("code",),
    StopIteration: ("value",),
    ImportError: ("msg", "name", "path"),
    NameError: ("name",),
    AttributeError: ("name",),
    OSError: ("errno", "strerror", "filename", "filename2"),
    SyntaxError: ("msg", "filename", "lineno", "offset", "text", "end_lineno", "end_offset"),
    UnicodeEncodeError: _DECODE,
    UnicodeDecodeError: _DECODE,
    UnicodeTranslateError: _DECODE[1:],
}


def is_standard(module: str) -> bool:
    """Return whether a module belongs to the standard library."""
    return module.partition(".")[0] in sys.stdlib_module_names


def error_fields(error: BaseException) -> dict[str, Any]:
    """Return what an error holds beside its arguments, in the fields of its standard class."""
    names = (name for kind in _FIELDS if isinstance(error, kind) for name in _FIELDS[kind])
    values = {name: getattr(error, name, None) for name in names}
    return {name: value for name, value in values.items() if value is not None}


class ErrorKind(type):
    """Class of the errors of one class of the other interpreter, which makes them there."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if "_reference" in vars(cls):
            return vars(cls)["_reference"](*args, **kwargs)
        return super().__call__(*args, **kwargs)  # a class that derives from it here

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") or "_reference" not in vars(cls):
            raise AttributeError(name)
        return getattr(vars(cls)["_reference"], name)


class _Carried:
    """An error that is a copy, which asks its origin for its text and for what was not copied."""

    def __str__(self) -> str:
        origin = vars(self).get("_origin")
        return super().__str__() if origin is None else str(origin)

    def __repr__(self) -> str:
        origin = vars(self).get("_origin")
        return super().__repr__() if origin is None else repr(origin)

    def __getattr__(self, name: str) -> Any:
        origin = vars(self).get("_origin")
        if origin is None or name.startswith("__"):
            raise AttributeError(name)
        return getattr(origin, name)


def error_class(name: str, kind: type[BaseException], reference: Any) -> Any:
    """Return a class for errors of the other interpreter.

    Args:
        name: of their class.
        kind: the class that it derives from.
        reference: their class in the other interpreter.
    """
    bases = (kind,) if isinstance(kind, ErrorKind) else (_Carried, kind)
    return ErrorKind(name, bases, {"_reference": reference})


def find_reference(value: Any) -> Any:
    """Return the object that an error, or a class of errors, stands for; None if for none."""
    if isinstance(value, ErrorKind):
        return vars(value).get("_reference")
    return vars(value).get("_origin") if isinstance(type(value), ErrorKind) else None
