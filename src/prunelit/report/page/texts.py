"""Texts of models, rows and file names: foreign data that a page and a terminal only show."""

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 1200  # characters of a text on the page
_MARKED = 30


def cut(text: str, most: int = LONGEST) -> str:
    """Shorten a text, and say by how many characters."""
    left = len(text) - most
    return text if left <= 0 else f"{text[:most]} ... ({left:,} more characters)"


def join(parts: Sequence[str], word: str = "and") -> str:
    """Join words with commas, and the last one with `word`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def shorten_middle(text: str, most: int = 72) -> str:
    """Leave out the middle of a long text, such as a path, whose ends say the most.

    Args:
        text: to shorten.
        most: characters that remain.
    """
    return text if len(text) <= most else f"{text[: most // 3]} ... {text[5 + most // 3 - most :]}"


@dataclass(frozen=True)
class Parts:
    """A text in three parts; the middle one is the first word that differs."""

    before: str
    marked: str
    after: str


def mark_difference(dense: str, pruned: str) -> tuple[Parts, Parts]:
    """Divide two texts at the first word that differs.

    Args:
        dense: text of the dense model.
        pruned: text of the pruned model.

    Example:
        >>> from prunelit.report.page.texts import mark_difference
        >>> [parts.marked for parts in mark_difference("It is Rome.", "It is Rouen.")]
        ['Rome.', 'Rouen.']
    """
    place = first_difference(dense, pruned)
    if place == max(len(dense), len(pruned)):
        return Parts(dense, "", ""), Parts(pruned, "", "")
    following = dense[place : place + 1], pruned[place : place + 1]
    ends = all(not one or one.isspace() for one in following)
    if not ends:  # go back to the begin of the word
        start = max((n + 1 for n in range(place) if dense[n].isspace()), default=0)
        place = start if place - start < _MARKED else place
    return _divide(dense, place), _divide(pruned, place)


def first_difference(dense: str, pruned: str) -> int:
    """Return the place of the first character that differs; the length if none does."""
    low, high = 0, min(len(dense), len(pruned))
    while low < high:
        middle = (low + high + 1) // 2
        same = dense[low:middle] == pruned[low:middle]
        low, high = (middle, high) if same else (low, middle - 1)
    return low


def _divide(text: str, start: int) -> Parts:
    rest = text[start : start + _MARKED]
    first = len(rest) - len(rest.lstrip())
    end = next((n for n in range(first, len(rest)) if rest[n].isspace()), len(rest))
    return Parts(text[:start], text[start : start + end], text[start + end :])


def shorten_alike(texts: list[str]) -> list[str]:
    """Remove what all texts begin and end with, such as examples or the words of a chat template.

    The begin is removed up to a line break, a mark such as `<user>` or a colon, and the end from a
    line break or a mark, so that no sentence is cut.
    """
    if len({*texts}) < 2:
        return texts
    begin = first_difference(min(texts), max(texts))
    common = min(texts)[:begin]
    ends = [common.rfind(one) + len(one) for one in ("\n", ">", ": ") if one in common]
    begin = max(ends, default=0)
    rests = [text[begin:] for text in texts]
    backwards = [rest[::-1] for rest in rests]
    end = first_difference(min(backwards), max(backwards))
    common = rests[0][len(rests[0]) - end :]
    places = [place for one in ("\n", "<") if (place := common.find(one)) >= 0]
    length = len(common) - min(places) if places else 0
    return [rest[: len(rest) - length] for rest in rests]
