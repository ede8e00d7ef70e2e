import ast
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import prunelit

HEAVY = ["torch", "transformers", "lightning", "datasets", "numpy", "jsonargparse", "rich"]


@pytest.mark.parametrize("module", ["prunelit", "prunelit.__main__", "prunelit.errors"])
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = json.loads(done.stdout)
    assert module in loaded
    assert not set(HEAVY) & set(loaded)


def test_public_names_are_those_of_their_modules() -> None:
    for name in prunelit.__all__:
        value = getattr(prunelit, name)
        assert value.__name__ == name
        assert value.__module__.startswith("prunelit.")
        assert value.__doc__


def test_dir_lists_the_public_names() -> None:
    assert set(prunelit.__all__) <= set(dir(prunelit))
    assert dir(prunelit) == sorted(dir(prunelit))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'prunelit' has no attribute 'prunes'"):
        _ = prunelit.prunes
    with pytest.raises(ImportError):
        from prunelit import prunes  # noqa: F401


def test_the_version_is_that_of_the_distribution() -> None:
    assert prunelit.__version__ == importlib.metadata.version("prunelit")


def test_no_module_imports_the_package_itself() -> None:
    """A module that imports `prunelit` would run its `__init__` before it is complete."""
    package = Path(prunelit.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            if "prunelit" in names:
                found.append(f"{path.relative_to(package)}:{node.lineno}")
    assert not found, f"Import from the module that defines the name: {found}."


def test_type_checkers_see_the_public_names() -> None:
    """The names stand three times in `__init__.py`: for checkers, for `*`, and to import late."""
    tree = ast.parse(Path(prunelit.__file__).read_text(encoding="utf-8"))
    checked = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert list(prunelit.__all__) == sorted(checked) == sorted(prunelit._HOME)
    assert checked == prunelit._HOME
