"""The folder of a recipe."""

import json
from pathlib import Path
from typing import Any

import pytest

from prunelit.callbacks import pruned_folder
from prunelit.callbacks.pruned_folder import check_output, find_folder, read_own, tell_other
from prunelit.errors import InputError
from prunelit.recipe import recipe_id

MINE: dict[str, Any] = {"pruner": {"ratio": 0.5}}
OTHER: dict[str, Any] = {"pruner": {"ratio": 0.4}}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose report was read."""
    folders: list[Path] = []
    read = pruned_folder.read_report

    def note(folder: Path) -> dict[str, Any] | None:
        folders.append(folder)
        return read(folder)

    monkeypatch.setattr(pruned_folder, "read_report", note)
    return folders


def write(folder: Path, recipe: dict[str, Any]) -> None:
    folder.mkdir()
    (folder / "pruning.json").write_text(json.dumps({"recipe": recipe}))


@pytest.mark.parametrize(
    ("there", "own", "expected"),
    [
        (None, None, "pruned"),
        (MINE, None, "pruned"),
        (OTHER, None, "own"),
        (OTHER, MINE, "own"),
        (None, MINE, "own"),  # the first folder was moved away
        (None, OTHER, "pruned"),
    ],
)
def test_each_folder_is_read_once(
    there: dict[str, Any] | None,
    own: dict[str, Any] | None,
    expected: str,
    tmp_path: Path,
    reads: list[Path],
) -> None:
    folders = {"pruned": tmp_path / "pruned", "own": tmp_path / f"pruned-{recipe_id(MINE)}"}
    for name, recipe in (("pruned", there), ("own", own)):
        if recipe is not None:
            write(folders[name], recipe)
    (tmp_path / "dense").mkdir()
    found = find_folder(folders["pruned"], MINE, str(tmp_path / "dense"))
    assert found == folders[expected]
    assert len(reads) == len(set(reads))
    chosen = find_folder(folders["pruned"], MINE, str(tmp_path / "dense"), chosen=True)
    assert chosen == folders["pruned"]


def test_a_folder_of_another_recipe_is_refused_and_the_difference_named(
    tmp_path: Path, reads: list[Path]
) -> None:
    folder = tmp_path / "pruned"
    check_output(folder, MINE)
    write(folder, OTHER)
    assert read_own(folder, MINE) is None
    assert tell_other(None, MINE) == "holds no pruned model"
    reads.clear()
    with pytest.raises(InputError, match=r"was pruned by another recipe \(pruner\.ratio: 0"):
        check_output(folder, MINE)
    assert reads == [folder]


def test_the_folder_of_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected an output folder apart from the model"):
        find_folder(tmp_path, MINE, str(tmp_path))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="loop' is a link that leads to itself"):
        find_folder(tmp_path / "loop", MINE, str(tmp_path))
