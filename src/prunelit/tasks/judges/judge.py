"""Whether what a model wrote is right."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from prunelit.errors import InputError
from prunelit.recipe import describe
from prunelit.tasks.judges.answers import (
    Extract,
    Normalise,
    contains,
    exact_match,
    normalise,
    verbatim,
    whole,
)
from prunelit.tasks.judges.sandbox import Limits, check_isolation, run_program
from prunelit.tasks.questions import Example, Question


class Judge(ABC):
    """Says whether a text is right, by one or more readings of it.

    It keeps its constructor's arguments under their names, by which results can be compared.
    """

    @property
    @abstractmethod
    def metrics(self) -> Sequence[str]:
        """Names of the readings; none where nothing is judged."""

    @property
    def primary(self) -> str | None:
        """The reading by which models are compared; None where nothing is judged."""
        return next(iter(self.metrics), None)

    @abstractmethod
    def answers(self, text: str) -> dict[str, str | None]:
        """What each reading finds in the text; None where it finds nothing."""

    @abstractmethod
    def right(self, example: Example | Question, text: str) -> dict[str, bool]:
        """For each reading, whether the text is right."""

    def allow(self) -> None:  # noqa: B027 - most run nothing
        """The programs that a model wrote may be run; called before `check`, if at all."""

    def check(self) -> None:  # noqa: B027 - most need nothing
        """Refuse a machine that cannot judge; called before any model is read.

        Raises:
            InputError: saying what is missing.
        """

    def details(self) -> dict[str, Any]:
        """What makes its numbers comparable."""
        return {"judge": describe(self)}


class ExactMatch(Judge):
    """Answer and target are the same after normalising.

    Args:
        extract: for the name of each metric, what finds the answer in the text, see
            `prunelit.tasks.judges.answers`.
        normalise: of answer and target.
        contains: adds the metric `contains`: the target stands in the text as whole words.
    """

    def __init__(
        self,
        extract: dict[str, Extract] | None = None,
        normalise: Normalise = normalise,
        contains: bool = False,
    ) -> None:
        self.extract = extract or {"exact_match": whole}
        self.normalise = normalise
        self.contains = contains
        if contains and "contains" in self.extract:
            raise InputError("Expected no extraction with the name `contains` beside `contains`.")

    @property
    def metrics(self) -> Sequence[str]:
        return [*self.extract, *(["contains"] if self.contains else [])]

    @property
    def primary(self) -> str | None:
        return "contains" if self.contains else super().primary

    def answers(self, text: str) -> dict[str, str | None]:
        found = {name: extract(text) for name, extract in self.extract.items()}
        return found | {"contains": whole(text)} if self.contains else found

    def right(self, example: Example | Question, text: str) -> dict[str, bool]:
        found = self.answers(text)
        values = {
            name: exact_match(found[name], example.target, self.normalise) for name in self.extract
        }
        if self.contains:
            values["contains"] = contains(text, example.target)
        return values


class Execution(Judge):
    """The program runs to the end of its tests.

    It is what the model wrote, between the example's context and its target. It is run, in the
    isolation of `sandbox.py`, only after `allow`, which no configuration of a task can call;
    without, nothing is judged, and the programs are only written down.

    Args:
        extract: finds the code in the text; one that finds nothing makes the answer wrong.
        limits: of each program.
    """

    def __init__(
        self,
        extract: Extract = verbatim,
        limits: Limits | None = None,
    ) -> None:
        self.allowed = False
        self.extract = extract
        self.limits = limits or Limits()

    @property
    def metrics(self) -> Sequence[str]:
        return ["passed"] if self.allowed else []

    def answers(self, text: str) -> dict[str, str | None]:
        return {"passed": self.extract(text)}

    def right(self, example: Example | Question, text: str) -> dict[str, bool]:
        if not self.allowed:
            return {}
        code = self.extract(text)
        if code is None:
            return {"passed": False}
        program = f"{example.context}{code}\n{example.target}"
        return {"passed": run_program(program, self.limits).finished}

    def allow(self) -> None:
        self.allowed = True

    def details(self) -> dict[str, Any]:
        return {**super().details(), "executed": self.allowed}

    def check(self) -> None:
        if self.allowed:
            check_isolation()
        else:
            rank_zero_info(
                "Programs are written down but neither run nor judged; `--allow_code_execution "
                "true` runs each in isolation."
            )
