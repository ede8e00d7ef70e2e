"""Arguments checked against annotations."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from prunelit import CalibrationText, InputError
from prunelit.arguments import Checked, checked
from prunelit.sparsity import Ratio, Unstructured


@checked
def call(
    path: str = "",
    name: str = "",
    count: int = 0,
    share: float = 0.0,
    open: bool = False,
    kind: Literal["a", "b"] | None = None,
    names: Sequence[str] = (),
    lines: Iterable[str] = (),
    table: Mapping[str, int] = {},
    function: Callable[[str], str] = str.lower,
    ratio: Ratio = 0.5,  # type: ignore[valid-type]
    anything: Any = None,
) -> str:
    return "called"


@pytest.mark.parametrize(
    "right",
    [
        {"path": Path("a"), "count": 2, "share": 2, "open": True, "kind": "a", "names": ["a"]},
        {"names": ("a",), "lines": iter("ab"), "table": {"a": 1}, "function": len, "ratio": 0.25},
        {"kind": None, "share": float("nan"), "anything": object()},
        {"count": np.int64(2), "share": np.float32(0.5), "open": np.True_, "kind": np.str_("a")},
        {"ratio": np.float32(0.5), "names": (np.str_("a"),), "table": {np.str_("a"): np.int8(1)}},
    ],
)
def test_right_arguments(right: dict[str, Any]) -> None:
    assert call(**right) == "called"


@pytest.mark.parametrize(
    ("name", "wrong", "expected"),
    [
        ("path", 3, "str"),
        ("name", Path("a"), "str"),
        ("count", 0.5, "int"),
        ("count", True, "int"),
        ("share", "1", "float"),
        ("open", 1, "bool"),
        ("kind", "c", "'a' or 'b' or None"),
        ("names", "text", "collections.abc.Sequence"),
        ("names", [1], "collections.abc.Sequence"),
        ("lines", 3, "collections.abc.Iterable"),
        ("table", {"a": "b"}, "collections.abc.Mapping"),
        ("function", "lower", "collections.abc.Callable"),
        ("ratio", "half", "Ratio"),
    ],
)
def test_wrong_arguments(name: str, wrong: Any, expected: str) -> None:
    with pytest.raises(InputError, match=f"`{name}` of call as {expected}.* but got"):
        call(**{name: wrong})


def test_numbers_of_numpy_become_those_of_python() -> None:
    @checked
    def give(one: int, several: list[float], table: dict[str, list[int]]) -> list[Any]:
        return [one, *several, *table["a"]]

    found = give(np.int64(1), [np.float32(0.5), 2], {"a": [np.uint8(3)]})  # type: ignore[arg-type]
    assert found == [1, 0.5, 2, 3]
    assert [type(value) for value in found] == [int, float, int, int]
    same = [1.0, 2.0]
    assert checked(lambda several: several)(same) is same
    assert json.dumps(Unstructured(np.float32(0.5)).ratio) == "0.5"
    assert CalibrationText("text.jsonl", sequences=np.int64(4)).sequences == 4  # type: ignore[arg-type]


def test_a_wrong_call_is_a_type_error_as_for_any_function() -> None:
    with pytest.raises(TypeError, match="unknown"):
        call(unknown=3)  # type: ignore[call-arg]


def test_a_constructor_that_says_more_is_heard() -> None:
    class Own(Checked):
        def __init__(self, count: int) -> None:
            if count == "many":
                raise InputError("many are too many")

    Own.__init__ = checked(Own.__init__)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="many are too many"):
        Own("many")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`count` of Own as int but got None"):
        Own(None)  # type: ignore[arg-type]


def test_a_class_of_the_user_is_not_checked() -> None:
    class Own(Checked):
        def __init__(self, count: int) -> None:
            self.count = count

    assert Own("many").count == "many"  # type: ignore[arg-type]
