"""The exception for mistakes that a user can correct, and help with the messages of others.

Internal: the public name, `InputError`, is in `prunelit`.
"""

import difflib
import math
import os
import sysconfig
import traceback
import unicodedata
from collections.abc import Collection
from pathlib import Path
from typing import Any

_LONGEST = 375  # characters of a sentence
# Characters that are not seen, by category, and those of them that stay.
_HIDDEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")
_SHOWN = ("\n", "\t", "\N{ZERO WIDTH JOINER}", "\N{ZERO WIDTH NON-JOINER}")


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


def shorten(sentence: str) -> str:
    """Put a sentence in one line, without the middle of one that quotes a long value."""
    sentence = visible(" ".join(sentence.split()))
    if len(sentence) <= _LONGEST:
        return sentence
    return f"{sentence[: _LONGEST * 2 // 3]} ... {sentence[-_LONGEST // 3 :]}"


def close_names(word: str, names: Collection[str], cutoff: float = 0.6) -> list[str]:
    """Return up to three names that are similar to `word`, the most similar first."""
    return difflib.get_close_matches(word, names, n=3, cutoff=cutoff)


def visible(text: str) -> str:
    r"""Write each character that is not seen, or that changes the order of others, as its number.

    These are control characters, the marks of writing direction, and half of a surrogate pair.
    Line breaks and tabs stay.

    Args:
        text: any text.

    Example:
        >>> from prunelit.errors import visible
        >>> visible("a\x1b[31mb")
        'a[U+001B][31mb'
    """
    if text.isprintable():
        return text
    return "".join(f"[U+{ord(one):04X}]" if _is_hidden(one) else one for one in text)


def _is_hidden(character: str) -> bool:
    return character not in _SHOWN and unicodedata.category(character) in _HIDDEN


def near_names(word: str, names: Collection[str]) -> str:
    """List the names that are most similar to `word`, or the first names if none is."""
    return ", ".join(close_names(word, names, cutoff=0.3) or [*names][:8])


def similar_paths(source: str) -> str:
    """Return " (similar: ...)" if there are files or folders with a name like a missing one."""
    path = Path(os.path.expanduser(source))
    for missing in (path, *path.parents):
        folder = missing.parent
        if os.path.isdir(folder):
            try:
                near = close_names(missing.name, os.listdir(folder))
            except OSError:  # a folder that may not be listed has no hints
                near = []
            found = ", ".join(repr(str(folder / one)) for one in near)
            return f" (similar: {found})" if found else ""
    return ""


def check_positive(name: str, value: float) -> None:
    """Refuse an option that is not above 0, or not finite.

    Raises:
        InputError: naming the option.
    """
    if not 0 < value < math.inf:
        kind = " and finite" if value > 0 else ""
        raise InputError(f"Expected `{name}` above 0{kind} but got {value}.")


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuse an option that is no whole number from `least` to `most`.

    Raises:
        InputError: naming the option.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        kind = "" if whole else "a whole number "
        raise InputError(f"Expected `{name}` {kind}{span} but got {value!r}.")


def check_seed(name: str, value: Any) -> None:
    """Refuse a seed that a random number generator does not take.

    Raises:
        InputError: naming the option.
    """
    check_whole(name, value, 0, 2**32 - 1)


def as_refusal(error: BaseException) -> str | None:
    """Return the sentence of an error that the user can correct; None for any other error.

    These are an `InputError`, and a file or folder that the system refuses.
    """
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        if error.filename is None:
            return f"The system refused to read or write: {error.strerror}. Free it and run again."
        return (
            f"{str(error.filename)!r} cannot be used: {error.strerror}. Check this path, its "
            "permissions and the space on its disk."
        )
    return None


def explain(error: BaseException, refusal: str | None = None) -> tuple[str, int]:
    """Return the lines for stderr of an error that ends a run, and the exit status.

    Args:
        error: has a traceback in these lines if it is not a mistake that the user can correct.
        refusal: the sentence of an error that `as_refusal` does not know.
    """
    if (refusal := as_refusal(error) or refusal) is not None:
        return f"prunelit: error: {shorten(refusal)}", 2
    lines = "".join(traceback.format_exception(error)).rstrip()
    return f"prunelit: error: {name_origin(error)}\n{lines}", 1


def name_origin(error: BaseException) -> str:
    """Say in one sentence if the code of the user or a bug of prunelit raised an error."""
    own = name_own_code(error)
    found = f"{type(error).__name__}: {first_line(error)}"
    return own or f"This is a bug of prunelit. Please report it with these lines: {found}"


def name_own_code(error: BaseException | None) -> str | None:
    """Say which file of the user raised an error, or the one that caused it; None if none did."""
    while error is not None:
        if own := _own_frame(error):
            return own
        error = error.__cause__
    return None


def is_library(path: Path) -> bool:
    """Return True for a file of prunelit, of Python or of an installed library."""
    libraries = [Path(__file__).parent, *map(Path, sysconfig.get_paths().values())]
    return any(library in path.parents for library in libraries)


def _own_frame(error: BaseException) -> str | None:
    found = f"{type(error).__name__}: {first_line(error)}"
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        if path.suffix == ".py" and not is_library(path):
            owner = frame.f_locals.get("self")
            name = frame.f_code.co_name
            if owner is not None:
                name = f"{type(owner).__qualname__}.{name}"
            return f"Your own `{name}` in {os.path.relpath(path)}, line {line}, raised {found}"
    return None
