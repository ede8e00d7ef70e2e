import functools
import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import prunelit.callbacks
import prunelit.pruners
import prunelit.tasks.formats
import prunelit.tasks.judges
from prunelit.errors import InputError
from prunelit.pruners import Magnitude, Wanda
from prunelit.recipe import (
    describe,
    describe_code,
    find_differences,
    public_path,
    recipe_id,
    tell_differences,
)
from prunelit.schedule import Linear
from prunelit.sparsity import SemiStructured, Unstructured
from prunelit.tasks.formats.base import read_examples
from prunelit.tasks.judges import AfterMarker, ExactMatch, Execution

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
        "expert_tokens": 32,
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
    with pytest.raises(InputError, match=r"Forgetful to store its argument `damping`"):
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
    assert describe(rebuild)["function"] == f"{__name__}.rebuild"
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


SHELF = """
class Shelf:
    class Board:
        def __init__(self, width: int = 1) -> None:
            self.width = width

    def __init__(self, height: int) -> None:
        self.height = height


def measure() -> None: ...
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """`package({path: content})` writes the files of a user's package `shop` and imports it."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.split(".")[0] == "shop"]:
            del sys.modules[name]

    monkeypatch.syspath_prepend(tmp_path)
    versions = iter(range(9))

    def write(files: dict[str, str]) -> Any:
        forget()
        folder = tmp_path / "shop"
        if folder.exists():
            folder.rename(tmp_path / f"before{next(versions)}")
        for path, content in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(content)
        importlib.invalidate_caches()
        return importlib.import_module("shop")

    yield write
    forget()


def test_a_recipe_does_not_change_when_a_file_moves(package: Callable[..., Any]) -> None:
    recipes = []
    for file in ("a.py", "inside/deeper/b.py", "_private/c.py"):
        module = file.removesuffix(".py").replace("/", ".")
        shop = package({"__init__.py": f"from shop.{module} import Shelf, measure", file: SHELF})
        recipes.append(describe([shop.Shelf(2), shop.Shelf.Board(3), shop.measure]))
    content = hashlib.sha256(hashlib.sha256(SHELF.encode()).digest()).hexdigest()
    code = {"code_sha256": content}
    assert recipes[0] == [
        {"class_path": "shop.Shelf", "init_args": {"height": 2}, **code},
        {"class_path": "shop.Shelf.Board", "init_args": {"width": 3}, **code},
        {"function": "shop.measure", **code},
    ]
    assert recipes[1:] == [recipes[0]] * 2


@pytest.mark.parametrize("changed", ["a.py", "b.py"])
def test_a_changed_file_of_ones_own_changes_the_recipe(
    package: Callable[..., Any], changed: str
) -> None:
    files = {
        "__init__.py": "from shop.b import Shelf, measure",
        "a.py": "class Base: ...\n",
        "b.py": "from shop.a import Base\n" + SHELF.replace("Shelf:", "Shelf(Base):"),
    }
    before = describe({"shelf": package(files).Shelf(2)})
    assert describe({"shelf": package(files).Shelf(2)}) == before
    now = describe({"shelf": package(files | {changed: f"{files[changed]}# other\n"}).Shelf(2)})
    assert list(find_differences(now, before)) == ["shelf.code_sha256"]
    assert recipe_id(now) != recipe_id(before)


def test_a_changed_function_of_ones_own_changes_the_recipe(package: Callable[..., Any]) -> None:
    before, now = (
        describe(ExactMatch(normalise=package({"__init__.py": SHELF + end}).measure))
        for end in ("", "# other\n")
    )
    assert list(find_differences(now, before)) == ["normalise.code_sha256"]


def test_code_in_no_file_is_told() -> None:
    space: dict[str, Any] = {"__name__": "cell"}
    exec("class Mine: ...", space)
    with pytest.warns(UserWarning, match=r"The code of `cell\.Mine` is in no file"):
        assert describe(space["Mine"]())["code_sha256"] is None


@pytest.mark.parametrize("value", [Wanda(Unstructured(0.5)), torch.nn.ReLU, len, str.lower, Path])
def test_code_of_libraries_has_no_hash(value: Any) -> None:
    assert describe_code(value if callable(value) else type(value)) == {}


def test_the_nearest_package_that_exports_is_enough(package: Callable[..., Any]) -> None:
    files = {"__init__.py": "", "room/__init__.py": "from .a import Shelf", "room/a.py": SHELF}
    package(files)
    room = importlib.import_module("shop.room")
    assert public_path(room.Shelf) == "shop.room.Shelf"
    assert public_path(room.a.measure) == "shop.room.a.measure"  # not exported


def test_another_object_of_the_same_name_is_no_export(package: Callable[..., Any]) -> None:
    shop = package({"__init__.py": "from shop import a\nclass Shelf: ...", "a.py": SHELF})
    assert public_path(shop.a.Shelf) == "shop.a.Shelf"
    assert public_path(shop.Shelf) == "shop.Shelf"


