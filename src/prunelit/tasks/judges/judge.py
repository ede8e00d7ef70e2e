"""Judges: decide if the text of a model is right."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from prunelit.arguments import Checked
from prunelit.errors import InputError
from prunelit.recipe import check_own, describe
from prunelit.tasks.judges.answers import (
    Extract,
    Normalise,
    contains,
    exact_match,
    normalise,
    verbatim,
    whole,
)
from prunelit.tasks.judges.helpers import find_helpers
from prunelit.tasks.judges.inside.carried import NOT_CARRIED
from prunelit.tasks.judges.sandbox import Limits, check_isolation, run_program
from prunelit.tasks.questions import Example, Question


class Judge(Checked, ABC):
    """Decides if the text of a model is right, by one or more metrics.

    Store every constructor argument as an attribute of the same name; prunelit reads them to save
    and compare recipes.

    Example:
        >>> from prunelit.tasks.judges import Judge
        >>> class Ends(Judge):
        ...     metrics = ["ends"]
        ...
        ...     def answers(self, text):
        ...         return {"ends": text.split()[-1]}
        ...
        ...     def right(self, example, text):
        ...         return {"ends": self.answers(text)["ends"] == example.target}
        >>> Ends().primary
        'ends'
    """

    @property
    @abstractmethod
    def metrics(self) -> Sequence[str]:
        """Names of the metrics; empty if nothing is judged."""

    @property
    def primary(self) -> str | None:
        """Metric that the models are compared by; None if nothing is judged."""
        return next(iter(self.metrics), None)

    @abstractmethod
    def answers(self, text: str) -> dict[str, str | None]:
        """Return the answer that each metric finds in the text; None if it finds none."""

    @abstractmethod
    def right(self, example: Example | Question, text: str) -> dict[str, bool]:
        """Return for each metric if the text is right, and True for a doubt that holds.

        Args:
            example: the question that was asked.
            text: of the model.
        """

    @property
    def doubts(self) -> Sequence[str]:
        """Reasons for which a text that is judged wrong may be right; `right` names one of them."""
        return ()

    def allow(self) -> None:
        """Allow the judge to run programs that a model wrote, before `check`."""

    def check(self) -> None:
        """Refuse a machine that cannot judge, before any model is loaded.

        Raises:
            InputError: if something that the judge needs is missing.
        """

    def find_fault(self, example: Example | Question) -> str | None:
        """Return why no text can be right for this example; None if one can.

        Args:
            example: a question that will be asked.
        """
        return None

    def details(self) -> dict[str, Any]:
        """Return the options that two comparable results have in common."""
        return {"judge": describe(self)}


class ExactMatch(Judge):
    """Compares answer and target after normalising.

    Args:
        extract: for each metric the function that finds the answer in the text, see
            `prunelit.tasks.judges.answers`. None is `exact_match` of the whole text.
        normalise: applied to answer and target.
        contains: add the metric `contains`, right if the text contains the target as whole words.

    Raises:
        InputError: if `extract` has a metric `contains` too.

    Example:
        >>> from prunelit.tasks.judges import ExactMatch, last_number
        >>> from prunelit.tasks.questions import Example
        >>> judge = ExactMatch({"last": last_number}, contains=True)
        >>> judge.right(Example("3 * 4 = ?", "12", "12"), "3 * 4 = 12, not 13.")
        {'last': False, 'contains': True}
    """

    def __init__(
        self,
        extract: dict[str, Extract] | None = None,
        normalise: Normalise = normalise,
        contains: bool = False,
    ) -> None:
        self.extract = extract or {"exact_match": whole}
        check_own("normalise", normalise)
        for found in self.extract.values():
            check_own("extract", found)
        self.normalise = normalise
        self.contains = contains
        if contains and "contains" in self.extract:
            raise InputError(
                "Expected another name than `contains` in `extract`, since `contains: true` adds a "
                "metric of this name."
            )

    @property
    def metrics(self) -> Sequence[str]:
        return [*self.extract, *(["contains"] if self.contains else [])]

    @property
    def primary(self) -> str | None:
        return "contains" if self.contains else super().primary

    def find_fault(self, example: Example | Question) -> str | None:
        texts = {example.solution, example.target}
        if len(texts) < 2 or any(any(self.right(example, text).values()) for text in texts):
            return None
        return (
            f"neither its solution nor its target {example.target!r} is a right answer, since the "
            f"judge finds {self.answers(example.solution)}. Correct the row, or choose another "
            "`extract` or `normalise`"
        )

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
    """Runs the program of a model; it is right if the program passes its tests.

    The program consists of the example's context and the code of the model. The example's target is
    the code of the tests, which runs in another interpreter, see `run_program` in `sandbox.py`.
    Imports and complete functions of the context are the tests' own, so that a program cannot
    replace them. Programs run in the sandbox, and only after `allow`, which no option of a task
    calls. Without it nothing is judged, and the programs are saved only.

    A program that does not pass is wrong, also if its tests asked for something that the sandbox
    does not carry. Then `doubt` of the items says for what, and `doubts` in the details counts.

    Args:
        extract: finds the code in the text; the answer is wrong if there is none.
        limits: of each program; None takes the defaults of `Limits`.

    Example:
        >>> from prunelit.tasks.judges import Execution, code_block
        >>> judge = Execution(extract=code_block)
        >>> judge.allowed, judge.metrics
        (False, [])
    """

    def __init__(
        self,
        extract: Extract = verbatim,
        limits: Limits | None = None,
    ) -> None:
        check_own("extract", extract)
        self.allowed = False
        self.extract = extract
        self.limits = limits or Limits()

    @property
    def metrics(self) -> Sequence[str]:
        return ["passed"] if self.allowed else []

    @property
    def doubts(self) -> Sequence[str]:
        return NOT_CARRIED if self.allowed else ()

    def answers(self, text: str) -> dict[str, str | None]:
        return {"passed": self.extract(text)}

    def right(self, example: Example | Question, text: str) -> dict[str, bool]:
        if not self.allowed:
            return {}
        code = self.extract(text)
        if code is None:
            return {"passed": False}
        solution = "" if example.solution == example.target else example.solution
        helpers = find_helpers(example.context, solution)
        program = f"{example.context}{code}\n"
        outcome = run_program(program, self.limits, example.target, helpers)
        doubt = {} if outcome.not_carried is None else {outcome.not_carried: True}
        return {"passed": outcome.finished, **doubt}

    def allow(self) -> None:
        self.allowed = True

    def find_fault(self, example: Example | Question) -> str | None:
        if not self.allowed:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of old escapes in strings
                compile(example.target, "<tests>", "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            return (
                "expected a target of Python code that can be read without the program, but found "
                f"{error}. Correct the row"
            )
        return None

    def details(self) -> dict[str, Any]:
        return {**super().details(), "executed": self.allowed}

    def check(self) -> None:
        if self.allowed:
            check_isolation()
        else:
            rank_zero_info(
                "Programs are saved but not run, so they are not judged. To run each of them in a "
                "sandbox, set `--allow_code_execution true`."
            )
