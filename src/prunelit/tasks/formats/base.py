"""Read questions and examples from the rows of a data set.

A format is a function that takes a row, as the data set stores it, and returns a `Question` or an
`Example`. A YAML names it by its import path, your own function included:
`format: my_formats.riddles`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from lightning.pytorch.utilities import rank_zero_warn

from prunelit.data.cells import as_parsed
from prunelit.data.choices import merge_choices, settle_labels, take_columns
from prunelit.data.rows import load_rows, refuse_row
from prunelit.errors import InputError, first_line
from prunelit.recipe import check_own
from prunelit.tasks.questions import Example, GroupedQuestion, Question, check_question

Format = Callable[[dict[str, Any]], Question | Example]
AnyFormat = TypeVar("AnyFormat", bound=Format)
Asked = TypeVar("Asked", Question, Example)
# The data set's names of the fields; several for the choices if each has its own column.
Columns = Mapping[str, str | list[str]]


def reads_columns(*columns: str) -> Callable[[AnyFormat], AnyFormat]:
    """Declare the columns that a format reads; other columns are not loaded.

    Args:
        columns: names in the data set.

    Returns:
        A decorator that stores them as the attribute `columns` of the format.

    Example:
        >>> from prunelit.tasks.formats import reads_columns
        >>> from prunelit.tasks.questions import Question
        >>> @reads_columns("riddle", "answer")
        ... def riddles(row):
        ...     return Question("", row["riddle"], ["no", "yes"], int(row["answer"]))
        >>> riddles.columns
        ('riddle', 'answer')
        >>> riddles({"riddle": "Is ice cold?", "answer": "1"}).answer
        'yes'
    """

    def decorate(format: AnyFormat) -> AnyFormat:
        format.columns = columns  # type: ignore[attr-defined]
        return format

    return decorate


def read_questions(
    path: str,
    split: str,
    limit: int | None = None,
    *,
    subset: str | None = None,
    format: Format | None = None,
    columns: Columns | None = None,
) -> list[Question]:
    """Read multiple-choice questions from the hub or from a local file.

    Rows with the columns `context`, `choices` and `label` need no format. If they have a column
    `id` as well, a format is ignored. They may have a column `group`. A row without an id gets its
    number, from 0.

    A label is the index of the right choice, its letter (A is the first), or its text. All texts of
    a file are read in one of these ways. In a CSV file the choices are a list as JSON or Python
    writes it, or each has its own column.

    Args:
        path: see `prunelit.data.load_rows`.
        split: of the hub data set. A local file is one split, whatever its name, and can be sliced:
            `test[:80%]` is its first 80%.
        limit: number of rows; None reads all.
        subset: configuration of the hub data set.
        format: converts any other row; decorated with `reads_columns`.
        columns: in place of a format, the data set's names of `context`, `choices`, `label` and, if
            it has them, `id` and `group`. `choices` may be a list of columns, one per choice; empty
            cells at its end are no choices.

    Raises:
        InputError: if a column is missing or a row is not a valid question; names the row.

    Example:
        >>> from prunelit.tasks.formats.base import read_questions
        >>> (question,) = read_questions("prunelit:facts.jsonl", "train", limit=1)
        >>> question.context, question.answer
        ('What is the organ that covers the whole body?', 'skin')
    """
    return _read(Question, path, split, limit, subset, format, columns)


def read_examples(
    path: str,
    split: str,
    limit: int | None = None,
    *,
    subset: str | None = None,
    format: Format | None = None,
    columns: Columns | None = None,
    questions: bool = False,
) -> list[Example] | list[Question]:
    """Read examples for generation from the hub or from a local file.

    Args:
        path: see `read_questions`.
        split: see `read_questions`.
        limit: see `read_questions`.
        subset: see `read_questions`.
        format: converts a row; decorated with `reads_columns`.
        columns: in place of a format, the data set's names of `context` and `target`.
        questions: read multiple-choice questions with `read_questions`; their right choice is the
            target. This is also done if both `format` and `columns` are None.

    Raises:
        InputError: if a column is missing or a row is not a valid example; names the row.

    Example:
        >>> from prunelit.tasks.formats import gsm8k
        >>> from prunelit.tasks.formats.base import read_examples
        >>> examples = read_examples("prunelit:gsm8k_shots.jsonl", "train", format=gsm8k)
        >>> [example.target for example in examples]
        ['102', '85', '16', '65', '5', '120', '900', '24']
    """
    if questions or (format is None and columns is None):
        return read_questions(path, split, limit, subset=subset, format=format, columns=columns)
    return _read(Example, path, split, limit, subset, format, columns)


def require_text(row: Mapping[str, Any], column: str) -> str:
    """Return the text in a column.

    Raises:
        InputError: if it is not a string or holds only whitespace.
    """
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"`{column}` must be a non-empty string")
    return text


@dataclass(frozen=True)
class _Fields:
    """Fields of a question or an example, under which rows can be read without a format.

    Args:
        required: names that `columns` must contain.
        optional: names that `columns` may contain.
        own: columns of a data set that needs no format, even if one is given; None if there is no
            such form.
        build: converts a row with these fields.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    own: tuple[str, ...] | None
    build: Callable[[dict[str, Any]], Question | Example]

    def check_columns(self, columns: Columns) -> None:
        """Refuse `columns` that lack a required field or have an unknown one."""
        if set(self.required) <= set(columns) <= {*self.required, *self.optional}:
            for field, names in columns.items():
                if isinstance(names, str):
                    continue
                if len(set(names)) < len(names):
                    raise InputError(
                        f"Expected another column for each of the `{field}` in `columns` but got "
                        f"{names!r}."
                    )
                if field != "choices" or len(names) < 2:
                    raise InputError(
                        f"Expected one column for `{field}`, or at least two for `choices`, in "
                        f"`columns` but got {names!r}."
                    )
            return
        optional = f" and perhaps {list(self.optional)}" if self.optional else ""
        raise InputError(
            f"Expected `columns` to have the keys {list(self.required)}{optional} but its keys are "
            f"{sorted(columns)}: write a column of your file behind each of these keys."
        )

    def plain(self, names: Sequence[str]) -> list[str]:
        """Columns to load from a data set that needs no format."""
        return [*self.required, *(name for name in self.optional if name in names)]

    def match(self, names: Sequence[str] | Mapping[str, Any]) -> bool:
        """True if a data set with these columns needs no format."""
        return self.own is not None and set(self.own) <= set(names)


