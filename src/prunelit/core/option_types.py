"""Say in words which types an option accepts, from the way in which a parser writes them.

Internal: nothing here is public.
"""

import re

_SCALAR = re.compile(r"<class '(\w+)'>")
_CLASS = re.compile(r"<class '[\w.]+\.(\w+)'>")
_LITERAL = re.compile(r"typing\.Literal\[(.*)\]")
_LIST = re.compile(r"(?:list|tuple|set|collections\.abc\.(?:Sequence|Iterable|Collection))\[.*\]")


def split_kinds(kinds: str) -> list[str]:
    """Return the types of a list, which may hold lists themselves.

    Example:
        >>> from prunelit.core.option_types import split_kinds
        >>> split_kinds("dict[str, int], <class 'int'>")
        ['dict[str, int]', "<class 'int'>"]
    """
    parts, depth = [""], 0
    for character in kinds:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def literals(kinds: list[str]) -> list[str]:
    """Return the values that an option accepts one of, as Python writes them."""
    found = filter(None, map(_LITERAL.fullmatch, kinds))
    return [value for one in found for value in split_kinds(one[1])]


def bases(kinds: list[str]) -> list[str]:
    """Return the names of the classes that an option accepts an object of."""
    return list(dict.fromkeys(one[1] for one in map(_CLASS.fullmatch, kinds) if one))


def show_kinds(kinds: list[str]) -> str:
    """Return the types in words, those of values first.

    Example:
        >>> from prunelit.core.option_types import show_kinds
        >>> show_kinds(["<class 'int'>", "list[int]", "<class 'NoneType'>"])
        'int or a list'
    """
    shown = ["one of " + ", ".join(values)] if (values := literals(kinds)) else []
    for kind in kinds:
        if scalar := _SCALAR.fullmatch(kind):
            shown += [scalar[1]] if scalar[1] != "NoneType" else []
        elif _LIST.fullmatch(kind):
            shown.append("a list")
        elif "Callable[" in kind and "dict[" not in kind:
            shown.append("the path of a function or class")
        elif not _LITERAL.fullmatch(kind) and not _CLASS.fullmatch(kind):
            shown.append(re.sub(r"\b(?:\w+\.)+", "", kind))
    if names := bases(kinds):
        shown.append(f"`class_path` and `init_args` of a {', '.join(names)}")
    return " or ".join(dict.fromkeys(shown))
