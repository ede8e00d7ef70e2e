"""Verdicts: does the pruned model keep enough of each use of the dense model?"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy.special import ndtr

from prunelit.arguments import checked
from prunelit.errors import InputError
from prunelit.report.results import Result, finite
from prunelit.report.score_test import LEVEL, MOST_ITEMS, PairedScores, ScoreTest, critical_value

Word = Literal["keeps", "loses", "cannot tell", "no lead"]
# What a run can be made to fail on, and the words that then fail.
FAILS: dict[str, tuple[Word, ...]] = {
    "loses": ("loses",),
    "cannot_tell": ("loses", "cannot tell", "no lead"),
}
KEEP = 0.95
_DIGITS = 6  # most that are printed after the point
# The uses of a model that tasks measure.
Use = Literal["multiple choice", "classification", "retrieval", "generation", "similarity"]
USES: tuple[Use, ...] = get_args(Use)


@checked
class Margins:
    """Margins: the least that a pruned model must keep of the dense one.

    Args:
        keep: share of the dense model's lead over the floor that must remain. A dictionary gives
            shares by the name of a task or of a use, and by `default`. As a text:
            `qa=0.9,default=0.95`.
        margin: highest loss of a score in its own unit, in place of the share: one for all tasks,
            or a dictionary as for `keep`. As a text: `qa=0.05`.

    Raises:
        InputError: if a number is no share, or a text has another form.

    Example:
        >>> from prunelit.report.verdicts import Margins
        >>> margins = Margins(keep={"default": 0.95, "retrieval": 0.9}, margin="answers=0.05")
        >>> margins.of("documents", "retrieval"), margins.of("answers", "generation")
        ((0.9, False), (0.05, True))
    """

    def __init__(
        self,
        keep: float | dict[str, float] | str = KEEP,
        margin: float | dict[str, float] | str | None = None,
    ) -> None:
        self._keep = {"default": KEEP} | _by_name("keep", keep)
        self._margin = {} if margin is None else _by_name("margin", margin)
        for name, values in (("keep", self._keep), ("margin", self._margin)):
            for key, value in values.items():
                if not 0 < value <= 1:
                    raise InputError(
                        f"Expected `{name}` above 0 and at most 1 but got {value} for {key!r}."
                    )

    def plain(self) -> dict[str, dict[str, float]]:
        """Return the arguments by name, as a configuration has them."""
        return {"keep": self._keep, "margin": self._margin}

    def of(self, task: str, use: str) -> tuple[float, bool]:
        """Return the margin of a task, and True if it is an absolute loss.

        The name of a task goes before that of its use, this before the default, and a loss before a
        share.
        """
        for name in (task, use, "default"):
            if name in self._margin:
                return self._margin[name], True
            if name in self._keep:
                return self._keep[name], False
        raise AssertionError("There is a default.")

    def without_verdict(self, tasks: Iterable[str], verdicts: Sequence["Verdict"]) -> list[str]:
        """Say which tasks are named here but have no verdict.

        Args:
            tasks: of a run.
            verdicts: of the run.
        """
        judged = {verdict.task for verdict in verdicts}
        return [
            f"`{option}` names {name!r}, which has no verdict: the task has no main score, or the "
            "run no dense model."
            for option, values in (("keep", self._keep), ("margin", self._margin))
            for name in values
            if name in tasks and name not in judged
        ]

    def check(self, names: Iterable[str]) -> None:
        """Refuse a name that is neither a task nor a use.

        Args:
            names: of the tasks of a run and the uses that they measure.

        Raises:
            InputError: naming the option and similar names.
        """
        known = sorted({*names})
        for option, values in (("keep", self._keep), ("margin", self._margin)):
            for name in values:
                if name not in known and name != "default":
                    raise InputError(
                        f"`{option}` names {name!r}, which is no task of this run and no use that "
                        f"a task measures: expected one of {', '.join(map(repr, known))}."
                    )


def _by_name(option: str, value: Any) -> dict[str, float]:
    """Return numbers by name; a number alone is the default."""
    if isinstance(value, str):
        parts = [part.partition("=") for part in value.split(",")]
        value = {
            name.strip() if sign else "default": number if sign else name
            for name, sign, number in parts
        }
    elif not isinstance(value, Mapping):
        value = {"default": value}
    try:
        return {name: float(number) for name, number in value.items()}
    except (TypeError, ValueError):
        raise InputError(
            f"Expected `{option}` as a number, or as numbers by name such as `qa=0.05`, but got "
            f"{value!r}."
        ) from None


@dataclass(frozen=True)
class Verdict:
    """The verdict of one task.

    Args:
        result: the task's result `retained`.
        word: `keeps` if the lower bound is at or above the margin, `loses` if the upper bound is
            below it, `cannot tell` if the bounds hold the margin, `no lead` if the dense model is
            not above its floor.
        margin: the share that must remain, or the highest loss.
        absolute: True if the margin is a loss.
        value: the share that remains, or pruned minus dense.
        low: lower one-sided bound at `level`; NaN without a lead.
        high: upper one-sided bound.
        level: of the test, as Holm's procedure used it for this task.
        needed: number of items that would decide with 80% power if the observed effect is true;
            None if it is above 100,000 or if the verdict is clear.
    """

    result: Result
    word: Word
    margin: float
    absolute: bool
    value: float
    low: float
    high: float
    level: float
    needed: int | None = None

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.result.task

    @property
    def use(self) -> str:
        """Use of the model that the task measures."""
        return self.result.details["use"]

    def interval(self) -> str:
        """Format the value and its bounds, so that the verdict follows from what is seen.

        They have two digits after the point, or more where a bound would be rounded to the other
        side of the margin.
        """
        if self.word == "no lead":
            return "-"
        margin = -self.margin if self.absolute else self.margin
        bounds = self.low, self.high

        def agrees(digits: int) -> bool:
            return all((round(own, digits) >= margin) == (own >= margin) for own in bounds)

        digits = next(filter(agrees, range(2, _DIGITS)), _DIGITS)
        sign = "+" if self.absolute else ""
        # Adding 0 after rounding makes no number -0.00.
        numbers = (round(number, digits) + 0.0 for number in (self.value, *bounds))
        value, low, high = (f"{number:{sign}.{digits}f}" for number in numbers)
        return f"{value} [{low}, {high}]"

    def bar(self) -> str:
        """Format the margin."""
        return f"-{self.margin:g}" if self.absolute else f"{self.margin:g}"

    def more_items(self) -> str:
        """Say how many items would decide; empty if the verdict is clear."""
        if self.word != "cannot tell":
            return ""
        number = f"more than {MOST_ITEMS:,}" if self.needed is None else f"about {self.needed:,}"
        return f"{number} items would decide"

    def plain(self) -> dict[str, Any]:
        """Return plain data; an infinite bound is None."""
        numbers = {name: getattr(self, name) for name in ("value", "low", "high")}
        return {
            "task": self.task,
            "use": self.use,
            "score": self.result.details["primary"],
            "verdict": self.word,
            "margin": self.margin,
            "margin_is": "loss" if self.absolute else "share of the lead",
            **{key: value if math.isfinite(value) else None for key, value in numbers.items()},
            "level": self.level,
            "n": self.result.n,
            "items_to_decide": self.needed,
            "dense": self.result.details["dense"],
            "pruned": self.result.details["pruned"],
            "floor": self.result.details["chance"],
        }


def decide(scored: Sequence[tuple[Result, PairedScores]], margins: Margins) -> list[Verdict]:
    """Decide for each task of a run.

    Each task is tested in both directions. Holm's procedure over all tasks of the run holds the
    chance of any wrong verdict at 5%. The bounds are those of the same test at the level that the
    procedure used for the task, so bounds and verdict never disagree.

    Source:
        Holm 1979, A simple sequentially rejective multiple test procedure.

    Args:
        scored: the result `retained` of each task and its scores.
        margins: see `Margins`.
    """
    scored = [(result, scores.defined()) for result, scores in scored]
    tests = [ScoreTest(scores) for _, scores in scored]
    own = [margins.of(result.task, result.details["use"]) for result, _ in scored]
    z, lead = [], []
    for test, (margin, absolute) in zip(tests, own, strict=True):
        lead.append(absolute or (test.n > 1 and test.lead_z() >= critical_value(LEVEL)))
        z.append((test.loss_z(margin) if absolute else test.share_z(margin)) if lead[-1] else 0.0)
    levels = holm_levels([float(ndtr(-abs(value))) for value in z])
    verdicts = []
    for number, (result, scores) in enumerate(scored):
        test, (margin, absolute), level = tests[number], own[number], levels[number]
        if not lead[number]:
            nothing = math.nan
            verdicts.append(
                Verdict(result, "no lead", margin, absolute, nothing, nothing, nothing, level)
            )
            continue
        clear = abs(z[number]) >= critical_value(level)
        word: Word = "cannot tell" if not clear else "keeps" if z[number] > 0 else "loses"
        low, high = (test.difference_bounds if absolute else test.share_bounds)(margin, level)
        items = test.items_for_loss if absolute else test.items_for_share
        needed = None if clear else items(margin, level)
        dense, pruned, floor = (float(column.mean()) for column in scores.weighted())
        kept = result.value
        if absolute:
            kept = pruned - dense
        elif math.isnan(kept):  # of a score that is not defined
            kept = (pruned - floor) / (dense - floor)
        verdicts.append(Verdict(result, word, margin, absolute, kept, low, high, level, needed))
    return verdicts


def score_rows(scored: Sequence[tuple[Result, PairedScores]]) -> Iterator[dict[str, Any]]:
    """Yield one row for each item of each task: its main score by both models, and its floor.

    Args:
        scored: the result `retained` of each task and its scores.
    """
    for result, scores in scored:
        weights = np.ones(len(scores)) if scores.weights is None else scores.weights
        columns = (scores.dense, scores.pruned, scores.floor, weights)
        for item, values in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            dense, pruned, floor, weight = values
            yield {
                "task": result.task,
                "item": item,
                "dense": dense,
                "pruned": pruned,
                "floor": floor,
                "bounded": scores.bounded,
                "weight": weight,
            }


def holm_levels(p: Sequence[float], level: float = LEVEL) -> list[float]:
    """Return the level that Holm's procedure uses for each hypothesis.

    Args:
        p: a p-value for each hypothesis.
        level: of the family.

    Returns:
        A hypothesis is rejected if its p-value is at most its level. All that are not rejected
        have the level of the step at which the procedure stopped.

    Example:
        >>> from prunelit.report.verdicts import holm_levels
        >>> holm_levels([0.04, 0.001, 0.03])
        [0.025, 0.0167, 0.025]
    """
    levels = [0.0] * len(p)
    going, step_level = True, level
    for step, index in enumerate(sorted(range(len(p)), key=lambda index: p[index])):
        if going:
            step_level = level / (len(p) - step)
            going = p[index] <= step_level
        levels[index] = step_level
    return levels


def use_words(verdicts: Sequence[Verdict]) -> dict[str, Word]:
    """Return the verdict of each use: it keeps if all its tasks keep, and loses if one loses.

    Args:
        verdicts: of the tasks of a run.
    """
    by_use: dict[str, list[Word]] = {}
    for verdict in verdicts:
        by_use.setdefault(verdict.use, []).append(verdict.word)
    found: dict[str, Word] = {}
    for use, words in by_use.items():
        alike = words[0] if len({*words}) == 1 else "cannot tell"
        found[use] = "loses" if "loses" in words else alike
    return found


def use_sentences(verdicts: Sequence[Verdict]) -> list[str]:
    """Say in words what each use keeps, one sentence a use, the verdict first.

    Tasks are named where a use has several.

    Args:
        verdicts: of the tasks of a run.
    """
    begin = {
        "keeps": "Keeps {}",
        "loses": "Loses {}",
        "cannot tell": "Cannot tell {}",
        "no lead": "No verdict on {}",
    }
    sentences = []
    for use, word in use_words(verdicts).items():
        own = [verdict for verdict in verdicts if verdict.use == use]
        names = [f"{verdict.task}: " if len(own) > 1 else "" for verdict in own]
        parts = [name + _in_words(verdict) for name, verdict in zip(names, own, strict=True)]
        sentences.append(f"{begin[word].format(use)} ({'; '.join(parts)}).")
    return sentences


def _in_words(verdict: Verdict) -> str:
    if verdict.word == "no lead":
        return "the dense model has no lead over the floor"
    kind = "change of the score" if verdict.absolute else "of the lead"
    text = f"{verdict.interval()} {kind}, margin {verdict.bar()}"
    return f"{text}, {more}" if (more := verdict.more_items()) else text


def format_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Format the verdicts of tasks and uses as JSON.

    Args:
        verdicts: of the tasks of a run.
    """
    return as_json(list_verdicts(verdicts))


def as_json(data: Mapping[str, Any]) -> str:
    """Format plain data as JSON that other programs read; NaN and infinity become null."""
    return json.dumps(finite(data), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def list_verdicts(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the verdicts of tasks and uses as plain data.

    Args:
        verdicts: of the tasks of a run.
    """
    return {
        "uses": use_words(verdicts),
        "sentences": use_sentences(verdicts),
        "tasks": [verdict.plain() for verdict in verdicts],
        "family": f"Holm over {len(verdicts)} tasks, one-sided {LEVEL:.0%}",
    }
