"""The exception for mistakes that a user can correct, and help with the messages of others.

Internal: the public name, `InputError`, is in `prunelit`.
"""

import difflib
from collections.abc import Collection


class InputError(ValueError):
    """A mistake that the user can correct: in a file, a key, a name, a shape or a weight.

    The message is one sentence. It says what was expected, what was given, and what to do. The
    command line prints it on stderr and exits with status 2. Every other exception is a bug of
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
    """Return the first line of an error's message, or the name of its type if it has no message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def near_names(word: str, names: Collection[str]) -> str:
    """List the names that are most similar to `word`, or the first names if none is."""
    return ", ".join(difflib.get_close_matches(word, names, n=3, cutoff=0.3) or [*names][:8])


def check_positive(name: str, value: float) -> None:
    """Refuse an option that is not above 0.

    Raises:
        InputError: naming the option.
    """
    if not value > 0:
        raise InputError(f"Expected `{name}` above 0 but got {value}.")
