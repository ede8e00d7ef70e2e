"""Files that are there whole or not at all."""

import os
import tempfile
from pathlib import Path

from prunelit.report.curves import Picture, as_csv

DPI = 150


def write_whole(text: str, path: Path) -> None:
    """Write under a temporary name beside `path`, then rename; parents are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def write_picture(picture: Picture, folder: Path, name: str) -> None:
    """Write `<name>.png`, and `<name>.csv` where the picture has numbers.

    Each is there whole or not at all; what an earlier run wrote is replaced only then.

    Args:
        picture: the figure and the numbers.
        folder: where to; it and its parents are created.
        name: of the files, without a suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}-{os.getpid()}.png"
    try:
        picture.figure.savefig(partial, dpi=DPI)
        os.replace(partial, folder / f"{name}.png")
    finally:
        partial.unlink(missing_ok=True)
    if picture.numbers:
        write_whole(as_csv(picture.numbers), folder / f"{name}.csv")
