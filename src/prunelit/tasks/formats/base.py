"""Read questions and examples from the rows of a data set.

A format is a function that takes a row, as the data set stores it, and returns a `Question` or an
`Example`. A YAML names it by its import path, your own function included:
`format: my_formats.riddles`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from prunelit.data.rows import load_rows
from prunelit.data.sources import split_of
from prunelit.errors import InputError, first_line
from prunelit.recipe import check_own
from prunelit.tasks.questions import Example, GroupedQuestion, Question, check_question

Format = Callable[[dict[str, Any]], Question | Example]
AnyFormat = TypeVar("AnyFormat", bound=Format)
Asked = TypeVar("Asked", Question, Example)


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
    columns: Mapping[str, str] | None = None,
) -> list[Question]:
    """Read multiple-choice questions from the hub or from a local file.

    Rows with the columns `id`, `context`, `choices` and `label` (index of the right choice) need no
    format; it is ignored if one is given. They may have a column `group`.

    Args:
        path: see `prunelit.data.load_rows`.
        split: of the hub data set. A local file is one split, whatever its name, and can be sliced:
            `test[:80%]` is its first 80%.
        limit: number of rows; None reads all.
        subset: configuration of the hub data set.
        format: converts any other row; decorated with `reads_columns`.
        columns: in place of a format, the data set's names of `context`, `choices`, `label` and, if
            it has them, `id` and `group`.

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
    columns: Mapping[str, str] | None = None,
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
        own: columns of a data set that needs neither format nor `columns`; None if there is no such
            form.
        build: converts a row with these fields.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...]
    own: tuple[str, ...] | None
    build: Callable[[dict[str, Any]], Question | Example]

    def check_columns(self, columns: Mapping[str, str]) -> None:
        """Refuse `columns` that lack a required field or have an unknown one."""
        if set(self.required) <= set(columns) <= {*self.required, *self.optional}:
            return
        optional = f" and perhaps {list(self.optional)}" if self.optional else ""
        raise InputError(
            f"Expected `columns` to have the keys {list(self.required)}{optional} but its keys are "
            f"{sorted(columns)}."
        )

    def plain(self, names: Sequence[str]) -> list[str]:
        """Columns to load from a data set that needs no format."""
        own = self.own or ()
        return [*own, *(name for name in self.optional if name in names and name not in own)]

    def match(self, names: Sequence[str] | Mapping[str, Any]) -> bool:
        """True if a data set with these columns needs no format."""
        return self.own is not None and set(self.own) <= set(names)


def _build_question(row: dict[str, Any]) -> Question:
    question = Question(str(row.get("id", "")), row["context"], row["choices"], row["label"])
    check_question(question)
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
    columns: Mapping[str, str] | None,
) -> list[Asked]:
    if format is not None:
        check_own("format", format)
    fields = _FIELDS[kind]
    if columns is not None:
        fields.check_columns(columns)

    def choose(names: Sequence[str]) -> Sequence[str]:
        if columns is not None:
            return list(columns.values())
        if format is not None and not fields.match(names):
            return _columns(format)
        return fields.plain(names)

    rows = load_rows(path, columns=choose, split=split_of(path, split), name=subset, limit=limit)
    convert: Callable[[dict[str, Any]], Any] = fields.build
    if columns is None and format is not None and not fields.match(rows[0]):
        convert = partial(_convert, kind, format)
    asked: list[Asked] = []
    for number, row in enumerate(rows):
        if columns is not None:
            row = {field: row[name] for field, name in columns.items()}
        try:
            one = convert(row)
        except InputError as error:
            name = f"{number} (id {row['id']!r})" if "id" in row else str(number)
            raise InputError(f"Row {name} of {path!r}: {error}.") from error
        asked.append(one)
    for number, one in enumerate(asked):
        if isinstance(one, Question):
            one.id = one.id or str(number)
    return asked


def _convert(kind: type[Asked], format: Format, row: dict[str, Any]) -> Asked:
    try:
        one = format(row)
    except InputError:
        raise
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the format {_name(format)!r} fails on it ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error
    if not isinstance(one, kind):
        hint = ""
        if isinstance(one, Question):
            hint = ": set `questions: true` if its rows are multiple-choice questions"
        raise InputError(
            f"expected the format {_name(format)!r} to return a `{kind.__name__}` but it returned "
            f"a `{type(one).__name__}`{hint}"
        )
    if isinstance(one, Question):
        # Published benchmarks have questions with an empty choice; they are kept.
        check_question(one, empty_choices=True)
    return one


def _columns(format: Format) -> Sequence[str]:
    if not hasattr(format, "columns"):
        raise InputError(
            f"Expected the format {_name(format)!r} to declare its columns: decorate it with "
            "`prunelit.tasks.formats.reads_columns`."
        )
    return format.columns  # type: ignore[attr-defined]


def _name(format: Format) -> str:
    return getattr(format, "__name__", type(format).__name__)
