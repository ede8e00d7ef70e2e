"""Judges: decide if the text of a model is right."""

from prunelit.tasks.judges.answers import (
    AfterMarker,
    code_block,
    first_line,
    first_number,
    first_word,
    last_number,
    normalise,
    normalise_number,
    verbatim,
    whole,
)
from prunelit.tasks.judges.judge import ExactMatch, Execution, Judge
from prunelit.tasks.judges.sandbox import Limits

__all__ = [
    "AfterMarker",
    "ExactMatch",
    "Execution",
    "Judge",
    "Limits",
    "code_block",
    "first_line",
    "first_number",
    "first_word",
    "last_number",
    "normalise",
    "normalise_number",
    "verbatim",
    "whole",
]
