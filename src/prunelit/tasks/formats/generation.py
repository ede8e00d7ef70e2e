"""Formats of well-known data sets for generation.

Column names are those of the data set on the hub.
"""

import re
from typing import Any

from prunelit.errors import InputError
from prunelit.tasks.formats.base import reads_columns, require_text
from prunelit.tasks.judges.answers import (
    AfterMarker,
    first_number,
    first_word,
    last_number,
    normalise_number,
)
from prunelit.tasks.judges.words import find_numbers
from prunelit.tasks.questions import Example

# A sign apart from its number, a bound, and words or signs that make another number of it.
_UNCLEAR = re.compile(
    r"^[-\u2212\u2013]\s?(?:\s|\()|[<>~\u00b1\u2213\u221a-\u221c\u223c\u2243\u2245\u2248\u2260\u2264\u2265]"
    r"|\\(?:pm|mp|approx|neq?|leq?|geq?|lt|gt|sqrt|sim)\b"
    r"|\d\s?(?:[kKM]|bn|(?i:hundred|thousand|million|billion|trillion|dozen|lakh|crore|squared"
    r"|cubed|factorial|and|half|halves))\b|\d\s?(?:[!+\u03c0&]|\\pi\b)"
)


@reads_columns("question", "answer")
def gsm8k(row: dict[str, Any]) -> Example:
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168): the answer follows `####`.

    The calculator annotations `<<...>>` are removed from the solution. A unit after a number, as in
    `#### 5 apples`, is removed from target and solution. A row is refused if its solution ends in
    another number than the target.

    Example:
        >>> from prunelit.tasks.formats import gsm8k
        >>> gsm8k({"question": "3 * 4?", "answer": "It is <<3*4=12>>12. #### 12"})
        Example(context='3 * 4?', target='12', solution='It is 12. #### 12')
    """
    solution = re.sub(r"<<[^<>]*>>", "", require_text(row, "answer"))
    answer = AfterMarker("####")(solution)
    if answer is None:
        raise InputError(f"expected an answer after `####` but got {solution!r}")
    number = first_number(answer)
    if number is None or not _begins_with_number(answer):
        return Example(require_text(row, "question"), answer, solution)
    if normalise_number(answer) != normalise_number(number):
        if len(find_numbers(answer)) > 1 or _UNCLEAR.search(answer):
            raise InputError(f"expected one number after `####` but got {answer!r}")
        before, marker, after = solution.partition("####")
        solution = before + marker + after.replace(answer, number, 1)
        answer = number
    last = last_number(solution)
    if last is None or normalise_number(last) != normalise_number(answer):
        raise InputError(
            f"expected the solution to end with its answer {answer!r} but its last number is "
            f"{last!r}"
        )
    return Example(require_text(row, "question"), answer, solution)


def _begins_with_number(answer: str) -> bool:
    """True if no letter stands before the first digit."""
    first = next((c for c in answer if c.isalpha() or c.isnumeric()), "")
    return first.isnumeric()


@reads_columns("text")
def lambada(row: dict[str, Any]) -> Example:
    """LAMBADA (Paperno et al. 2016, arXiv:1606.06031): predict the last word of a passage.

    Example:
        >>> from prunelit.tasks.formats import lambada
        >>> lambada({"text": 'He said, "No more words."'})
        Example(context='He said, "No more', target='words', solution='words."')
    """
    text = require_text(row, "text")
    context, *last = text.rsplit(maxsplit=1)
    word = first_word(last[0]) if last else None
    if word is None:
        raise InputError(f"expected a text of at least two words but got {text!r}")
    return Example(context, word, last[0])


@reads_columns("prompt", "canonical_solution", "entry_point", "test")
def humaneval(row: dict[str, Any]) -> Example:
    r"""HumanEval (Chen et al. 2021, arXiv:2107.03374): the target is the code of the tests.

    Example:
        >>> from prunelit.tasks.formats import humaneval
        >>> row = {"prompt": "def one():\n", "canonical_solution": "    return 1\n"}
        >>> tests = "def check(f):\n    assert f() == 1"
        >>> humaneval({**row, "entry_point": "one", "test": tests}).target
        'def check(f):\n    assert f() == 1\n\ncheck(one)\n'
    """
    tests = f"{require_text(row, 'test')}\n\ncheck({require_text(row, 'entry_point')})\n"
    return Example(require_text(row, "prompt"), tests, require_text(row, "canonical_solution"))
