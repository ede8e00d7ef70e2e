"""The answers of a search on the page: a line for each method and use, and the figure."""

import base64
import itertools
import math
from collections.abc import Sequence
from typing import Any

from prunelit.report.page.verdict_view import BEGIN, LOOKS
from prunelit.report.page.words import NAMES
from prunelit.report.search import Answer, multiplicity, tell_spread


def view_search(answers: Sequence[Answer], figure: bytes) -> dict[str, Any]:
    """Return the section of a search, the largest setting of each use first.

    Args:
        answers: of all methods.
        figure: PNG of the settings; empty if there is none.
    """
    uri = base64.b64encode(figure).decode()
    return {
        "title": "Largest setting that keeps each use",
        "lines": [_line(answer) for answer in answers],
        "table": _table(answers),
        "figure": f"data:image/png;base64,{uri}" if uri else "",
        "figure_sentence": _steepest(answers),
        "note": multiplicity(answers),
    }


def _table(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the largest setting that keeps, one row a method and one column a use."""
    uses = list(dict.fromkeys(answer.use for answer in answers))
    rows: dict[str, dict[str, dict[str, str]]] = {}
    for answer in answers:
        cell = {"look": LOOKS[answer.word], "text": _largest(answer)}
        rows.setdefault(answer.method, {})[answer.use] = cell
    absent = {"look": "none", "text": "not measured"}
    return {
        "uses": [NAMES.get(use, use) for use in uses],
        "rows": [
            {"method": method, "cells": [own.get(use, absent) for use in uses]}
            for method, own in rows.items()
        ],
    }


def _largest(answer: Answer) -> str:
    if answer.largest is None:
        return "no lead" if answer.word == "no lead" else "none"
    return f"{answer.option} {answer.largest.setting:.12g}"


def _line(answer: Answer) -> dict[str, str]:
    return {
        "look": LOOKS[answer.word],
        "word": BEGIN[answer.word],
        "name": f"{NAMES.get(answer.use, answer.use)} by {answer.method}",
        "value": _largest(answer),
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
