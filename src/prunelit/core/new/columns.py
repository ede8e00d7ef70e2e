"""Guess by their names which columns of a file hold question, choices, label, answer or text."""

import re
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Any

from prunelit.data.cells import as_parsed
from prunelit.data.rows import load_rows
from prunelit.errors import InputError

Row = dict[str, Any]

# Names of the columns, the most likely first. Case and punctuation do not count.
QUESTIONS = (
    *("question", "context", "query", "prompt", "instruction", "input", "problem", "stem"),
    *("text", "message", "utterance", "sentence", "q"),
)
CHOICES = ("choices", "options", "candidates", "alternatives", "endings", "answers")
RIGHT = (
    *("label", "answer", "correct", "correct_answer", "correct_option", "correct_choice"),
    *("answer_key", "answerkey", "gold", "key", "target", "solution", "right"),
)
ANSWERS = (
    *("answer", "target", "output", "response", "completion", "reference", "solution", "gold"),
    *("expected", "label", "a"),
)
TEXTS = (
    *("text", "message", "utterance", "sentence", "content", "body", "description", "document"),
    *("question", "query", "comment", "review", "ticket", "input", "prompt", "title"),
)
CLASSES = (
    *("label", "intent", "class", "category", "topic", "tag", "sentiment", "queue", "type"),
    *("target", "y", "answer"),
)
IDS = ("id", "_id", "qid", "uid", "uuid", "index", "")
_OWN_COLUMN = re.compile(r"(?:(choice|option|answer|alternative|ending|ans|opt)s?_?)?([a-z]|\d+)")


def read_file(path: str) -> tuple[list[str], list[Row]]:
    """Read all columns of a file, and give their names.

    Raises:
        InputError: see `prunelit.data.load_rows`.
    """
    found: list[str] = []

    def every(names: Sequence[str]) -> Sequence[str]:
        found.extend(names)
        return names

    rows = load_rows(path, columns=every)
    return found, rows


def find_column(names: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the column whose name comes first in a list of known names; None if there is none.

    If no name is known, it is the only column whose last word is.

    Example:
        >>> from prunelit.core.new.columns import QUESTIONS, TEXTS, find_column
        >>> find_column(["Ticket ID", "Message", "title"], TEXTS)
        'Message'
        >>> find_column(["question_id", "Ticket Question"], QUESTIONS)
        'Ticket Question'
    """
    plain: dict[str, str] = {}
    for name in names:
        plain.setdefault(_plain(name), name)
    exact = next((plain[word] for word in known if word in plain), None)
    if exact is not None:
        return exact
    ending = (
        [name for own, name in plain.items() if own.endswith(f"_{word}")]
        for word in known
        if len(word) > 2
    )
    return next((found[0] for found in ending if len(found) == 1), None)


def find_choices(names: Sequence[str], rows: Sequence[Row]) -> str | list[str] | None:
    """Return the column of a list of choices, or the columns of one choice each.

    Args:
        names: of all columns.
        rows: of the file.

    Returns:
        None if there are no choices.

    Example:
        >>> from prunelit.core.new.columns import find_choices
        >>> find_choices(["question", "Option B", "Option A", "answer"], [])
        ['Option A', 'Option B']
    """
    for name in names:
        if _plain(name) in CHOICES and rows and isinstance(as_parsed(rows[0][name]), list):
            return name
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        if (match := _OWN_COLUMN.fullmatch(_plain(name))) is not None:
            groups.setdefault(match[1] or "", {}).setdefault(match[2], name)
    for own in groups.values():
        for first in (list(ascii_lowercase), *(map(str, range(n, 100)) for n in (0, 1))):
            found = []
            for suffix in first:
                if suffix not in own:
                    break
                found.append(own[suffix])
            if len(found) > 1:
                return found
    return None


def only_text(names: Sequence[str], rows: Sequence[Row], taken: Sequence[str]) -> str | None:
    """Return the one column of texts that is left; None if there is none, or several.

    Args:
        names: of all columns.
        rows: of the file.
        taken: columns that hold something else.
    """
    left = [
        name
        for name in names
        if name not in taken
        and _plain(name) not in IDS
        and all(isinstance(row[name], str) for row in rows)
    ]
    return left[0] if len(left) == 1 else None


def refuse_columns(path: str, names: Sequence[str], wanted: str) -> InputError:
    """Return the error of a file in which the columns are not found.

    Args:
        path: of the file.
        names: of all columns.
        wanted: the columns in words, with a name that is known for each.
    """
    shown = ", ".join(map(repr, names[:12]))
    return InputError(f"Expected {wanted} in {path!r} but its columns are {shown}: rename them.")


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_") or name.strip("_")
