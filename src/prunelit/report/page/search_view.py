"""The answers of a search on the page: a line for each method and use, and the figure."""

import base64
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunelit.report.page.verdict_view import BEGIN, LOOKS
from prunelit.report.page.words import NAMES
from prunelit.report.search import Answer, multiplicity, tell_spread


def view_search(answers: Sequence[Answer], figure: Path) -> dict[str, Any]:
    """Return the section of a search, the largest setting of each use first.

    Args:
        answers: of all methods.
        figure: of the settings; it need not exist.
    """
    uri = base64.b64encode(figure.read_bytes()).decode() if figure.is_file() else ""
    return {
        "title": "Largest setting that keeps each use",
        "lines": [_line(answer) for answer in answers],
        "figure": f"data:image/png;base64,{uri}" if uri else "",
        "figure_sentence": _steepest(answers),
        "note": multiplicity(answers),
    }


def _line(answer: Answer) -> dict[str, str]:
    low = answer.largest
    none = "no lead" if answer.word == "no lead" else "none"
    return {
        "look": LOOKS[answer.word],
        "word": BEGIN[answer.word],
        "name": f"{NAMES.get(answer.use, answer.use)} by {answer.method}",
        "value": none if low is None else f"{answer.option} {low.setting:.12g}",
        "text": " ".join([answer.sentence(), *tell_spread(answer)]),
    }


def _steepest(answers: Sequence[Answer]) -> str:
    """Read the largest fall between two neighbouring settings out of the answers."""
    falls = []
    for answer in answers:
        for one, two in itertools.pairwise(answer.measured):
            before, after = one.worst().value, two.worst().value
            if not math.isnan(before - after):
                falls.append((before - after, answer, one, two))
    if not falls:
        return "Each method has one measured setting."
    _, answer, one, two = max(falls, key=lambda fall: fall[0])
    return (
        f"The largest fall between two measured settings: {answer.use} by {answer.method} from "
        f"{one.worst().value:.2f} at {answer.option} {one.setting:.12g} to {two.worst().value:.2f} "
        f"at {two.setting:.12g}."
    )
