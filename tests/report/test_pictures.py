"""Figures on disk."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from prunelit.report.curves import Picture, write_picture


@pytest.fixture
def figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.add_subplot()
    return figure


def test_a_picture_is_an_image_and_its_numbers(tmp_path: Path, figure: Figure) -> None:
    folder = tmp_path / "new" / "figures"
    write_picture(Picture(figure, {"a": [1, 2], "b": [0.5, None]}), folder, "name")
    assert sorted(path.name for path in folder.iterdir()) == ["name.csv", "name.png"]
    assert (folder / "name.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "name.csv").read_text() == "a,b\n1,0.5\n2,\n"


def test_without_numbers_there_is_only_the_image(tmp_path: Path, figure: Figure) -> None:
    write_picture(Picture(figure), tmp_path, "name")
    assert [path.name for path in tmp_path.iterdir()] == ["name.png"]


def test_a_figure_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    class Half(Figure):
        def savefig(self, fname: Any, **options: Any) -> None:
            Path(fname).write_bytes(b"half")
            raise RuntimeError("no room left")

    (tmp_path / "name.png").write_bytes(b"whole")
    (tmp_path / "name.csv").write_text("whole")
    with pytest.raises(RuntimeError, match="no room left"):
        write_picture(Picture(Half(), {"a": [1]}), tmp_path, "name")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "name.png": b"whole",
        "name.csv": b"whole",
    }
