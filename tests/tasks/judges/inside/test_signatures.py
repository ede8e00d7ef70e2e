import inspect
from collections.abc import Callable
from typing import Any

import pytest

from prunelit.tasks.judges.inside.signatures import (
    describe_fields,
    describe_signature,
    make_fields,
    make_signature,
)
from prunelit.tasks.judges.sandbox import Limits


def everything(a: int, /, b: str = "b", *c: float, d: None = None, **e: bytes) -> list[int]:
    raise NotImplementedError


def nothing(x, y=2):
    raise NotImplementedError


@pytest.mark.parametrize("function", [everything, nothing])
def test_a_signature_is_made_as_it_was(function: Callable[..., Any]) -> None:
    assert make_signature(*describe_signature(function)) == inspect.signature(function)


def test_fields_are_known_by_their_names() -> None:
    names = describe_fields(Limits)
    assert names[:2] == ["cpu_seconds", "seconds"]
    assert list(make_fields(names)) == names == describe_fields(Limits())
    with pytest.raises(TypeError):
        describe_fields(3)
