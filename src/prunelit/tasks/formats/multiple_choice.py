"""How rows become questions: plain ones, columns of other names, and well-known data sets.

A format is a function from a row, as the hub holds it, to a question. A YAML names one by its path,
and one of your own as well: `format: my_formats.riddles`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from prunelit.data.rows import load_rows
from prunelit.data.sources import split_of
from prunelit.errors import InputError, first_line
from prunelit.tasks.questions import Question, read_question

Format = Callable[[dict[str, Any]], Question]
AnyFormat = TypeVar("AnyFormat", bound=Callable[[dict[str, Any]], Any])

_PLAIN = ("id", "context", "choices", "label")
_GROUP = "group"


@dataclass
class GroupedQuestion(Question):
    """A question of a part, such as a subject, that few-shot examples and results keep apart."""

    group: str


def reads(*columns: str) -> Callable[[AnyFormat], AnyFormat]:
    """Decorates a format with the columns that it reads."""

    def decorated(format: AnyFormat) -> AnyFormat:
        format.columns = columns  # type: ignore[attr-defined]
        return format

    return decorated


def read_questions(
    path: str,
    split: str,
    limit: int | None = None,
    *,
    subset: str | None = None,
    format: Format | None = None,
    columns: Mapping[str, str] | None = None,
) -> list[Question]:
    """Questions of a data set on the hub or of a local file.

    Rows with the columns `id`, `context`, `choices` and `label` (the index of the right choice) are
    questions already, whatever the format; a column `group` is kept.

    Args:
        path: see `prunelit.data.rows.load_rows`.
        split: of the hub data set. A local file is one split, whatever its name, and can be sliced:
            `test[:80%]` is its first 80%.
        limit: number of rows; None is all.
        subset: configuration of the hub data set.
        format: makes a question of any other row, decorated with `reads`.
        columns: in place of a format, the row's name for each of `context`, `choices`, `label` and,
            where there is one, `id` and `group`.

    Raises:
        InputError: naming what is missing, or the first row that is not of this form.
    """
    split = split_of(path, split)
    if columns is not None and not set(_PLAIN[1:]) <= set(columns) <= {*_PLAIN, _GROUP}:
        raise InputError(
            "Expected `columns` to name `context`, `choices` and `label`, and at most `id` and "
            f"`group` besides, but it names {sorted(columns)}."
        )

    def wanted(there: Sequence[str]) -> Sequence[str]:
        if columns is not None:
            return list(columns.values())
        if format is not None and not set(_PLAIN) <= set(there):
            return columns_of(format)
        return [*_PLAIN, _GROUP] if _GROUP in there else _PLAIN

    rows = load_rows(path, columns=wanted, split=split, name=subset, limit=limit)
    plain = columns is None and set(_PLAIN) <= set(rows[0])
    questions = []
    for number, row in enumerate(rows):
        if columns is not None:
            row = {name: row[own] for name, own in columns.items()}
        named = f"{number} (id {row['id']!r})" if "id" in row else str(number)
        try:
            if plain or columns is not None or format is None:
                question = _plain({"id": number, **row})
            else:
                question = _formatted(format, row)
        except InputError as error:
            raise InputError(f"Row {named} of {path!r}: {error}.") from error
        question.id = question.id or str(number)
        questions.append(question)
    return questions


def _plain(row: dict[str, Any]) -> Question:
    question = read_question(row)
    if _GROUP not in row:
        return question
    if not isinstance(row[_GROUP], str) or not row[_GROUP]:
        raise InputError("`group` is not a text")
    return GroupedQuestion(**vars(question), group=row[_GROUP])


def _formatted(format: Format, row: dict[str, Any]) -> Question:
    try:
        question = format(row)
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"it does not fit the format {name_of(format)!r} ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error
    if not isinstance(question, Question):
        raise InputError(
            f"the format {name_of(format)!r} makes a {type(question).__name__} of it, no question"
        )
    # A benchmark is taken as it is, an empty choice among the others included.
    read_question({**vars(question), "choices": [text.strip() or "-" for text in question.choices]})
    return question


def columns_of(format: Callable[..., Any]) -> Sequence[str]:
    """The columns that a format reads.

    Raises:
        InputError: if it does not say.
    """
    if not hasattr(format, "columns"):
        raise InputError(
            f"Expected the format {name_of(format)!r} to say which columns it reads: decorate it "
            "with `prunelit.tasks.formats.reads`."
        )
    return format.columns  # type: ignore[attr-defined]


def name_of(format: Callable[..., Any]) -> str:
    """What a format is called in an error."""
    return getattr(format, "__name__", type(format).__name__)


@reads("id", "question", "choices", "answerKey")
def arc(row: dict[str, Any]) -> Question:
    """ARC (Clark et al. 2018, arXiv:1803.05457)."""
    choices = row["choices"]
    label = choices["label"].index(row["answerKey"].strip())
    return Question(row["id"], row["question"], choices["text"], label)


@reads("id", "question", "choices", "answerKey")
def commonsense_qa(row: dict[str, Any]) -> Question:
    """CommonsenseQA (Talmor et al. 2019, arXiv:1811.00937)."""
    return arc({**row, "question": row["question"].strip()})


@reads("id", "question_stem", "choices", "answerKey")
def openbookqa(row: dict[str, Any]) -> Question:
    """OpenBookQA (Mihaylov et al. 2018, arXiv:1809.02789), without its book."""
    return arc({**row, "question": row["question_stem"]})


@reads("activity_label", "ctx_a", "ctx_b", "endings", "label")
def hellaswag(row: dict[str, Any]) -> Question:
    """HellaSwag (Zellers et al. 2019, arXiv:1905.07830), its texts without WikiHow's marks.

    The heading comes first, and the part that the endings complete begins like a sentence.
    """
    context = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    choices = [_without_marks(ending) for ending in row["endings"]]
    return Question("", _without_marks(context), choices, int(row["label"]))


def _without_marks(text: str) -> str:
    """A title mark ends a sentence; any other mark in square brackets goes."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


