from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from prunelit.errors import InputError
from prunelit.report.items import read_items, write_items


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        {"item": 0, "output": " né\n", "extracted": None, "right": False, "share": 0.1},
        {"item": 1, "output": "", "extracted": "5", "right": True, "share": 1.0},
    ]
    path = tmp_path / "items" / "task.parquet"
    write_items(rows, path)
    assert read_items(path) == rows
    assert [file.name for file in path.parent.iterdir()] == ["task.parquet"]
    # Users read the files with `datasets`.
    data = datasets.load_dataset("parquet", data_files=str(path), split="train")
    assert list(data) == rows


def test_many_rows_are_streamed(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        for number in range(2500):
            yield {"item": number, "extracted": None if number < 1200 else str(number)}

    write_items(rows(), tmp_path / "task.parquet")
    found = read_items(tmp_path / "task.parquet")
    assert found == list(rows())


@pytest.mark.parametrize("name", ["ratio=0.5", "item=7", "a[1]*?", "b::c", "a b%20#", "~", "x://y"])
def test_the_name_of_a_folder_is_no_column(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / name / "task.parquet", f"{name}/task=1.parquet"):
        write_items([{"item": 3}], path)
        assert read_items(path) == [{"item": 3}]


def test_no_rows_write_no_file(tmp_path: Path) -> None:
    write_items([], tmp_path / "items" / "task.parquet")
    assert not any(tmp_path.iterdir())


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "task.parquet"
    write_items([{"item": 7}], path)

    def failing() -> Iterator[dict[str, Any]]:
        for number in range(1500):
            yield {"item": number}
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_items(failing(), path)
    assert read_items(path) == [{"item": 7}]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kept", [0, 4, 100, -1, -20])
def test_a_cut_table_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "task.parquet"
    write_items([{"item": number} for number in range(9)], path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"No items could be read from '.*task\.parquet' \(\S"):
        read_items(path)


def test_a_folder_names_its_tables(tmp_path: Path) -> None:
    write_items([{"item": 7}], tmp_path / "items" / "facts.parquet")
    for folder in (tmp_path, tmp_path / "items"):
        with pytest.raises(InputError, match=r"is a folder: give '.*/items/facts\.parquet'"):
            read_items(folder)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "task.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"No items could be read from .*task.parquet"):
        read_items(path)
