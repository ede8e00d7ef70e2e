"""Containers that the program holds and the tests read: a change by the tests is written back."""

import json
import sys
from array import array
from collections.abc import Iterator
from operator import gt, is_
from typing import Any

from prunelit.tasks.judges.inside.plain import Exchange

# Calls whose answer is something that the program holds.
SHARING = {"__getattr__", "__getitem__", "look up"}
_MOST = 64  # at the same time
_WORK = 3_000_000  # items of a share that are looked at, to see changes


class Share:
    """Containers of one answer, at one end.

    Args:
        exchange: that carried them. It is used again, so that they are changed in place.
        first: number of the first of them.
    """

    def __init__(self, exchange: Exchange, first: int) -> None:
        self._exchange, self._containers = exchange, tuple(exchange.containers[first:])

    def pack(self) -> str:
        """Return the containers as they are now."""
        return json.dumps(self._exchange.pack(self._containers))

    def take(self, text: str) -> None:
        """Make the containers what the other end has packed."""
        self._exchange.unpack(json.loads(text))


class Watched(Share):
    """Containers that the tests may change. Nobody holds them yet."""

    def __init__(self, exchange: Exchange, first: int) -> None:
        super().__init__(exchange, first)
        self._first, self._work = first, _WORK
        self._items = self._read()
        self._counts = self._count()

    def has_changed(self) -> bool:
        """Return whether the containers have other items than the last time."""
        before, self._items = self._items, self._read()
        self._work -= sum(map(len, before))
        return [*map(len, before)] != [*map(len, self._items)] or not all(
            all(map(is_, old, new)) for old, new in zip(before, self._items, strict=True)
        )

    @property
    def is_held(self) -> bool:
        return any(map(gt, self._count(), self._counts))

    @property
    def is_cheap(self) -> bool:
        return self._work > 0

    def _read(self) -> list[Any]:
        """Return the items of all containers, also of those that the tests have put into them."""
        return [_items(container) for container in self._exchange.containers[self._first :]]

    def _count(self) -> list[int]:
        """Return how often each container is held."""
        return [sys.getrefcount(container) for container in self._containers]


def _items(container: Any) -> Any:
    if isinstance(container, (array, bytearray)):
        return bytes(container)
    if isinstance(container, dict):
        return [*container, *container.values()]
    return [*container]


class Shares:
    """Numbered shares, in the same order at both ends."""

    def __init__(self, kind: type[Share]) -> None:
        self._kind, self._made = kind, 0
        self._shares: dict[int, Any] = {}

    def __getitem__(self, number: int) -> Any:
        return self._shares[number]

    def __iter__(self) -> Iterator[int]:
        return iter([*self._shares])

    def add(self, method: str, exchange: Exchange, first: int) -> None:
        """Keep the containers of an answer, if there are any."""
        if method in SHARING and len(exchange.containers) > first:
            self._shares[self._made] = self._kind(exchange, first)
            self._made += 1

    def drop(self, number: int) -> None:
        """Forget one."""
        self._shares.pop(number, None)

    @property
    def are_many(self) -> bool:
        return len(self._shares) > _MOST