@reads("goal", "sol1", "sol2", "label")
def piqa(row: dict[str, Any]) -> Question:
    """PIQA (Bisk et al. 2020, arXiv:1911.11641)."""
    return Question("", row["goal"], [row["sol1"], row["sol2"]], row["label"])


@reads("sentence", "option1", "option2", "answer")
def winogrande(row: dict[str, Any]) -> Question:
    """WinoGrande (Sakaguchi et al. 2020, arXiv:1907.10641); `_` is the blank in the context."""
    choices = [row["option1"], row["option2"]]
    return Question("", row["sentence"], choices, ("1", "2").index(row["answer"]))


@reads("passage", "question", "label")
def boolq(row: dict[str, Any]) -> Question:
    """BoolQ (Clark et al. 2019, arXiv:1905.10044) as in SuperGLUE."""
    context = f"{row['passage']}\nQuestion: {row['question']}?"
    return Question("", context, ["no", "yes"], row["label"])


@reads("premise", "choice1", "choice2", "question", "label")
def copa(row: dict[str, Any]) -> Question:
    """COPA (Roemmele et al. 2011) as in SuperGLUE, premise and choice as one sentence."""
    word = {"cause": "because", "effect": "therefore"}[row["question"]]
    premise = row["premise"].strip()[:-1]  # its full stop
    choices = [choice[0].lower() + choice[1:] for choice in (row["choice1"], row["choice2"])]
    return Question("", f"{premise} {word}", choices, row["label"])


@reads("question", "subject", "choices", "answer")
def mmlu(row: dict[str, Any]) -> Question:
    """MMLU (Hendrycks et al. 2021, arXiv:2009.03300), grouped by subject."""
    question = row["question"].strip()
    return GroupedQuestion("", question, row["choices"], row["answer"], row["subject"])


@reads("question", "mc1_targets")
def truthfulqa_mc1(row: dict[str, Any]) -> Question:
    """TruthfulQA with a single true answer (Lin et al. 2022, arXiv:2109.07958)."""
    targets = row["mc1_targets"]
    return Question("", row["question"], targets["choices"], targets["labels"].index(1))
