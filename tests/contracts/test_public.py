"""Public names are listed, everything else is marked internal."""

import importlib
from types import ModuleType

import pytest

from .walk import PACKAGE


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

every_place = pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)


def test_there_are_public_names() -> None:
    assert {name.count(".") for name in NAMES} == {1, 2, 3}


@every_place
def test_it_is_public_or_internal(place: ModuleType) -> None:
    internal = "\nInternal: " in (place.__doc__ or "")
    assert hasattr(place, "__all__") != internal, (
        f"{place.__name__} needs either a list `__all__` of public names or, in its docstring, a "
        "paragraph that begins with `Internal: ` and says where the public names are."
    )
