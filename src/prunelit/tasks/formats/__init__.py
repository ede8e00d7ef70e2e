"""Formats: convert a row of a data set to a question or an example."""

from prunelit.tasks.formats.base import reads_columns
from prunelit.tasks.formats.generation import gsm8k, humaneval, lambada
from prunelit.tasks.formats.multiple_choice import (
    arc,
    boolq,
    commonsense_qa,
    copa,
    hellaswag,
    mmlu,
    openbookqa,
    piqa,
    truthfulqa_mc1,
    winogrande,
)

__all__ = [
    "arc",
    "boolq",
    "commonsense_qa",
    "copa",
    "gsm8k",
    "hellaswag",
    "humaneval",
    "lambada",
    "mmlu",
    "openbookqa",
    "piqa",
    "reads_columns",
    "truthfulqa_mc1",
    "winogrande",
]
