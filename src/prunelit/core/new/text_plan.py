"""Plan what a text is used for: to calibrate on, and to measure."""

from dataclasses import dataclass
from typing import Any

from prunelit.core.new.columns import TEXTS, find_column, only_text, read_file, refuse_columns
from prunelit.core.new.plans import Plan, is_folder
from prunelit.data.local_files import file_kind
from prunelit.data.rows import Documents, load_texts
from prunelit.errors import InputError

_FEWEST = 8  # rows of a text that can be divided
_SEVERAL = 16  # documents of a text file that is divided into them
_DOCUMENTS: tuple[Documents, ...] = ("paragraphs", "lines")
_PER_TOKEN = 6  # characters; a token of most languages has fewer


@dataclass
class TextPlan:
    """Use of a text: to calibrate on, and to measure.

    Args:
        calibration: arguments of `prunelit.CalibrationText`.
        read: how the file was read, in words.
        texts: documents of the calibration.
        tasks: on the rest of the text.
    """

    calibration: dict[str, Any]
    read: str
    texts: list[str]
    tasks: list[Plan]


def plan_text(path: str, shown: str, name: str, *, whole: bool) -> TextPlan:
    """Plan the use of a text: three quarters to calibrate on, the rest to measure.

    Args:
        path: of the file.
        shown: the path as the configuration names it.
        name: to tell its tasks from those of another text; empty for the first one.
        whole: measure all of it and calibrate on nothing, for a further text.

    Raises:
        InputError: if it has no column of texts, or too little text.
    """
    options, read = _read_options(path)
    rows = load_texts(path, split="train", column=options["column"], documents="lines")
    cut = round(0.75 * len(rows)) if len(rows) >= _FEWEST else len(rows)
    cut = 0 if whole else cut
    texts = [_documents(path, own, options["documents"]) for own in (rows[:cut], rows[cut:])]
    parts = ("train[:75%]", "train[75%:]") if 0 < cut < len(rows) else ("train", "train")
    tokens = [sum(map(len, own)) // _PER_TOKEN for own in texts]
    length = 256 if tokens[bool(whole)] >= 8 * 256 else 64
    if tokens[bool(whole)] < length:
        raise InputError(
            f"Expected at least {_PER_TOKEN * length} characters of text in {path!r} but got "
            f"{sum(map(len, texts[bool(whole)]))}: add text."
        )
    same = {"path": shown, **_unlike_defaults(options)}
    calibration = {
        **same,
        "split": parts[0],
        "sequences": min(128, max(1, tokens[0] // length)),
        "length": length,
    }
    tasks = []
    if tokens[1] >= 2 * length:
        for task in ("Deviation", "Perplexity"):
            own = f"{task.lower()}{name}"
            arguments = {"name": own, **same, "split": parts[1], "length": length, "limit": 16}
            read_part = f"{read}, {parts[1]!r}"
            windows = f"at most 16 windows of {length} tokens"
            tasks.append(Plan(task, None, arguments, read_part, windows, texts[1]))
    return TextPlan(calibration, f"{read}, {parts[0]!r}", texts[0], tasks)


def _read_options(path: str) -> tuple[dict[str, Any], str]:
    """Return the options by which a text is read, and these in words."""
    if is_folder(path):
        raise InputError(f"Expected a file but {path!r} is a folder: name one of its files.")
    if file_kind(path) == "text":
        for way in _DOCUMENTS:
            texts = load_texts(path, column="text", split="train", documents=way)
            if len(texts) >= _SEVERAL:
                return {"column": "text", "documents": way}, f"a document for each of its {way}"
        return {"column": "text", "documents": "whole"}, "one document"
    names, rows = read_file(path)
    column = find_column(names, TEXTS) or only_text(names, rows, [])
    if column is None:
        raise refuse_columns(path, names, "a column such as `text`")
    return {"column": column, "documents": "whole"}, f"{column!r} is the text"


def _documents(path: str, rows: list[str], documents: Documents) -> list[str]:
    """Return the documents of rows; a text file that is not divided by lines is one here."""
    divided = file_kind(path) != "text" or documents == "lines"
    return rows if divided else ["\n".join(rows)]


def _unlike_defaults(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if v != {"column": "text", "documents": "whole"}[k]}
