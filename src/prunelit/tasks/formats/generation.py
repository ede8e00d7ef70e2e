"""How rows become things to ask a model: plain ones, columns of other names, and known data sets.

A format is a function from a row, as the hub holds it, to an example. A YAML names one by its path,
and one of your own as well: `format: my_formats.riddles`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunelit.data.rows import load_rows
from prunelit.data.sources import split_of
from prunelit.errors import InputError, first_line
from prunelit.tasks.formats.multiple_choice import columns_of, name_of, read_questions, reads
from prunelit.tasks.judges.answers import AfterMarker, first_word
from prunelit.tasks.questions import Example, Question

ExampleFormat = Callable[[dict[str, Any]], Example]


def read_examples(
    path: str,
    split: str,
    limit: int | None = None,
    *,
    subset: str | None = None,
    format: Callable[[dict[str, Any]], Any] | None = None,
    columns: Mapping[str, str] | None = None,
    questions: bool = False,
) -> list[Example] | list[Question]:
    """Examples of a data set on the hub or of a local file.

    Args:
        path: see `prunelit.data.rows.load_rows`.
        split: of the hub data set. A local file is one split, whatever its name, and can be sliced:
            `test[:80%]` is its first 80%.
        limit: number of rows; None is all.
        subset: configuration of the hub data set.
        format: makes an example of a row, decorated with `prunelit.tasks.formats.reads`.
        columns: in place of a format, the row's names for `context` and `target`.
        questions: read multiple-choice rows, with their format or columns if they need any; the
            right choice is the answer. So it is without format and columns.

    Raises:
        InputError: naming what is missing, or the first row that is not of this form.
    """
    if questions or (format is None and columns is None):
        options: dict[str, Any] = {"subset": subset, "format": format, "columns": columns}
        return read_questions(path, split, limit, **options)
    split = split_of(path, split)
    if columns is not None and set(columns) != {"context", "target"}:
        raise InputError(
            f"Expected `columns` to name `context` and `target` but it names {sorted(columns)}."
        )
    if columns is not None:
        wanted: Sequence[str] = list(columns.values())
        format = _renamed(columns)
    else:
        assert format is not None
        wanted = columns_of(format)
    examples: list[Example] = []
    rows = load_rows(path, columns=wanted, split=split, name=subset, limit=limit)
    for number, row in enumerate(rows):
        try:
            example = format(row)
            if not isinstance(example, Example):
                raise InputError(
                    f"the format {name_of(format)!r} makes a {type(example).__name__} of it and no "
                    "example: set `questions: true` if it is one of multiple-choice rows"
                )
            examples.append(example)
        except InputError as error:
            raise InputError(f"Row {number} of {path!r}: {error}.") from error
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"Row {number} of {path!r}: it does not fit the format {name_of(format)!r} "
                f"({type(error).__name__}: {first_line(error)})."
            ) from error
    return examples


def chance_of(examples: Sequence[Example | Question]) -> float:
    """Share that a guess gets right: 0 where answers are open.

    Where two questions and more all have the same choices, such as yes and no, it is the share that
    naming one of these gets right. Text that names none scores below it, text that names all above.
    """
    choices = {
        frozenset(one.choices) if isinstance(one, Question) else frozenset() for one in examples
    }
    closed = len(choices) == 1 and all(choices) and len(examples) > 1
    return 1 / len(next(iter(choices))) if closed else 0.0


def _renamed(columns: Mapping[str, str]) -> ExampleFormat:
    def plain(row: dict[str, Any]) -> Example:
        answer = _text(row, columns["target"])
        return Example(_text(row, columns["context"]), answer, answer)

    return plain


@reads("question", "answer")
def gsm8k(row: dict[str, Any]) -> Example:
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168): the answer stands after `####`.

    Solutions lose the calculator's marks `<<...>>`.
    """
    solution = _text(row, "answer")
    answer = AfterMarker("####")(solution)
    if answer is None:
        raise InputError(f"expected an answer after `####` but got {solution!r}")
    return Example(_text(row, "question"), answer, re.sub(r"<<.*?>>", "", solution))


@reads("text")
def lambada(row: dict[str, Any]) -> Example:
    """LAMBADA (Paperno et al. 2016, arXiv:1606.06031): the last word of a passage."""
    text = _text(row, "text")
    context, *last = text.rsplit(maxsplit=1)
    word = first_word(last[0]) if last else None
    if word is None:
        raise InputError(f"expected a text of two words or more but got {text!r}")
    return Example(context, word, last[0])


@reads("prompt", "canonical_solution", "entry_point", "test")
def humaneval(row: dict[str, Any]) -> Example:
    """HumanEval (Chen et al. 2021, arXiv:2107.03374): the target is the code of the tests."""
    tests = f"{_text(row, 'test')}\n\ncheck({_text(row, 'entry_point')})\n"
    return Example(_text(row, "prompt"), tests, _text(row, "canonical_solution"))


def _text(row: dict[str, Any], column: str) -> str:
    text = row[column]
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{column!r} is not a text")
    return text
