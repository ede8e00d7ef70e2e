"""Public names are listed, documented and have an example; everything else is marked internal."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .walk import PACKAGE

ROOT = Path(__file__).parents[2]
RULE = (
    "A name is public if it is in the `__all__` of `prunelit`, of a room's `__init__`, or of a "
    "module in the package's root."
)


def _rooms_and_root() -> list[ModuleType]:
    """`prunelit`, the modules in its root, and the rooms, those inside rooms too."""
    names = [
        path.parent if path.name == "__init__.py" else path.with_suffix("")
        for path in sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("*/**/__init__.py")])
    ]
    parts = [name.relative_to(PACKAGE).parts for name in names if name.name != "__main__"]
    return [importlib.import_module(".".join(("prunelit", *part))) for part in parts]


PLACES = _rooms_and_root()
NAMES = {
    f"{place.__name__}.{name}": getattr(place, name)
    for place in PLACES
    for name in getattr(place, "__all__", [])
}
CODE = {
    name: member
    for name, member in NAMES.items()
    if inspect.isclass(member) or inspect.isfunction(member)
}
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*.py")),
]

every_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
every_name = pytest.mark.parametrize("name", CODE)


def test_there_are_public_names() -> None:
    assert {name.count(".") for name in NAMES} == {1, 2, 3}


@every_place
def test_it_is_public_or_internal(place: ModuleType) -> None:
    internal = "\nInternal: " in (place.__doc__ or "")
    assert hasattr(place, "__all__") != internal, (
        f"{place.__name__} needs either a list `__all__` of public names or, in its docstring, a "
        "paragraph that begins with `Internal: ` and says where the public names are."
    )


@every_name
def test_it_has_an_example(name: str) -> None:
    text = inspect.getdoc(CODE[name]) or ""
    _, heading, example = text.partition("\nExample:\n")
    assert heading, f"The docstring of {name} needs a section `Example:`."
    assert "    >>> " in example, f"The example of {name} needs a line that runs: `>>> ...`."


@every_name
def test_its_arguments_are_documented(name: str) -> None:
    member = CODE[name]
    # Arguments that a class passes on are documented by its base.
    documented = member.__mro__ if inspect.isclass(member) else [member]
    text = "\n".join(inspect.cleandoc(part.__doc__ or "") for part in documented)
    for argument in _arguments(member):
        assert re.search(rf"^ +\*{{0,2}}{argument}: ", text, flags=re.MULTILINE), (
            f"The docstring of {name} needs the argument `{argument}` in `Args:`."
        )


def _arguments(member: Any) -> list[str]:
    """List the arguments that need a line: those of a constructor or of a function with several."""
    if inspect.isclass(member):
        if inspect.isabstract(member) or "__init__" not in vars(member):
            return []
        return list(inspect.signature(member).parameters)
    arguments = list(inspect.signature(member).parameters)
    return arguments if len(arguments) > 1 else []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_import_public_names_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    imports = re.findall(r"from (prunelit[\w.]*) import (?:\(([^)]*)\)|(.*))", text)
    for module, several, one in imports:
        for name in re.findall(r"\w+", several or one.partition("#")[0]):
            assert f"{module}.{name}" in NAMES, f"{path.name} imports {module}.{name}. {RULE}"
