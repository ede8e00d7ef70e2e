"""Read the choices of a question, and find the right one by the label of its row."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Protocol

from prunelit.data.cells import as_whole
from prunelit.errors import InputError


class Labelled(Protocol):
    """A question whose label may be of any type, such as `prunelit.tasks.questions.Question`."""

    choices: list[str]
    label: Any


def take_columns(row: Mapping[str, Any], names: str | Sequence[str]) -> Any:
    """Return the value of one column, or of several, without empty ones at their end.

    Args:
        row: of a data set.
        names: of a column, or of one column for each choice.
    """
    if isinstance(names, str):
        return row[names]
    values = [row[name] for name in names]
    while values and values[-1] in (None, ""):
        values.pop()
    return values


def check_texts(context: Any, choices: Any, *, empty_choices: bool = False) -> None:
    """Refuse the texts of a question that are not valid.

    Args:
        context: may be of any type, as it was found in a file.
        choices: likewise.
        empty_choices: allow choices without text.

    Raises:
        InputError: if the context is no text, or the choices are not at least two texts. It does
            not name the row.
    """
    if not isinstance(context, str) or not context.strip():
        raise InputError("`context` must be a non-empty string")
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(text, str) and (empty_choices or text.strip()) for text in choices)
    ):
        raise InputError("`choices` must be a list of at least two non-empty strings")


def settle_labels(questions: Sequence[Labelled], refuse: Callable[[int, str], InputError]) -> str:
    """Replace labels by the indices of the right choices.

    A number is the index. Texts are read in one way in all rows: as a number from 0, as a letter,
    or as the text of the right choice.

    Args:
        questions: valid but for their labels, which may be of any type.
        refuse: returns the error for a row, from its number and the problem.

    Returns:
        The way in which the labels were read, in words.

    Raises:
        InputError: naming a row whose label names no choice, or one that two ways read differently.
    """
    found = {way: [_place(one, read) for one in questions] for way, read in _WAYS.items()}
    fitting = [way for way, places in found.items() if None not in places]
    if not fitting:
        nearest = min(found, key=lambda way: found[way].count(None))
        number = found[nearest].index(None)
        raise refuse(number, _expected(questions[number]))
    way, *others = fitting
    for other in others:
        for number, both in enumerate(zip(found[way], found[other], strict=True)):
            if both[0] != both[1]:
                one, two = (questions[number].choices[place or 0] for place in both)
                better = "numbers from 0" if way == "a letter" else "letters"
                raise refuse(
                    number,
                    f"the label {questions[number].label!r} is {one!r} as {way}, and {two!r} as "
                    f"{other}: write {better} as labels",
                )
    for question, place in zip(questions, found[way], strict=True):
        assert place is not None
        question.label = place
    return way


def merge_choices(choices: Sequence[str]) -> list[str]:
    """Give choices that differ only in spaces around them or in their Unicode form one text."""
    first: dict[str, str] = {}
    return [first.setdefault(_bare(choice), choice) for choice in choices]


def _bare(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _as_letter(label: str, choices: Sequence[str]) -> int | None:
    letter = label.strip().upper()
    return ascii_uppercase.index(letter) if letter in [*ascii_uppercase] else None


def _as_text(label: str, choices: Sequence[str]) -> int | None:
    texts = [_bare(choice) for choice in choices]
    return texts.index(_bare(label)) if _bare(label) in texts else None


_WAYS: dict[str, Callable[[str, Sequence[str]], int | None]] = {
    "a number from 0": lambda label, choices: as_whole(label),
    "a letter": _as_letter,
    "the text of a choice": _as_text,
}


def _place(question: Labelled, read: Callable[[str, Sequence[str]], int | None]) -> int | None:
    """Return the index that a label stands for; None if there is no such choice."""
    label, choices = question.label, question.choices
    place = read(label, choices) if isinstance(label, str) else as_whole(label)
    return place if place is not None and 0 <= place < len(choices) else None


def _expected(question: Labelled) -> str:
    size = len(question.choices)
    forms = ""
    if isinstance(question.label, str):
        last = ascii_uppercase[:size][-1]
        forms = f", a letter from A to {last} or the text of a choice,"
    return f"expected `label` in [0, {size}){forms} but got {question.label!r}"
