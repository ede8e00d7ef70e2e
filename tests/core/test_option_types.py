"""Types of options in words."""

import pytest

from prunelit.core.option_types import bases, literals, show_kinds, split_kinds

INT, TEXT, NOTHING = "<class 'int'>", "<class 'str'>", "<class 'NoneType'>"


def test_a_list_of_types_is_divided_at_its_own_commas() -> None:
    nested = "collections.abc.Callable[[int, str], dict[str, int]]"
    assert split_kinds(f"{nested}, typing.Literal['a', 'b'], {INT}") == [
        *(nested, "typing.Literal['a', 'b']", INT)
    ]


def test_values_and_classes_are_found_once() -> None:
    kinds = ["typing.Literal['a', 2]", INT, "<class 'x.y.Task'>", "<class 'z.Task'>"]
    assert literals(kinds) == ["'a'", "2"]
    assert bases(kinds) == ["Task"]


@pytest.mark.parametrize(
    ("kinds", "shown"),
    [
        ([INT, NOTHING], "int"),
        ([TEXT, "typing.Literal['a', 'b']"], "one of 'a', 'b' or str"),
        (["collections.abc.Sequence[int]", "list[str]"], "a list"),
        (["collections.abc.Callable[[str], str]"], "the path of a function or class"),
        (["<class 'prunelit.tasks.base.Task'>"], "`class_path` and `init_args` of a Task"),
        (["dict[str, prunelit.pruners.base.Pruner]"], "dict[str, Pruner]"),
        ([NOTHING], ""),
    ],
)
def test_types_in_words(kinds: list[str], shown: str) -> None:
    assert show_kinds(kinds) == shown
