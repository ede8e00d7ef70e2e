import functools
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from prunelit.errors import InputError
from prunelit.pruners import Wanda
from prunelit.recipe import describe
from prunelit.sparsity import SemiStructured, Unstructured

DESCRIBED = {
    "class_path": "prunelit.pruners.Wanda",
    "init_args": {
        "sparsity": {
            "class_path": "prunelit.sparsity.SemiStructured",
            "init_args": {"keep": 2, "group": 4},
        },
        "include": ["mlp.*"],
        "exclude": [],
        "ratios": None,
        "allocation": None,
        "variant": False,
    },
}


class Forgetful:
    def __init__(self, damping: float) -> None:
        self.lost = damping


class Open:
    def __init__(self, first: int, *rest: int, **options: int) -> None:
        self.first = first


def rebuild(data: Any) -> Any:
    if isinstance(data, dict) and "class_path" in data:
        module, name = data["class_path"].rsplit(".", 1)
        arguments = {key: rebuild(value) for key, value in data["init_args"].items()}
        return getattr(importlib.import_module(module), name)(**arguments)
    return data


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "text"])
def test_plain_values_stay_themselves(value: object) -> None:
    assert describe(value) is value


def test_containers_become_lists_and_string_keys() -> None:
    assert describe({1: (0.5, [None])}) == {"1": [0.5, [None]]}


def test_nested_object() -> None:
    assert describe(Wanda(SemiStructured(2, 4), include=("mlp.*",))) == DESCRIBED


@pytest.mark.parametrize(
    "pruner", [Wanda(Unstructured(0.3)), Wanda(SemiStructured(4, 8), include=["*"])]
)
def test_description_survives_json_and_rebuilds_the_object(pruner: Wanda) -> None:
    read_back = json.loads(json.dumps(describe(pruner)))
    assert read_back == describe(pruner)
    assert describe(rebuild(read_back)) == describe(pruner)


def test_different_arguments_give_different_recipes() -> None:
    assert describe(Wanda(Unstructured(0.3))) != describe(Wanda(Unstructured(0.4)))
    assert describe(Wanda(Unstructured(0.3))) != describe(Wanda(Unstructured(0.3), exclude=["*a"]))


def test_argument_that_was_not_kept_is_named() -> None:
    with pytest.raises(InputError, match=r"Forgetful to keep its argument `damping`"):
        describe(Forgetful(0.1))
    with pytest.raises(InputError, match="Forgetful"):
        describe({"pruner": [Forgetful(0.1)]})


def test_open_ended_arguments_are_left_out() -> None:
    assert describe(Open(1, 2, option=3))["init_args"] == {"first": 1}


class Passing(Wanda):
    def __init__(self, *args: Any, alpha: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alpha = alpha


class Bare:
    pass


def test_arguments_passed_on_to_a_base_are_kept() -> None:
    described = describe(Passing(Unstructured(0.5), alpha=2.0))
    assert described["init_args"]["alpha"] == 2.0
    assert described["init_args"]["sparsity"] == describe(Unstructured(0.5))
    assert described != describe(Passing(Unstructured(0.1), alpha=2.0))


def test_paths_are_their_text() -> None:
    assert describe(Path("a") / "b") == "a/b"


def test_an_object_without_arguments() -> None:
    assert describe(Bare())["init_args"] == {}


def test_a_function_is_given_by_its_path() -> None:
    assert describe(rebuild) == f"{__name__}.rebuild"
    assert describe({"a": [describe]}) == {"a": ["prunelit.recipe.describe"]}


def test_a_function_that_cannot_be_imported_is_refused() -> None:
    def local() -> None: ...

    for function in (lambda: None, local):
        with pytest.raises(InputError, match="Expected a function that can be imported but got"):
            describe(function)


def test_functions_of_the_interpreter_are_told_apart() -> None:
    assert describe(str.lower) == "builtins.str.lower"
    assert describe(len) == "builtins.len"
    with pytest.raises(InputError, match=r"got a `functools.partial`"):
        describe(functools.partial(int, base=2))
    with pytest.raises(InputError, match="can be imported"):
        describe("x".lower)
