"""Iterators that call a function which ends too early."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from prunelit.tasks.judges.inside.iterators import iter_or_call, raise_the_end


def end(*_: Any) -> Any:
    error = StopIteration()
    error.from_the_other = True  # pyright: ignore[reportAttributeAccessIssue]
    raise error


CALLS: list[Callable[[Any], Any]] = [
    lambda f: raise_the_end(map)(f, [1]),
    lambda f: raise_the_end(filter)(f, [1]),
    lambda f: raise_the_end(itertools.starmap)(f, [(1,)]),
    lambda f: raise_the_end(itertools.groupby)([1], f),
    lambda f: raise_the_end(itertools.takewhile)(f, [1]),
    lambda f: iter_or_call(f, None),
]


@pytest.mark.parametrize("call", CALLS)
def test_an_end_by_the_program_is_an_error(call: Callable[[Any], Any]) -> None:
    with pytest.raises(RuntimeError):
        list(call(end))


def test_other_ends_are_as_ever() -> None:
    kind = raise_the_end(map)
    assert list(kind(str, [1, 2])) == ["1", "2"]
    assert issubclass(kind, map)
    numbers = iter([1, 2, 3])
    assert list(iter_or_call(lambda: next(numbers), 3)) == [1, 2]
    assert list(iter_or_call(lambda: next(numbers), 9)) == []
    assert list(iter_or_call([1])) == [1]
