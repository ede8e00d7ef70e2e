"""Read numbers and lists from values that may be texts, as all cells of a CSV file are."""

import ast
import io
import json
import re
import tokenize
import warnings
from decimal import Decimal
from itertools import pairwise
from numbers import Real
from typing import Any

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def as_number(value: Any) -> float | None:
    """Return a number that is given as a number or as a text; None for anything else.

    Example:
        >>> from prunelit.data.cells import as_number
        >>> as_number(3), as_number(" 4.5 "), as_number("4,5"), as_number(True)
        (3, 4.5, None, None)
    """
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, Decimal):
        return float(value)
    return value if isinstance(value, Real) and not isinstance(value, bool) else None  # type: ignore[return-value]


def as_whole(value: Any) -> int | None:
    """Return a whole number that is given as 1, 1.0, "1" or "1.0"; None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number = as_number(value)
    return int(number) if number is not None and float(number).is_integer() else None


def as_label(value: Any) -> str | None:
    """Return a label as text: 3, 3.0 and "3" are one label; None for what is no label.

    Example:
        >>> from prunelit.data.cells import as_label
        >>> as_label(" billing "), as_label(3), as_label(3.5)
        ('billing', '3', None)
    """
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return str(value)
    whole = as_whole(value)
    return None if whole is None else str(whole)


def as_parsed(value: Any) -> Any:
    """Return the list or mapping that a text holds, as JSON or Python writes it.

    Any other value is returned as it is, also a list in which a comma between two texts is missing.
    Python would join these texts.

    Example:
        >>> from prunelit.data.cells import as_parsed
        >>> as_parsed('["a", "b"]'), as_parsed("['a', 'b']"), as_parsed("a, b")
        (['a', 'b'], ['a', 'b'], 'a, b')
    """
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    for parse in (json.loads, _as_python):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python warns of escapes such as "\d"
                return parse(value.strip())
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def _as_python(text: str) -> Any:
    value = ast.literal_eval(text)
    lines = io.StringIO(text).readline
    kinds = [part.type for part in tokenize.generate_tokens(lines) if part.type != tokenize.NL]
    if (tokenize.STRING, tokenize.STRING) in pairwise(kinds):
        raise ValueError("two texts without a comma between them")
    return value
