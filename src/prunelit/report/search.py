"""The answer of a search: for each method and use, the strongest setting that still keeps."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from prunelit.errors import InputError, first_line
from prunelit.report.bisection import find_bracket, find_uneven
from prunelit.report.placed import Placed
from prunelit.report.results import finite
from prunelit.report.score_test import LEVEL
from prunelit.report.verdicts import USES, Verdict, Word, use_words

SEARCH = "search.json"


@dataclass(frozen=True)
class Measured:
    """One setting, as one use of the model sees it.

    Args:
        setting: of the knob.
        seed: number of the calibration text; 0 is that of the run.
        word: verdict of the use.
        verdicts: of its tasks.
    """

    setting: float
    seed: int
    word: Word
    verdicts: Sequence[Verdict]

    def worst(self) -> Verdict:
        """Return the verdict of the task that decides."""
        return _decisive(self.word, self.verdicts)

    def plain(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "setting": self.setting,
            "seed": self.seed,
            "verdict": self.word,
            "tasks": [verdict.plain() for verdict in self.verdicts],
        }


@dataclass(frozen=True)
class Answer:
    """The answer for one use of one method.

    Args:
        method: name of the method.
        option: its numeric option.
        use: of the model.
        measured: every measured setting in ascending order, with the calibration text of the run.
        repeated: settings that were repeated with other calibration text.
    """

    method: str
    option: str
    use: str
    measured: Sequence[Measured]
    repeated: Sequence[Measured] = field(default_factory=list)

    @property
    def largest(self) -> Measured | None:
        """The strongest setting up to which every measured one keeps."""
        return self._find(find_bracket(self.kept)[0])

    @property
    def smallest(self) -> Measured | None:
        """The weakest measured setting that does not keep."""
        return self._find(find_bracket(self.kept)[1])

    @property
    def word(self) -> Word:
        """The verdict on the use: it keeps if a setting keeps it."""
        if self.largest is not None or self.smallest is None:
            return "keeps"
        return self.smallest.word

    @property
    def kept(self) -> dict[float, bool]:
        """True for each measured setting that keeps."""
        return {one.setting: one.word == "keeps" for one in self.measured}

    @property
    def around(self) -> list[Measured]:
        """The settings around the answer; none if the dense model has no lead."""
        if self.word == "no lead":
            return []
        return [one for one in (self.largest, self.smallest) if one is not None]

    def spread(self, one: Measured) -> list[Measured]:
        """Return a setting with all calibration texts; empty if it was not repeated."""
        others = [other for other in self.repeated if other.setting == one.setting]
        return [one, *others] if others else []

    def sentence(self) -> str:
        """Say what the largest setting is, and what happens above it."""
        low, high, name = self.largest, self.smallest, f"{self.method} keeps {self.use}"
        if self.word == "no lead":
            return f"No verdict on {self.use}: the dense model has no lead over the floor."
        uneven = find_uneven(self.kept)
        again = (
            f" {_join(uneven)} {'keep' if len(uneven) > 1 else 'keeps'} it: the scores do not "
            "fall evenly."
            if uneven
            else ""
        )
        if low is None:
            assert high is not None
            begin = (
                f"The weakest measured setting of {self.method} does not keep {self.use}"
                if uneven
                else f"No measured setting of {self.method} keeps {self.use}"
            )
            return f"{begin}: {self.option} {_above(high)}.{again}"
        own = f"{_interval(low)}, margin {low.worst().bar()}"
        begin = f"{name} up to {self.option} {low.setting:.12g} ({own})"
        if high is None:
            return f"{begin}, the largest that was measured."
        return f"{begin}; {_above(high)}.{again}"

    def plain(self) -> dict[str, Any]:
        """Return plain data."""
        low, high = self.largest, self.smallest
        return {
            "method": self.method,
            "option": self.option,
            "use": self.use,
            "largest_that_keeps": None if low is None else low.plain(),
            "smallest_that_does_not": None if high is None else high.plain(),
            "verdict": self.word,
            "uneven": find_uneven(self.kept),
            "measured": [{"setting": one.setting, "verdict": one.word} for one in self.measured],
            "repeated": [one.plain() for one in self.repeated],
            "sentence": self.sentence(),
        }

    def _find(self, setting: float | None) -> Measured | None:
        return next((one for one in self.measured if one.setting == setting), None)


def kept_by_use(
    measured: Mapping[float, Sequence[Verdict]], uses: Sequence[str] | None
) -> list[dict[float, bool]]:
    """Return for each use that can be decided the measured settings, True for those that keep it.

    A use in which the dense model has no lead cannot be decided by any setting.

    Args:
        measured: verdicts of each measured setting.
        uses: that are searched; None is all.
    """
    found: dict[str, dict[float, bool]] = {}
    without = {v.use for own in measured.values() for v in own if v.word == "no lead"}
    for setting, verdicts in measured.items():
        for use, word in use_words(verdicts).items():
            if use not in without and (uses is None or use in uses):
                found.setdefault(use, {})[setting] = word == "keeps"
    return list(found.values()) if measured else [{}]


def find_answers(placed: Sequence[Placed], uses: Sequence[str] | None) -> list[Answer]:
    """Find the answer of each method for each use.

    Args:
        placed: every measured setting of every method, see `prunelit.report.placed`.
        uses: that are searched; None is all.
    """
    found = {v.use for one in placed for v in one.verdicts}
    answers = []
    for method in dict.fromkeys(one.point.method for one in placed):
        own = [one for one in placed if one.point.method == method]
        for use in [*USES, *sorted(found - {*USES})]:
            if use not in found or (uses is not None and use not in uses):
                continue
            seen = [_see(one, use) for one in own]
            first, others = ([s for s in seen if bool(s.seed) == other] for other in (False, True))
            answers.append(Answer(method, own[0].point.option, use, first, others))
    return answers


def _see(one: Placed, use: str) -> Measured:
    own = [verdict for verdict in one.verdicts if verdict.use == use]
    no_lead = any(verdict.word == "no lead" for verdict in own)
    word: Word = "no lead" if no_lead else use_words(own)[use]
    return Measured(one.point.setting, one.point.seed, word, own)


def search_table(answers: Sequence[Answer]) -> Table:
    """Build the table: one line for each method and use.

    Args:
        answers: of all methods.
    """
    table = Table(
        title="Largest setting that keeps each use: value [bounds]",
        title_justify="left",
        show_lines=True,
    )
    for heading in ("method", "use", "largest\nthat keeps", "smallest\nthat does not"):
        table.add_column(heading)
    for answer in answers:
        tried = f"{answer.method}\n{answer.option}, {len(answer.measured)} tried"
        table.add_row(tried, answer.use, *_cells(answer))
    return table


def _cells(answer: Answer) -> tuple[str, str]:
    """Format the largest setting that keeps and the smallest that does not."""
    if answer.word == "no lead":
        return "no lead", ""
    low, high = (
        "none"
        if one is None
        else "\n".join([f"{one.setting:.12g}: {one.word}", _interval(one), *_spread(answer, one)])
        for one in (answer.largest, answer.smallest)
    )
    return low, high


def _spread(answer: Answer, one: Measured) -> list[str]:
    """Return the values with all calibration texts, and how many keep; empty if not repeated."""
    if not (every := answer.spread(one)):
        return []
    values = sorted(each.worst().value for each in every)
    kept = sum(each.word == "keeps" for each in every)
    return [f"{values[0]:.2f} to {values[-1]:.2f}", f"{kept} of {len(every)} texts keep"]


def _spreads(answer: Answer) -> Iterator[str]:
    """Say for each setting around the answer what other calibration text gives."""
    for one in answer.around:
        if spread := _spread(answer, one):
            yield f"{one.setting:.12g}: {', '.join(spread)}"


def closing(answers: Sequence[Answer]) -> list[str]:
    """Say what each use keeps, how many settings were tried, and what the verdicts hold for.

    Args:
        answers: of all methods.
    """
    lines = list(dict.fromkeys(answer.sentence() for answer in answers))
    lines += [line for answer in answers for line in tell_spread(answer)]
    return [*lines, multiplicity(answers)]


def tell_spread(answer: Answer) -> list[str]:
    """Say what other calibration text gives; nothing if no setting was repeated."""
    spreads = "; ".join(_spreads(answer))
    return (
        [f"Other calibration text ({answer.method}, {answer.use}): {spreads}."] if spreads else []
    )


def multiplicity(answers: Sequence[Answer]) -> str:
    """Say how many settings were tried, and over what the chance of a wrong verdict is held.

    Args:
        answers: of all methods.
    """
    tasks = dict.fromkeys(v.task for a in answers for one in a.measured for v in one.verdicts)
    over = f"the {len(tasks)} tasks" if len(tasks) > 1 else "the one task"
    return (
        f"{_count(answers)} settings were tried. Holm's procedure holds the chance of a wrong "
        f"verdict at {LEVEL:.0%} over {over} of one setting, not over the settings: confirm the "
        "one that you choose on other items."
    )


def _count(answers: Sequence[Answer]) -> int:
    """Count the settings that were tried, those with other calibration text too."""
    every = ((a.method, one) for a in answers for one in [*a.measured, *a.repeated])
    return len({(method, one.setting, one.seed) for method, one in every})


def format_search(
    answers: Sequence[Answer], variants: Sequence[str] = (), uses: Sequence[str] | None = None
) -> str:
    """Format the answers as JSON.

    Args:
        answers: of all methods.
        variants: names of those that count.
        uses: that were searched; None is all.
    """
    data = {
        "variants": list(variants),
        "uses": None if uses is None else list(uses),
        "answers": [answer.plain() for answer in answers],
        "sentences": closing(answers),
        "settings_tried": _count(answers),
        "family": f"Holm over the tasks of one setting, one-sided {LEVEL:.0%}",
    }
    return json.dumps(finite(data), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def read_search(folder: Path) -> tuple[list[str], list[str] | None] | None:
    """Read which variants and uses the answers in a folder are of.

    Args:
        folder: of all variants.

    Returns:
        Names of the variants, and the uses or None for all; None if the folder has no answers.

    Raises:
        InputError: if the file is damaged.
    """
    path = folder / SEARCH
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        names, uses = data["variants"], data["uses"]
        for texts in (names, uses or []):
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError("expected names in lists")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} is not as a search writes it ({first_line(error)}): run the search "
            "again, or remove the file."
        ) from error
    return names, uses


def kept_words(verdicts: Sequence[Verdict]) -> str:
    """Say which uses are kept, such as `keeps retrieval; loses generation`; empty without verdicts.

    Args:
        verdicts: of all tasks.
    """
    groups: dict[str, list[str]] = {}
    for use, word in use_words(verdicts).items():
        groups.setdefault(word, []).append(use)
    begin = {"no lead": "no lead in"}
    return "; ".join(f"{begin.get(word, word)} {', '.join(uses)}" for word, uses in groups.items())


def name_decisive(word: Word, verdicts: Sequence[Verdict]) -> str:
    """Format the interval of the task that decides on a use, with its name if there are several.

    Args:
        word: verdict on the use.
        verdicts: of its tasks.
    """
    if word == "no lead":
        return ""
    worst = _decisive(word, verdicts)
    return f"{worst.task} {worst.interval()}" if len(verdicts) > 1 else worst.interval()


def _decisive(word: Word, verdicts: Sequence[Verdict]) -> Verdict:
    own = [verdict for verdict in verdicts if verdict.word == word]
    return min(own or verdicts, key=lambda v: v.low if v.word == "keeps" else v.value)


def _above(one: Measured) -> str:
    verb = "cannot be told" if one.word == "cannot tell" else one.word
    needed = one.worst().more_items()
    own = f"{_interval(one)}, margin {one.worst().bar()}{needed and f', {needed}'}"
    return f"{one.setting:.12g} {verb} ({own})"


def _interval(one: Measured) -> str:
    return name_decisive(one.word, one.verdicts)


def _join(settings: Sequence[float]) -> str:
    return ", ".join(f"{setting:.12g}" for setting in settings)
