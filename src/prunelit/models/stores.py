"""Stores: places where the weights of a block wait until something works on the block."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_ATTRIBUTE = "prunelit_store"


class Store(ABC):
    """Place where the weights of one block wait.

    `whole` calls `fetch` and `leave`; nothing else does.
    """

    def __init__(self) -> None:
        self._inside = 0
        self._edited = False

    @abstractmethod
    def fetch(self) -> None:
        """Bring the weights to where they are worked on."""

    @abstractmethod
    def leave(self, edited: bool) -> None:
        """Take the weights away again.

        Args:
            edited: keep the weights as they are now; False may forget a change.
        """

    def prefetch(self) -> None:
        """Begin to bring the weights; `fetch` comes soon. It changes no result."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Store":
        raise RuntimeError("A model whose blocks wait in a store cannot be copied.")

    @contextmanager
    def _whole(self, edited: bool) -> Iterator[None]:
        if not self._inside:
            self.fetch()
        self._inside += 1
        self._edited |= edited
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                edited, self._edited = self._edited, False
                self.leave(edited)


def keep_in(block: nn.Module, store: Store) -> None:
    """Let a store keep the weights of a block.

    Args:
        block: a decoder block; its views, which share its attributes, have the same store.
        store: of this block alone.
    """
    setattr(block, _ATTRIBUTE, store)


def store_of(block: nn.Module) -> Store | None:
    """Return the store of a block; None if its weights are always here."""
    return vars(block).get(_ATTRIBUTE)


@contextmanager
def whole(block: nn.Module, *, edited: bool = False) -> Iterator[None]:
    """Have the weights of a block here, within the context; it may be entered again inside.

    Does nothing for a block without a store.

    Args:
        block: a decoder block.
        edited: the weights are changed inside.
    """
    store = store_of(block)
    if store is None:
        yield
    else:
        with store._whole(edited):
            yield
