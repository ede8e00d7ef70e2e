"""Iterators that call a function: a StopIteration of the program ends none without a word.

`all(map(f, numbers))` is true if `f` raises StopIteration at once. A generator makes a RuntimeError
of it; so do these.
"""

import builtins
import itertools
from typing import Any

_CALLING = {
    builtins: ("map", "filter"),
    itertools: ("accumulate", "dropwhile", "filterfalse", "groupby", "starmap", "takewhile"),
}
_iter = iter


def replace_iterators() -> None:
    """Replace `map`, `filter`, `iter` and those of `itertools` in this interpreter."""
    for module, kinds in _CALLING.items():
        for name in kinds:
            setattr(module, name, raise_the_end(getattr(module, name)))
    builtins.iter = iter_or_call


def raise_the_end(kind: Any) -> Any:
    """Return a class of iterators that raises an error if a call of the program ends it."""

    def follow(self: Any) -> Any:
        try:
            return kind.__next__(self)
        except StopIteration as error:
            if "from_the_other" in vars(error):
                raise RuntimeError("the program raised StopIteration") from error
            raise

    return type(kind.__name__, (kind,), {"__next__": follow})


def iter_or_call(*args: Any) -> Any:
    """Do what `iter` does."""
    return _call_until(*args) if len(args) == 2 else _iter(*args)


def _call_until(function: Any, sentinel: Any) -> Any:
    while True:
        try:
            value = function()
        except StopIteration as error:
            if "from_the_other" in vars(error):
                raise  # which a generator makes an error
            return
        if value == sentinel:
            return
        yield value
