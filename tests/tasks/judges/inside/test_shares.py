"""Containers that are watched for changes."""

from array import array
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from prunelit.tasks.judges.inside.plain import Exchange
from prunelit.tasks.judges.inside.shares import Watched


def watch(value: Any) -> tuple[Watched, Exchange]:
    def none(*_: Any) -> Any:
        raise TypeError

    sender, receiver = (Exchange(none, none, lambda _: False) for _ in range(2))
    receiver.unpack(sender.pack([value]))
    return Watched(receiver, 1), receiver


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ([10**20, "text", None], lambda x: x.append(1)),
        ([[], []], lambda x: x[1].append(1)),
        ([([],)], lambda x: x[0][0].append(1)),
        ([2, 1], lambda x: x.sort()),
        ({"a": 1}, lambda x: x.update(a=2)),
        ({1, 2}, lambda x: x.pop()),
        (deque([1, 2], 2), lambda x: x.append(3)),
        (array("d", [1.5]), lambda x: x.append(2.5)),
        (bytearray(b"ab"), lambda x: x.reverse()),
    ],
)
def test_a_change_is_seen_once_and_held_only_by_others(
    value: Any, change: Callable[[Any], None]
) -> None:
    share, exchange = watch(value)
    assert not share.has_changed()
    assert not share.is_held
    held = exchange.containers[1]
    assert share.is_held
    assert not share.has_changed()
    change(held)
    assert share.has_changed()
    assert not share.has_changed()
    assert share.is_cheap
    del held
    assert not share.is_held
