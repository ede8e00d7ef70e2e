"""The one exception type for what a user can mend, and what other exceptions say.

Internal: the public name, `InputError`, is in `prunelit`.
"""

import difflib
from collections.abc import Collection


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a key, a name, a shape, a weight.

    The message is one sentence that says what was expected, what was got and what to do. The
    command line prints it on stderr and exits with status 2; every other exception is a fault of
    prunelit or of a library and keeps its traceback.

    Example:
        >>> from prunelit import InputError
        >>> from prunelit.sparsity import SemiStructured
        >>> try:
        ...     SemiStructured(keep=4, group=2)
        ... except InputError as error:
        ...     print(error)
        Expected...`keep`...
    """


def first_line(error: BaseException) -> str:
    """What a library said, cut to its first line; the name of the type where it said nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def near_names(word: str, names: Collection[str]) -> str:
    """What the user may have meant by `word`: the names most like it, or else the first ones."""
    return ", ".join(difflib.get_close_matches(word, names, n=3, cutoff=0.3) or [*names][:8])


def check_positive(name: str, value: float) -> None:
    """Refuse an option that is not above 0.

    Raises:
        InputError: naming it.
    """
    if not value > 0:
        raise InputError(f"Expected `{name}` above 0 but got {value}.")
