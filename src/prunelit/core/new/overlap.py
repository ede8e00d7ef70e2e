"""Find test items whose text is in the calibration text."""

from collections.abc import Sequence

_WORDS = 4  # that two texts share before they are compared
_LEAST = 20  # characters; a shorter text may be in another one by chance


def find_overlap(items: Sequence[str], documents: Sequence[str]) -> list[int]:
    """Return the numbers of the items that equal a document, hold one, or are in one.

    Texts are compared word by word, so that any spaces are equal. A text of fewer than 20
    characters or 4 words counts only if it equals the other one.

    Args:
        items: of a task.
        documents: of the calibration text.

    Example:
        >>> from prunelit.core.new.overlap import find_overlap
        >>> find_overlap(["Where is  my order today?", "Hi"], ["A: Where is my order today? B: Hi"])
        [0]
    """
    own, others = [tuple(item.split()) for item in items], [tuple(d.split()) for d in documents]
    whole = set(others)
    inside, _ = _contained(own, others)
    _, holding = _contained(others, own)
    return [
        number
        for number, words in enumerate(own)
        if words and (words in whole or words in inside or number in holding)
    ]


def _contained(
    inner: Sequence[tuple[str, ...]], outer: Sequence[tuple[str, ...]]
) -> tuple[set[tuple[str, ...]], set[int]]:
    """Return the inner texts that an outer one holds, and the numbers of these outer texts."""
    # Texts by their first words and their length, so that many texts may begin alike.
    begins: dict[tuple[str, ...], dict[int, set[tuple[str, ...]]]] = {}
    for words in inner:
        if len(words) >= _WORDS and len(" ".join(words)) >= _LEAST:
            begins.setdefault(words[:_WORDS], {}).setdefault(len(words), set()).add(words)
    texts, numbers = set(), set()
    for number, words in enumerate(outer):
        for start in range(len(words) - _WORDS + 1):
            for size, known in begins.get(words[start : start + _WORDS], {}).items():
                if (part := words[start : start + size]) in known:
                    texts.add(part)
                    numbers.add(number)
    return texts, numbers
