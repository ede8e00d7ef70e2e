import json
import subprocess
import sys

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
