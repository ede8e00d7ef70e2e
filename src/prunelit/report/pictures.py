"""Figures on disk, with their numbers beside them."""

import os
from pathlib import Path

from prunelit.report.curves import Picture, as_csv
from prunelit.report.files import write_whole

DPI = 150


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
