"""Files that are there whole or not at all."""

import os
import tempfile
from pathlib import Path


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
