"""Formats of well-known data sets for generation.

Column names are those of the data set on the hub.
"""

import re
from typing import Any

from prunelit.errors import InputError
from prunelit.tasks.formats.base import reads_columns, require_text
from prunelit.tasks.judges.answers import AfterMarker, first_word
from prunelit.tasks.questions import Example


@reads_columns("question", "answer")
def gsm8k(row: dict[str, Any]) -> Example:
    """GSM8K (Cobbe et al. 2021, arXiv:2110.14168): the answer follows `####`.

    The calculator annotations `<<...>>` are removed from the solution.

    Example:
        >>> from prunelit.tasks.formats import gsm8k
        >>> gsm8k({"question": "3 * 4?", "answer": "It is <<3*4=12>>12. #### 12"})
        Example(context='3 * 4?', target='12', solution='It is 12. #### 12')
    """
    solution = require_text(row, "answer")
    answer = AfterMarker("####")(solution)
    if answer is None:
        raise InputError(f"expected an answer after `####` but got {solution!r}")
    return Example(require_text(row, "question"), answer, re.sub(r"<<.*?>>", "", solution))


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
