"""Follow the recipes of CONTRIBUTING.md in a copy of the repository; one of each works there."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from prunelit.pruners import Pruner

from .walk import unexported

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# Each recipe with the new files and the added lines that it promises, in this order.
RECIPES = {
    "pruning method": (3, 2 + 1),  # the last line is a row of a page
    "task": (3, 3 + 6),  # six lines are a section of a page
    "metric": (2, 2),
    "callback": (2, 2),
    "benchmark": (1, 0),
    "model family": (0, 4),
}
ADDED = ("squared_wanda", "SquaredWanda", "confidence", "Confidence", "LogitSpread", "WallTime")


def blocks(recipe: str) -> list[tuple[str, str, str]]:
    """List (language, path, content) of each block of a recipe whose first line is a path."""
    section = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    (section,) = [part for part in section if part.startswith(f"Add a {recipe}\n")]
    fenced = re.findall(r"^( *)```(\w+)\n(.*?)^ *```$", section, flags=re.MULTILINE | re.DOTALL)
    found = []
    for _, language, indented in fenced:
        first, _, content = textwrap.dedent(indented).partition("\n")
        found.append((language, first.removeprefix("# "), content))
    return found


def apply(folder: Path, recipe: str) -> tuple[int, int]:
    """Follow a recipe in a copy of the repository; the numbers of new files and added lines."""
    files = lines = 0
    for language, name, content in blocks(recipe):
        path = folder / name
        if language == "diff":
            path.write_text(_insert(path.read_text(encoding="utf-8"), content), encoding="utf-8")
            lines += len(re.findall(r"^\+", content, flags=re.MULTILINE))
        else:
            assert not path.exists(), path
            path.write_text(content, encoding="utf-8")
            files += 1
    return files, lines


def _insert(text: str, diff: str) -> str:
    """Add the lines of a diff to `text`: after the context line above, or before the one below."""
    added, context = "", None
    for line in diff.splitlines(keepends=True):
        if line.startswith("+"):
            added += line[1:]
            continue
        text = _place(text, added, context, line[1:])
        added, context = "", line[1:]
    return _place(text, added, context, None)


def _place(text: str, added: str, before: str | None, after: str | None) -> str:
    anchor = before or after
    assert anchor is not None
    assert text.count(f"\n{anchor}") == 1, anchor
    replaced = anchor + added if before else added + anchor
    return text.replace(f"\n{anchor}", f"\n{replaced}")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository in which every recipe was followed."""
    folder = tmp_path_factory.mktemp("copy")
    for part in ("src", "configs", "docs", "tests"):
        shutil.copytree(
            ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "golden")
        )
    for file in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / file, folder)
    for recipe, promised in RECIPES.items():
        assert apply(folder, recipe) == promised, recipe
    return folder


def run(folder: Path, *arguments: str) -> str:
    """Run `python ARGUMENTS` in the copy, expect status 0, and return the output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


# Run by one process, since it imports for seconds.
PROGRAM = """
import json, sys
import pytest

tests, options = map(json.loads, sys.argv[1:])
assert pytest.main(tests) == 0
import prunelit.__main__

sys.argv = ["prunelit", *options]
prunelit.__main__.main()
"""


def test_the_contracts_and_the_command_line_find_one_of_each(copy: Path) -> None:
    new = [
        path for recipe in RECIPES for language, path, _ in blocks(recipe) if language == "python"
    ]
    contracts = ["tests/contracts", "--deselect", "tests/contracts/test_adding.py"]
    pages = "tests/test_readme.py::test_every_method_has_a_line"
    selected = ["-m", "not distributed and not full", "-p", "no:cacheprovider", "-v"]
    only = [
        "-k",
        " or ".join(
            (*ADDED, "svamp", "starcoder2", "logit_spread", "wall_time", "method_has_a_line")
        ),
    ]
    options = [
        *("fit", "--config", "configs/squared_wanda.yaml", "--print_config"),
        "--trainer.callbacks+=prunelit.callbacks.WallTime",
        "--data.tasks+=configs/tasks/confidence.yaml",
        "--data.tasks+=configs/tasks/svamp.yaml",
    ]
    tests = [*selected, *only, *contracts, pages, *new]
    said = run(copy, "-c", PROGRAM, json.dumps(tests), json.dumps(options))
    # Classes by their contracts, files by their tests, docstrings by their examples.
    for passed in (
        r"test_pruners.py::\S*SquaredWanda\S* PASSED",
        r"test_pruners.py::\S*starcoder2\S* PASSED",
        r"test_tasks.py::\S*Confidence\S* PASSED",
        r"test_metrics.py::\S*LogitSpread\S* PASSED",
        r"test_rooms.py::\S*callbacks.WallTime\S* PASSED",
        r"test_configs.py::\S*squared_wanda\S* PASSED",
        r"test_task_configs.py::\S*svamp\S* PASSED",
        r"test_public.py::\S*prunelit.callbacks.WallTime\S* PASSED",
        r"test_readme.py::test_every_method_has_a_line PASSED",
        *(rf"{re.escape(path)}::\S+ PASSED" for path in new),
    ):
        assert re.search(passed, said), f"{passed}\n{said}"
    for name in ("pruners.SquaredWanda", "callbacks.WallTime", "tasks.Confidence"):
        assert f"class_path: prunelit.{name}\n" in said, said
    assert "name: svamp\n" in said


def test_the_import_rules_hold(copy: Path) -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with the extra `dev`")
    run(copy, "-c", "from importlinter.cli import lint_imports_command as lint; lint()")


def test_a_class_that_is_not_exported_is_noticed() -> None:
    forgotten = type("Forgotten", (Pruner,), {"__module__": "prunelit.pruners.forgotten"})
    sentence = unexported("pruners", forgotten)
    assert sentence is not None
    assert "Add two lines to src/prunelit/pruners/__init__.py" in sentence
    assert "`from prunelit.pruners.forgotten import Forgotten`, and 'Forgotten'" in sentence
