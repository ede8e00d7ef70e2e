"""Write a file or a folder completely, or leave the old one as it is.

Both are written under a temporary name beside the target and renamed when they are complete. A
process that is killed leaves at most that temporary name behind.

Internal: nothing here is public.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def replace_file(path: str | Path, *, shared: bool = False) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` when the block ends without an error.

    Args:
        path: of the file; parents are created. The temporary path has the same suffix.
        shared: several processes may write the same file at the same time, so each needs its own
            temporary name. Otherwise the next writer overwrites what a killed one left.

    Yields:
        The temporary path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{uuid4().hex[:8]}" if shared else ""
    partial = path.with_name(f".{path.stem}{own}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: str | Path) -> Iterator[Path]:
    """Give a temporary folder to fill; it becomes `folder` when the block ends without an error.

    Only one process at a time may write `folder`.

    Args:
        folder: its parents are created. If it exists, it is removed after the new one is complete.

    Yields:
        The temporary folder, empty.
    """
    folder = Path(folder)
    partial, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        try:
            partial.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, with `replace_file`; line ends stay as they are."""
    with replace_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
