"""Write a file or a folder completely, or leave the old one as it is.

Both are written under a temporary name beside the target and renamed when they are complete. A
process that is killed leaves at most that temporary name behind. Links stay, also those that lead
nowhere yet: their target is written.

Internal: nothing here is public.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from prunelit.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_LFS = b"version https://git-lfs"
POINTER = "a pointer of git-lfs, not the file itself: run `git lfs pull` in its folder"
UNFINISHED = "unfinished"  # folder in that of a run: the items measured so far
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FIXED = (errno.EBUSY, errno.EXDEV)  # a mount point, a folder of a container's image
# Names inside a folder that is replaced in its place, and one that new disks have.
_PARTIAL, _OLD, _LOCK, _DISK = ".partial", ".old", ".lock", "lost+found"


def is_pointer(path: str | Path) -> bool:
    """Return True if git-lfs left a pointer in the place of a file that it did not download."""
    with open(path, "rb") as file:
        return file.read(len(_LFS)) == _LFS


def real_path(path: str | Path) -> Path:
    """Follow all links of a path.

    Raises:
        InputError: if a link leads to itself, or the path holds a NUL character.
    """
    try:
        real = Path(os.path.realpath(path))
    except ValueError as error:
        raise InputError(
            f"Expected a path without a NUL character but got {str(path)!r}: give another name."
        ) from error
    for part in (real, *real.parents):
        if os.path.islink(part):
            raise InputError(f"{str(part)!r} is a link that leads to itself: remove it.")
    return real


def is_text(path: str) -> bool:
    """Return True if UTF-8 can hold a path; Python keeps other bytes as single surrogates."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def replace_file(
    path: str | Path, *, shared: bool = False, size: int | None = None
) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` when the block ends without an error.

    Args:
        path: of the file; parents are created. The temporary path has the same suffix.
        shared: several processes may write the same file at the same time, so each needs its own
            temporary name. Otherwise the next writer overwrites what a killed one left.
        size: bytes that the file needs, for the message if the disk is full.

    Yields:
        The temporary path.

    Raises:
        InputError: if the disk is full.
    """
    path = real_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{uuid4().hex[:8]}" if shared else ""
    partial = path.with_name(f".{path.stem}{own}.partial{path.suffix}")
    try:
        with explain_full(path, size):
            yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: str | Path, *, size: int | None = None) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes `folder` when the block ends without an error.

    Only one process at a time may write `folder`. A mount point, and a folder in a parent without
    write permission, cannot be renamed. Their files are replaced one by one, and the temporary
    folder is inside.

    Args:
        folder: its parents are created. If it exists, it is removed after the new one is complete.
        size: bytes that the folder needs, for the message if the disk is full.

    Yields:
        The temporary folder, empty.

    Raises:
        InputError: if the disk is full.
    """
    folder = real_path(folder)
    if fixed := _is_fixed(folder):
        partial, old = folder / _PARTIAL, folder / _OLD
    else:
        partial, old = (folder.with_name(f".{folder.name}.{word}") for word in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        with explain_full(folder, size):
            yield partial
        shutil.rmtree(old, ignore_errors=True)
        if fixed or not _swap(partial, folder, old):
            with explain_full(folder, size):
                _refill(partial, folder, old)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put_back(folder: Path) -> None:
    """Put back a folder that a process killed in `replace_folder` had moved away."""
    folder = real_path(folder)
    old = folder.with_name(f".{folder.name}.old")
    if old.is_dir() and not folder.exists():
        old.rename(folder)


def _is_fixed(folder: Path) -> bool:
    below = os.path.isdir(folder) and not os.access(folder.parent, os.W_OK)
    return os.path.ismount(folder) or below


def _swap(partial: Path, folder: Path, old: Path) -> bool:
    """Rename both folders; return False if `folder` cannot be renamed."""
    if folder.exists():
        try:
            folder.rename(old)
        except OSError as error:
            if error.errno in _FIXED:
                return False
            raise
    try:
        partial.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    return True


def _refill(partial: Path, folder: Path, old: Path) -> None:
    """Move the old files away and the new ones in; an error moves the old ones back."""
    ours = {partial, old, folder / _LOCK, folder / _DISK}
    old.mkdir()
    try:
        for path in set(folder.iterdir()) - ours:
            shutil.move(path, old / path.name)
        for path in list(partial.iterdir()):
            shutil.move(path, folder / path.name)
    except BaseException:
        for path in list(old.iterdir()):
            shutil.rmtree(folder / path.name, ignore_errors=True)
            (folder / path.name).unlink(missing_ok=True)
            shutil.move(path, folder / path.name)
        old.rmdir()
        raise


@contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Refuse a file or folder that another run is writing.

    A hidden file beside it is locked. The lock ends with the process, and the file is removed.
    Without support of the system or the file system, nothing is locked.

    Raises:
        InputError: naming the path.
    """
    real = _text_path(path)
    lock = real / _LOCK if _is_fixed(real) else real.with_name(f".{real.name}.lock")
    check_folder(lock.parent, lock.name)
    created = [path for path in (lock.parent, *lock.parent.parents) if not path.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(lock)
    if file is None:
        raise InputError(
            f"Another run is writing {str(path)!r}: wait for its end, or choose another folder by "
            "`--trainer.default_root_dir`."
        )
    with file:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            _remove_empty(created)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, up to the first one that holds something."""
    for folder in folders:
        if not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()


def _locked(path: Path) -> BinaryIO | None:
    """Open and lock a file; None if another process holds it."""
    while True:
        file = path.open("ab")
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # such as a network file system without locks
            return file
        # A run that has just ended may have removed the file after it was opened here.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
        file.close()


def is_replaceable(folder: str | Path) -> bool:
    """Return True if a folder is absent, empty, or left by a process killed in `replace_folder`."""
    real = real_path(folder)
    if not os.path.exists(real):
        return True
    names = set(os.listdir(real)) if real.is_dir() else {""}
    return not names - {_LOCK, _DISK} or bool(names & {_PARTIAL, _OLD})


def check_replaceable(folder: str | Path) -> None:
    """Refuse a place where `replace_folder` would fail, by a real write; creates nothing.

    Raises:
        InputError: naming the folder.
    """
    real = _text_path(folder)
    if _is_fixed(real):
        check_folder(real)
    else:
        check_folder(real.parent, f".{real.name}.partial")


def check_local(folder: str | Path) -> None:
    """Refuse the address of a folder on another machine.

    Raises:
        InputError: naming the folder.
    """
    if "://" in str(folder):
        raise InputError(
            f"Expected a folder of this machine but got {str(folder)!r}: write results into a "
            "folder here, and copy them."
        )


def check_folder(folder: str | Path, name: str = "trial") -> None:
    """Refuse a folder that cannot be created or written, by a real write; creates nothing.

    Args:
        folder: it and its parents need not exist.
        name: of a file that must be possible in it.

    Raises:
        InputError: naming the folder.
    """
    check_local(folder)
    real = _text_path(folder)
    place = _existing(real)
    try:
        with tempfile.TemporaryDirectory(dir=place) as trial:
            inner = Path(trial, real.relative_to(place))
            inner.mkdir(parents=True, exist_ok=True)
            (inner / name).write_bytes(bytes(4096))
    except OSError as error:
        long = error.errno == errno.ENAMETOOLONG and error.filename
        where = f"{Path(error.filename).name:.20}..." if long else str(place)
        raise InputError(
            f"Nothing can be written into {str(folder)!r}: {error.strerror} ({where!r}). "
            "Choose another folder, or change this one."
        ) from error


def check_names(
    folder: str | Path, *, files: Iterable[str] = (), folders: Iterable[str] = ()
) -> None:
    """Refuse a folder where a file will be written, and a file where a folder will be.

    Args:
        folder: of the names; it need not exist.
        files: names of files.
        folders: names of folders. In them, no folder may have the name of a file that is written,
            which ends as `.png`, `.csv`, `.json` or `.parquet`.

    Raises:
        InputError: naming the path.
    """
    folder, folders = Path(folder), list(folders)
    inner = [path for name in folders for path in sorted((folder / name).glob("*.*"))]
    written = [path for path in inner if path.suffix in (".png", ".csv", ".json", ".parquet")]
    for path in (*(folder / name for name in files), *written):
        if path.is_dir():
            raise InputError(
                f"Expected a file at {str(path)!r}, where results are written, but found a folder: "
                "rename or move it."
            )
    for path in (folder / name for name in folders):
        if path.exists() and not path.is_dir():
            raise InputError(
                f"Expected a folder at {str(path)!r}, where results are written, but found a file: "
                "rename or move it."
            )


def _text_path(path: str | Path) -> Path:
    """Return the real path; refuse one that results and tokenizers cannot hold as text."""
    real = real_path(path)
    if not is_text(str(real)):
        raise InputError(
            f"Expected a path that is UTF-8 text but got {str(path)!r}: rename the folder, or "
            "choose another one."
        )
    return real


def make_folder(folder: str | Path) -> Path:
    """Create a folder, or the target of a link that leads nowhere; return its real path."""
    real = real_path(folder)
    real.mkdir(parents=True, exist_ok=True)
    return real


def check_space(needs: Mapping[str, int]) -> None:
    """Refuse work whose files do not fit on their disks.

    Args:
        needs: bytes by path; paths on one disk are added up.

    Raises:
        InputError: naming the paths, the bytes that they need, and the bytes that are free.
    """
    disks: dict[int, dict[str, int]] = {}
    for path, size in needs.items():
        disks.setdefault(_existing(path).stat().st_dev, {})[path] = size
    for paths in disks.values():
        free = shutil.disk_usage(_existing(next(iter(paths)))).free
        if sum(paths.values()) > free:
            raise InputError(
                f"There is no room for {' and '.join(map(repr, paths))}: "
                f"{readable(sum(paths.values()))} are needed and {readable(free)} are free. "
                "Free some space, or choose a folder on another disk."
            )


@contextmanager
def explain_full(path: str | Path, size: int | None = None) -> Iterator[None]:
    """Raise an InputError that names `path` and the space it needs if the disk is full."""
    try:
        yield
    except Exception as error:
        if isinstance(error, InputError) or not is_full(error):  # it may be explained inside
            raise
        free = shutil.disk_usage(_existing(path)).free
        needs = f"{readable(size)} are needed" if size else "more is needed"
        raise InputError(
            f"There is no room to write {str(path)!r}: {needs} and {readable(free)} are free. Free "
            "some space, then start again."
        ) from error


def is_full(error: BaseException | None) -> bool:
    """Return True if an error, or the one it came from, says that a disk or a quota is full."""
    while error is not None:
        text = str(error)  # of libraries that write without Python
        codes = [int(code) for code in re.findall(r"os error (\d+)", text)]
        codes.append(getattr(error, "errno", None) or 0)
        if set(codes) & set(_FULL) or "PytorchStreamWriter failed writing" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def readable(size: int) -> str:
    """Return a number of bytes in the largest unit that fits, such as `1.5 GB`."""
    value, units = float(size), ["bytes", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.1f} {units[0]}" if units[0] != "bytes" else f"{size} bytes"


def _existing(path: str | Path) -> Path:
    """Return the real path, or its first parent that exists."""
    real = real_path(path)
    return next(place for place in (real, *real.parents) if os.path.exists(place))


def keep_earlier(folder: str | Path, names: Iterable[str]) -> Path | None:
    """Move files and folders to `earlier_N` in their folder, so that new ones replace nothing.

    Args:
        folder: of the files.
        names: of the files and folders to move; those that do not exist are left out.

    Returns:
        The folder `earlier_N`, or None if there was nothing to move.
    """
    folder = Path(folder)
    if not (found := [folder / name for name in names if (folder / name).exists()]):
        return None
    number = 1
    while (target := folder / f"earlier_{number}").exists():
        number += 1
    target.mkdir()
    for path in found:
        path.rename(target / path.name)
    return target


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, with `replace_file`; line ends stay as they are."""
    with replace_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
