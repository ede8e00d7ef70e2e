"""Files and folders that are replaced completely or not at all."""

from pathlib import Path

import pytest

from prunelit.files import replace_file, replace_folder, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "new" / "numbers.csv"
    with replace_file(path, shared=shared) as partial:
        partial.write_text("1")
        assert not path.exists()
        assert (partial.parent, partial.suffix) == (path.parent, ".csv")
    assert path.read_text() == "1"
    assert names(path.parent) == ["numbers.csv"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with replace_file(path) as partial:
            partial.write_text("half")
            raise RuntimeError("no room left")

    with pytest.raises(RuntimeError, match="no room left"):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_two_writers_of_one_file_have_two_temporary_names(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with replace_file(path, shared=True) as one, replace_file(path, shared=True) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # whose block ended last


def test_the_next_writer_overwrites_the_leftover_of_a_killed_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with replace_file(path) as partial:
        partial.write_text("whole")
        name = partial.name
    (tmp_path / name).write_text("half")
    write_text(path, "new")
    assert names(tmp_path) == ["last.ckpt"]


def test_text_keeps_its_line_ends(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "é\r\n\n")
    assert (tmp_path / "a").read_bytes() == "é\r\n\n".encode()


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "pruned"
    for content in ("old", "new"):
        with replace_folder(folder) as partial:
            assert not list(partial.iterdir())
            (partial / content).touch()
        assert names(folder) == [content]
    assert names(folder.parent) == ["pruned"]


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "pruned"
    with replace_folder(folder) as partial:
        (partial / "old").touch()

    def fail() -> None:
        with replace_folder(folder) as partial:
            (partial / "half").touch()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert names(folder) == ["old"]
    assert names(tmp_path) == ["pruned"]
