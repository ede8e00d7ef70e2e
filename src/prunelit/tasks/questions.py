"""Questions with choices, and examples with an open answer."""

from dataclasses import dataclass

from prunelit.data.choices import check_texts


@dataclass
class Question:
    """A multiple-choice question.

    Args:
        id: names the question in errors.
        context: the text of the question.
        choices: the possible answers.
        label: index of the right choice.

    Example:
        >>> from prunelit.tasks.questions import Question
        >>> question = Question("1", "What is the capital of France?", ["Rome", "Paris"], 1)
        >>> question.answer
        'Paris'
    """

    id: str
    context: str
    choices: list[str]
    label: int

    @property
    def answer(self) -> str:
        """The right choice."""
        return self.choices[self.label]

    # Generation uses a question as an `Example`, whose answer is the right choice.
    target = solution = answer


@dataclass
class GroupedQuestion(Question):
    """A question that belongs to a part of its data set, such as a subject of MMLU.

    Few-shot examples come from the same group, and results are given for each group too.

    Args:
        id: see `Question`.
        context: see `Question`.
        choices: see `Question`.
        label: see `Question`.
        group: name of the part.

    Example:
        >>> from prunelit.tasks.questions import GroupedQuestion, get_group
        >>> get_group(GroupedQuestion("1", "2 + 2 =", ["3", "4"], 1, "sums"))
        'sums'
    """

    group: str


@dataclass(frozen=True)
class Example:
    """A prompt with an open answer.

    Args:
        context: fills the template of the prompt.
        target: the right answer, or the code of the tests of a program.
        solution: the answer that a few-shot example shows.

    Example:
        >>> from prunelit.tasks.questions import Example
        >>> Example("3 * 4 = ", target="12", solution="12").target
        '12'
    """

    context: str
    target: str
    solution: str


def get_group(asked: Question | Example) -> str | None:
    """Return the group of a `GroupedQuestion`, and None for anything else."""
    return asked.group if isinstance(asked, GroupedQuestion) else None


def check_question(question: Question, *, empty_choices: bool = False) -> None:
    """Refuse a question whose texts are not valid; `prunelit.data.choices.settle_labels` its label.

    Args:
        question: may hold values of any type, as they were found in a file.
        empty_choices: allow choices without text.

    Raises:
        InputError: if a field has another form than `Question` says. It does not name the row.
    """
    check_texts(question.context, question.choices, empty_choices=empty_choices)
