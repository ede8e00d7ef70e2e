"""Values that go from one interpreter to the other as plain data."""

import datetime
import enum
import json
import re
import time
import uuid
from array import array
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any

import pytest

from prunelit.tasks.judges.inside.plain import Exchange


def refuse(data: Any, _: Any) -> Any:
    raise TypeError(f"no plain value: {data!r}")


def exchange() -> Exchange:
    return Exchange(refuse, refuse, lambda _: False)


def send(value: Any) -> Any:
    return exchange().unpack(json.loads(json.dumps(exchange().pack(value))))


VALUES = [
    *(None, True, 0, -7, 2**63, -(10**4000), 0.1, -0.0, 1e309, "", "é\ud800\0", b"\0\xff", 1j),
    *([], [1, [2, "3"]], (1,), ((), []), {}, {(1, "a"): [None]}, {1: 1, 2.5: 2, "1": 3}),
    *({1, "a", (2,)}, frozenset({1}), bytearray(b"ab"), range(3, 9, 2), slice(1, None), ..., int),
    *(deque([1, 2]), Counter("aab"), OrderedDict([(2, 1), (1, 2)]), defaultdict(list, {1: [2]})),
    *(Fraction(1, 3), Decimal("0.10"), datetime.date(2024, 2, 29), datetime.timedelta(1, 2, 3)),
    *(datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.timezone.utc), datetime.time(1, 2)),
    *(array("i", [1, 2]), array("u", "ab"), deque([1, 2], 2), defaultdict(int, {1: 2})),
    *(re.compile("a", re.I), uuid.UUID(int=5), PurePosixPath("a/b"), time.gmtime(0)),
    *(["int", "0x1"], ["same", 0], ["object", 1, 2]),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_arrives_as_it_was(value: Any) -> None:
    found = send(value)
    assert type(found) is type(value)
    assert found == value
    assert repr(found)[:99] == repr(value)[:99] or isinstance(value, (set, defaultdict))


def test_floats_that_are_no_numbers_and_views_arrive() -> None:
    assert str(send(float("nan"))) == "nan"
    assert send({1: 2}.keys()) == {1}
    assert list(send({1: 2, 3: 2}.values())) == [2, 2]
    assert send({1: 2}.items()) == {(1, 2)}


def test_what_a_container_has_beside_its_items_arrives() -> None:
    assert send(deque([1], 3)).maxlen == 3
    assert send(defaultdict(int))["missing"] == 0
    assert send(array("d", [1])).typecode == "d"


class Pair(namedtuple("Pair", "x y")):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = tuple.__hash__


def test_a_named_tuple_arrives_without_its_code() -> None:
    found = send([Pair(1, [2]), Pair(3, 4)])
    assert found == [(1, [2]), (3, 4)]
    assert found[0].y == [2]
    assert found[0] != (1, 2)
    assert type(found[0]) is type(found[1])
    assert (type(found[0]).__name__, found[0]._fields) == ("Pair", ("x", "y"))


class Everything(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class Full(list[int]):
    def __iter__(self) -> Any:
        return iter([1, 2, 3])

    def __eq__(self, other: object) -> bool:
        return True


class Colour(str, enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Everything(1), 1),
        (Full([4]), [4]),
        (Colour.RED, "red"),
        (enum.IntEnum("Size", "SMALL")["SMALL"], 1),
        (type("Table", (dict,), {"__eq__": lambda *_: True})({1: 2}), {1: 2}),
    ],
)
def test_an_object_arrives_as_the_plain_value_that_it_holds(value: Any, plain: Any) -> None:
    found = send(value)
    assert type(found) is type(plain)
    assert found == plain
    assert not found == "anything"  # noqa: SIM201 - `!=` is another method


def test_containers_of_an_answer_are_those_of_the_call() -> None:
    ours, theirs = exchange(), exchange()
    inner: list[Any] = [1]
    call = [inner, {"a": inner}, {5}]
    theirs_inner, table, numbers = theirs.unpack(ours.pack(call))
    assert table["a"] is theirs_inner
    theirs_inner[:] = [2, theirs_inner]
    table["b"] = numbers
    numbers.clear()
    answer = ours.unpack(theirs.pack([theirs_inner, [theirs_inner, table, numbers]]))
    assert answer[0] is inner
    assert (inner[0], inner[1]) == (2, inner)
    assert call[1] == {"a": inner, "b": set()}
    assert call[1]["b"] is call[2]


@pytest.mark.parametrize(
    "data",
    [
        ["same", 0],
        ["list", 7, []],
        ["made", "os.system", ["true"]],
        ["constant", "exit"],
        ["error", ["SystemExit"], 0],
        ["nothing"],
        [],
    ],
)
def test_data_that_nobody_sends_makes_nothing(data: Any) -> None:
    with pytest.raises((TypeError, LookupError)):
        exchange().unpack(data)
