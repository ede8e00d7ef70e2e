import inspect
from collections.abc import Callable
from typing import Any

import pytest

from prunelit.tasks.judges.inside.signatures import describe_signature, make_signature


def everything(a: int, /, b: str = "b", *c: float, d: None = None, **e: bytes) -> list[int]:
    raise NotImplementedError


def nothing(x, y=2):  # noqa: ANN
    raise NotImplementedError


@pytest.mark.parametrize("function", [everything, nothing])
def test_a_signature_is_made_as_it_was(function: Callable[..., Any]) -> None:
    assert make_signature(*describe_signature(function)) == inspect.signature(function)
