"""Files and folders that are replaced completely or not at all."""

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prunelit.callbacks.checkpoints import WholeFileCheckpointIO
from prunelit.errors import InputError
from prunelit.files import (
    check_folder,
    check_replaceable,
    check_space,
    explain_full,
    is_replaceable,
    make_folder,
    only_writer,
    put_back,
    replace_file,
    replace_folder,
    write_text,
)


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


def test_a_folder_that_a_killed_process_moved_away_is_put_back(tmp_path: Path) -> None:
    folder = tmp_path / "last.ckpt"
    folder.mkdir()
    (folder / "old").touch()
    old = tmp_path / ".last.ckpt.old"
    folder.rename(old)
    put_back(folder)
    put_back(folder)
    assert names(folder) == ["old"]
    assert not old.exists()


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "disk" / "model", tmp_path / "run" / "pruned"
    link.parent.mkdir()
    if exists:
        target.mkdir(parents=True)
        (target / "old").touch()
    link.symlink_to(target)
    check_replaceable(link)
    for content in ("first", "second"):
        with replace_folder(link) as partial:
            assert partial.parent == target.parent  # on the other disk
            (partial / content).touch()
        assert link.is_symlink()
        assert names(target) == [content]
    assert names(target.parent) == ["model"]


def test_a_file_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").symlink_to(tmp_path / "disk" / "a.ckpt")
    write_text(tmp_path / "last.ckpt", "a")
    assert (tmp_path / "last.ckpt").is_symlink()
    assert (tmp_path / "disk" / "a.ckpt").read_text() == "a"


def test_the_folder_of_a_link_is_made(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b/c")
    assert make_folder(tmp_path / "a" / "d") == tmp_path / "b" / "c" / "d"
    assert (tmp_path / "a" / "d").is_dir()


def refuse_to_move(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Let `folder` behave as a mount point, or as one that only a rename shows."""
    if how == "mount":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == folder)
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if folder in (path, target):
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)


@pytest.mark.parametrize("how", ["mount", "busy"])
def test_a_mount_point_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    folder = tmp_path / "pruned"
    (folder / "lost+found").mkdir(parents=True)  # a new disk has this folder
    refuse_to_move(folder, monkeypatch, how)
    assert is_replaceable(folder)
    for content in ("first", "second"):
        check_replaceable(folder)
        with replace_folder(folder) as partial:
            (partial / content).write_text(content)
            (partial / "both").write_text(content)
        assert names(folder) == sorted(["both", "lost+found", content])
        assert (folder / "both").read_text() == content
    assert names(tmp_path) == ["pruned"]


def test_an_error_leaves_the_old_files_of_a_mount_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pruned"
    folder.mkdir()
    (folder / "a").write_text("old")
    refuse_to_move(folder, monkeypatch, "mount")
    move = shutil.move

    def fail(source: Path, target: Path) -> None:
        move(source, target)
        if Path(target) == folder / "a":
            monkeypatch.setattr(shutil, "move", move)
            raise RuntimeError("stop")

    def write() -> None:
        with replace_folder(folder) as partial:
            (partial / "a").write_text("new")
            monkeypatch.setattr(shutil, "move", fail)

    with pytest.raises(RuntimeError, match="stop"):
        write()
    assert names(folder) == ["a"]
    assert (folder / "a").read_text() == "old"


def test_places_that_cannot_be_written_are_refused_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="loop' is a link that leads to itself"):
        check_replaceable(tmp_path / "loop")
    (tmp_path / "file").touch()
    for check in (check_folder, check_replaceable):
        with pytest.raises(InputError, match=r"file/a(/b)?': Not a directory \('.*/file'\)"):
            check(tmp_path / "file" / "a" / "b")
        check(tmp_path / "new" / "a")
    assert names(tmp_path) == ["file", "loop"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\0b", r"without a NUL character but got '.*a\\x00b"),
        ("x" * 300, r"File name too long \('\.?x+\.\.\.'\)"),
        ("x" * 250, r"File name too long \('\.x+\.\.\.'\)"),  # of the temporary name
        ("b" * 300 + "/c", r"File name too long \('b+\.\.\.'\)"),
        ("lat\udcff", r"a path that is UTF-8 text but got '.*/lat\\udcff'"),
        ("loop/a", r"loop' is a link that leads to itself"),
    ],
)
def test_names_that_cannot_be_written_are_refused_and_nothing_is_made(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for check in (check_replaceable, lambda path: only_writer(path).__enter__()):
        with pytest.raises(InputError, match=reason):
            check(f"{tmp_path}/{name}")
    assert names(tmp_path) == ["loop"]


def test_paths_on_one_disk_share_its_space(tmp_path: Path) -> None:
    half = shutil.disk_usage(tmp_path).total // 2 + 1
    with pytest.raises(InputError, match=r"no room for '.*a' and '.*b': \d+\.\d .B are needed and"):
        check_space({str(tmp_path / "a"): half, str(tmp_path / "b"): half})
    check_space({str(tmp_path / "a"): 1})


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    path = tmp_path / "run" / "pruned"
    with only_writer(path):
        assert is_replaceable(path)
        with pytest.raises(InputError, match=r"Another run is writing '.*pruned': wait"):
            only_writer(path).__enter__()
        with only_writer(tmp_path / "run" / "other"):
            pass
    with only_writer(path):  # the first one has ended
        assert names(path.parent) == [".pruned.lock"]
    assert not path.parent.exists()  # nothing was written into it
    path.parent.mkdir()
    (path.parent / ".pruned.lock").touch()  # left by a run that was killed
    with only_writer(path):
        pass
    assert names(path.parent) == []


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file can grow above 100 kB, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("writer", ["python", "safetensors", "checkpoint"])
def test_a_full_disk_is_named_with_the_space_it_needs(
    writer: str, tmp_path: Path, small_disk: None
) -> None:
    path = tmp_path / "pruned"

    def write() -> None:
        if writer == "checkpoint":
            WholeFileCheckpointIO().save_checkpoint({"a": [torch.ones(250_000)]}, path)
            return
        with replace_folder(path, size=1_000_000) as partial:
            if writer == "python":
                (partial / "a").write_bytes(bytes(1_000_000))
            else:
                save_file({"a": torch.ones(250_000)}, partial / "a")

    with pytest.raises(InputError, match=r"no room to write '.*pruned': 1\.0 MB are needed and \d"):
        write()
    assert not names(tmp_path)


def test_a_full_disk_is_told_of_the_file_and_not_of_the_run(tmp_path: Path) -> None:
    def write() -> None:
        with explain_full(tmp_path / "run"), replace_file(tmp_path / "run" / "a", size=2000):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(InputError, match=r"no room to write '.*run/a': 2\.0 kB are needed and \d"):
        write()
