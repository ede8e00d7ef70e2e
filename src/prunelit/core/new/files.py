"""Write the plans as configurations with comments."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from prunelit.core.new.plans import Plan
from prunelit.core.new.text_plan import TextPlan
from prunelit.errors import InputError, visible
from prunelit.files import make_folder, write_text
from prunelit.report.verdicts import Margins

PARTS = ("fit", "sweep", "search")  # subcommands with a file of their own


def part_paths(output: str) -> dict[str, Path]:
    """Return the files to write: the main one, whose key is empty, and one for each part.

    Args:
        output: of the main file.

    Raises:
        InputError: if it does not end in .yaml or .yml.

    Example:
        >>> from prunelit.core.new.files import part_paths
        >>> {part: str(path) for part, path in part_paths("runs/a.yml").items() if part != "search"}
        {'': 'runs/a.yml', 'fit': 'runs/a.fit.yml', 'sweep': 'runs/a.sweep.yml'}
    """
    path = Path(output)
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"Expected a file that ends in .yaml but got {output!r} after `-o`.")
    return {"": path} | {part: path.with_suffix(f".{part}{path.suffix}") for part in PARTS}


def check_free(paths: Mapping[str, Path]) -> None:
    """Refuse files that exist.

    Raises:
        InputError: naming the first one.
    """
    for path in paths.values():
        if os.path.lexists(path):
            raise InputError(
                f"{str(path)!r} exists: name another file after `-o`, or add `--overwrite`."
            )


def shown_path(path: str, folder: Path) -> str:
    """Return a path as a configuration in a folder names it.

    A run reads relative paths from the folder in which it is started. That is the folder of the
    configuration, if `new` was started there. Otherwise the path is absolute.

    Args:
        path: as the user gave it.
        folder: of the configuration.
    """
    if ":" in path and not os.path.exists(path):  # `pypi:...` and the like
        return path
    if os.path.realpath(folder) == os.path.realpath(os.curdir):
        return path
    return os.path.abspath(os.path.expanduser(path))


def render_files(
    paths: Mapping[str, Path],
    model: str,
    text: TextPlan | None,
    tasks: Sequence[Plan],
    margins: Margins,
) -> dict[Path, str]:
    """Return the content of each file.

    Args:
        paths: see `part_paths`.
        model: source of the dense model, as the configuration names it.
        text: what the calibration text is used for; None without one.
        tasks: all tasks, those on texts included.
        margins: of the verdicts.
    """
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=False,  # YAML, not HTML: values go through a YAML writer
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"yaml": _as_yaml, "comment": _as_comment}
    main = paths[""]
    here = os.path.realpath(main.parent) == os.path.realpath(os.curdir)
    stem = re.sub(r"[^\w.-]+", "_", main.stem)
    values = {
        "commands": commands(paths),
        "here": here,
        "model": model,
        "text": text,
        "tasks": tasks,
        "margins": margins.plain(),
        "runs": f"runs/{stem}",
    }
    return {
        path: environment.get_template(f"{part or 'main'}.yaml.j2").render(values)
        for part, path in paths.items()
    }


def write_files(files: Mapping[Path, str]) -> None:
    """Write the files; each appears when it is complete."""
    for path, text in files.items():
        make_folder(path.parent)
        write_text(path, text)


def commands(paths: Mapping[str, Path]) -> dict[str, str]:
    """Return the command of each subcommand that takes the files."""
    quoted = {part: shlex.quote(str(path)) for part, path in paths.items()}
    found = {
        part: f"prunelit {part} --config {quoted['']} --config {own}"
        for part, own in quoted.items()
        if part
    }
    found["compare"] = f"prunelit compare --config {quoted['']} --model.candidate OTHER_MODEL"
    return found


def _as_yaml(value: Any) -> str:
    """Return a value as YAML in block style, without the end of a document."""
    options = {"sort_keys": False, "width": 10_000}
    text = yaml.safe_dump(value, allow_unicode=True, **options)
    if text.splitlines() != text.removesuffix("\n").split("\n"):
        # A character such as U+2028 is a line break for some readers, so it is escaped.
        text = yaml.safe_dump(value, allow_unicode=False, **options)
    return text.removesuffix("\n").removesuffix("\n...")


def _as_comment(text: str) -> str:
    """Return a text that stays in a comment: no character of it begins a new line."""
    return visible(" ".join(text.split()))
