"""Copies of errors in the other interpreter."""

from typing import Any

import pytest

from prunelit.tasks.judges.inside.errors import error_class, error_fields, find_reference


def test_fields_are_those_of_the_standard_class() -> None:
    with pytest.raises(UnicodeDecodeError) as found:
        b"\xff".decode()
    assert error_fields(found.value)["start"] == 0
    assert error_fields(SystemExit(3)) == {"code": 3}
    assert error_fields(OSError(2, "no")) == {"errno": 2, "strerror": "no"}
    assert error_fields(AttributeError("x", obj=[1])) == {}
    assert error_fields(ValueError("x")) == {}


class Origin:
    code = 5

    def __str__(self) -> str:
        return "its text"


def test_an_error_asks_its_origin() -> None:
    made: list[Any] = []
    kind = error_class("Mine", KeyError, made.append)
    kind("x")
    assert made == ["x"]  # by the other interpreter
    error = kind.__new__(kind, "x")
    assert str(error) == "'x'"
    assert find_reference(error) is None
    error._origin = Origin()
    assert (str(error), error.code) == ("its text", 5)
    assert find_reference(error) is error._origin
    assert find_reference(kind) == made.append
    with pytest.raises(AttributeError):
        _ = error.missing
    derived = type(kind)("Derived", (kind,), {})
    assert derived("y").args == ("y",)
    assert find_reference(derived) is None
    assert find_reference(KeyError()) is None