def _build_question(row: dict[str, Any]) -> Question:
    question = Question(row.get("id"), row["context"], row["choices"], row["label"])  # type: ignore[arg-type]
    _finish(question)
    if "group" not in row:
        return question
    return GroupedQuestion(**vars(question), group=require_text(row, "group"))


def _build_example(row: dict[str, Any]) -> Example:
    target = require_text(row, "target")
    return Example(require_text(row, "context"), target, target)


_FIELDS = {
    Question: _Fields(
        required=("context", "choices", "label"),
        optional=("id", "group"),
        own=("id", "context", "choices", "label"),
        build=_build_question,
    ),
    Example: _Fields(("context", "target"), optional=(), own=None, build=_build_example),
}


def _read(
    kind: type[Asked],
    path: str,
    split: str,
    limit: int | None,
    subset: str | None,
    format: Format | None,
    columns: Columns | None,
) -> list[Asked]:
    if format is not None:
        check_own("format", format)
    fields = _FIELDS[kind]
    if columns is not None:
        fields.check_columns(columns)

    def choose(names: Sequence[str]) -> Sequence[str]:
        if columns is not None:
            lists = [[name] if isinstance(name, str) else name for name in columns.values()]
            return list(dict.fromkeys(name for own in lists for name in own))
        if format is not None and not fields.match(names):
            return _columns(format)
        return fields.plain(names)

    def refuse(number: int, problem: str) -> InputError:
        column = "id" if columns is None else columns.get("id")
        row_id = rows[number].get(column) if isinstance(column, str) else None
        for field, names in (columns or {}).items():
            if f"`{field}`" in problem and field != names:
                problem = f"{problem} (`{field}` is read from the column {names!r})"
        return refuse_row(path, number, problem, split=split, id=row_id)

    rows = load_rows(path, columns=choose, split=split, name=subset, limit=limit)
    convert: Callable[[dict[str, Any]], Any] = fields.build
    if columns is None and format is not None and not fields.match(rows[0]):
        convert = partial(_convert, kind, format)
    asked: list[Asked] = []
    for number, row in enumerate(rows):
        if columns is not None:
            row = {field: take_columns(row, names) for field, names in columns.items()}
        try:
            one = convert(row)
        except InputError as error:
            raise refuse(number, str(error)) from error
        asked.append(one)
    questions = [one for one in asked if isinstance(one, Question)]
    if questions:
        settle_labels(questions, refuse)
        _name(questions, path)
    return asked


def _name(questions: Sequence[Question], path: str) -> None:
    """Give questions without an id their number, and warn of an id that several have."""
    for number, one in enumerate(questions):
        text = "" if one.id is None else str(one.id)
        one.id = text if text.strip() else str(number)
    counts = Counter(one.id for one in questions)
    if repeated := [name for name, count in counts.items() if count > 1]:
        numbers = [number for number, one in enumerate(questions) if one.id == repeated[0]]
        rank_zero_warn(
            f"{len(repeated)} ids of {path!r} are not unique: the rows {numbers[0]} and "
            f"{numbers[1]} (counted from 0) are both {repeated[0]!r}. Is a question there twice?"
        )


def _convert(kind: type[Asked], format: Format, row: dict[str, Any]) -> Asked:
    try:
        one = format(row)
    except InputError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the format {_format_name(format)!r} fails on it ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error
    if not isinstance(one, kind):
        hint = ""
        if isinstance(one, Question):
            hint = ": set `questions: true` if its rows are multiple-choice questions"
        raise InputError(
            f"expected the format {_format_name(format)!r} to return a `{kind.__name__}` but it "
            f"returned a `{type(one).__name__}`{hint}"
        )
    if isinstance(one, Question):
        # Published benchmarks have questions with an empty choice; they are kept.
        _finish(one, empty_choices=True)
    return one


def _finish(question: Question, *, empty_choices: bool = False) -> None:
    """Read the list of choices from a text, check it, and give equal choices one text."""
    question.choices = as_parsed(question.choices)
    check_question(question, empty_choices=empty_choices)
    question.choices = merge_choices(question.choices)


def _columns(format: Format) -> Sequence[str]:
    if not hasattr(format, "columns"):
        raise InputError(
            f"Expected the format {_format_name(format)!r} to declare its columns: decorate it "
            "with `prunelit.tasks.formats.reads_columns`."
        )
    return format.columns  # type: ignore[attr-defined]


def _format_name(format: Format) -> str:
    return getattr(format, "__name__", type(format).__name__)