def test_a_class_of_a_single_file_is_given_by_that_file(package: Callable[..., Any]) -> None:
    shop = package({"__init__.py": SHELF})
    assert public_path(shop.Shelf) == "shop.Shelf"
    assert public_path(shop.Shelf.Board) == "shop.Shelf.Board"


ROOMS = [prunelit.callbacks, prunelit.pruners, prunelit.tasks.formats, prunelit.tasks.judges]
EXPORTED = [
    (room.__name__, name)
    for room in ROOMS
    for name in room.__all__
    if getattr(room, name).__module__.startswith(f"{room.__name__}.")
]


@pytest.mark.parametrize(("room", "name"), EXPORTED, ids=[f"{r}.{n}" for r, n in EXPORTED])
def test_no_recipe_names_a_file_of_a_room(room: str, name: str) -> None:
    assert public_path(getattr(sys.modules[room], name)) == f"{room}.{name}"


@pytest.mark.parametrize("name", ["CalibrationText", "RecoveryText"])
def test_texts_are_public(name: str) -> None:
    assert public_path(getattr(prunelit, name)) == f"prunelit.{name}"


def test_paths_do_not_count_and_hashes_of_all_weights_only_if_both_have_them() -> None:
    one = {"model": {"source": "a", "version": {"w": "1"}, "full": None}}
    two = {"model": {"source": "b", "version": {"w": "1"}, "full": {"w": "2"}}}
    three = {"model": {"source": "b", "version": {"w": "1"}, "full": {"w": "3"}}}
    assert find_differences(one, two) == {}
    assert len({recipe_id(recipe) for recipe in (one, two, three)}) == 1
    assert find_differences(two, three) == {"model.full.w": ("2", "3")}


def test_differences_are_told_with_both_values() -> None:
    one = {"pruner": describe(Wanda(Unstructured(0.3))), "schedule": None, "seed": 1}
    two = {"pruner": describe(Wanda(Unstructured(0.5))), "schedule": describe(Linear(2))}
    assert tell_differences(one, two) == (
        "pruner.sparsity.ratio: 0.3 now, 0.5 there; schedule: nothing now, Linear there; "
        "seed: 1 now, nothing there"
    )
    three = {"pruner": describe(Magnitude(Unstructured(0.3)))}
    assert tell_differences(three, {"pruner": one["pruner"]}) == (
        "pruner: Magnitude now, Wanda there"
    )
    assert tell_differences({}, None) == ""
    assert tell_differences(dict.fromkeys("abcdef", 1), None).endswith("; and 2 more keys")
    long, longer = "x" * 50, "x" * 51
    assert tell_differences({"a": long}, {"a": longer}) == f"a: {long} now, {longer} there"


def test_the_id_is_that_of_the_deciding_parts() -> None:
    one = {"pruner": describe(Wanda(Unstructured(0.3)))}
    assert recipe_id(one) == recipe_id(json.loads(json.dumps(one)))
    assert recipe_id(one) != recipe_id({"pruner": describe(Wanda(Unstructured(0.5)))})


@pytest.mark.parametrize("function", [os.system, eval, subprocess.getoutput, torch.load, yaml.load])
def test_a_function_of_another_library_is_never_called_with_a_text(function: Any) -> None:
    for refused in (
        lambda: ExactMatch(normalise=function),
        lambda: ExactMatch({"acc": function}),
        lambda: Execution(extract=function),
        lambda: AfterMarker("####", function),
        lambda: read_examples("prunelit:facts.jsonl", "train", format=function),
    ):
        with pytest.raises(InputError, match=r"a function of prunelit or of a file of your own"):
            refused()


def test_functions_of_ones_own_and_methods_of_str_are_taken() -> None:
    ExactMatch({"acc": _own}, normalise=str.lower)


def _own(text: str) -> str:
    return text


def test_files_that_own_code_imports_are_part_of_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_shelf").mkdir()
    files = {
        "__init__": "",
        "main": "import json\nimport torch\nfrom . import near\ndef read():\n    import own_far\n",
        "near": "from .deep import LENGTH\n",
        "deep": "LENGTH = 3\n",
        "other": "",
    }
    for name, text in files.items():
        (tmp_path / "own_shelf" / f"{name}.py").write_text(text)
    (tmp_path / "own_far.py").write_text("import own_far\n")
    monkeypatch.syspath_prepend(tmp_path)
    read = importlib.import_module("own_shelf.main").read
    before = describe_code(read)
    changed = {}
    for name in ("own_shelf/near", "own_shelf/deep", "own_far", "own_shelf/other"):
        path = tmp_path / f"{name}.py"
        text = path.read_text()
        path.write_text(f"{text}# another line\n")
        describe_code.cache_clear()
        changed[name] = describe_code(read) != before
        path.write_text(text)
    describe_code.cache_clear()
    assert changed == {**dict.fromkeys(changed, True), "own_shelf/other": False}
