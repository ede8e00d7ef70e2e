"""Multiple-choice rows, which a triad reads three ways."""

from dataclasses import dataclass
from typing import Any

from prunelit.errors import InputError


@dataclass
class Question:
    """One row: a context, its possible continuations and which one is right."""

    id: str
    context: str
    choices: list[str]
    label: int

    @property
    def answer(self) -> str:
        """The right choice."""
        return self.choices[self.label]

    # Read as an example of `prunelit.tasks.formats`, what is to be written is the right choice.
    target = solution = answer


def read_question(row: dict[str, Any]) -> Question:
    """One row `{id, context, choices, label}`.

    Raises:
        InputError: saying what is wrong with it, without naming the row.
    """
    if (problem := _problem(row)) is not None:
        raise InputError(problem)
    return Question(str(row["id"]), row["context"], row["choices"], row["label"])


def check_template(template: str, *names: str) -> None:
    """Refuse a template that lacks a field or has an unknown one.

    Raises:
        InputError: naming the fields that it may use.
    """
    try:
        filled = template.format(**{name: f"\0{name}\0" for name in names})
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"Expected a template with the fields {', '.join(names)} but {template!r} fails with "
            f"{type(error).__name__} {error}."
        ) from error
    for name in names:
        if f"\0{name}\0" not in filled:
            raise InputError(f"Expected the field {{{name}}} in the template {template!r}.")


def _problem(row: dict[str, Any]) -> str | None:
    if not isinstance(row["context"], str) or not row["context"].strip():
        return "`context` is not a text"
    choices = row["choices"]
    if (
        not isinstance(choices, list)
        or len(choices) < 2
        or not all(isinstance(choice, str) and choice.strip() for choice in choices)
    ):
        return "`choices` is not a list of at least two texts"
    label = row["label"]
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(choices):
        return f"expected `label` in [0, {len(choices)}) but got {label!r}"
    return None


@dataclass(frozen=True)
class Example:
    """One thing to ask a model.

    Args:
        context: fills the template.
        target: the right answer, or the code that follows a program and tests it.
        solution: what a worked example shows as its answer.
    """

    context: str
    target: str
    solution: str
