"""Read an answer and its target in the ways in which they may be equal."""

import unicodedata
from collections.abc import Iterator

import regex

from prunelit.tasks.judges.words import ABBREVIATION, FACTORIAL, raise_sign

# Vowel points of Hebrew and Arabic and the stress of Cyrillic, which most texts leave out.
_POINTS = regex.compile(
    r"[[\p{sc=Hebr}&&\p{Mn}]\u064b-\u0652\u0656-\u065f\u0670]|(?<=\p{sc=Cyrl})\u0301",
    regex.VERSION1,
)
_GREEK = regex.compile(r"[\p{sc=Greek}\p{M}]+")
# Greek accents, which capitals do not have.
_TONOS = regex.compile(r"[\u0300\u0301\u0308\u0313\u0314\u0342\u0345]")
_TONES = regex.compile(r"\p{Emoji_Modifier}")
_STYLE = regex.compile(r"[\ufe0e\ufe0f]")  # as a text or as a picture
_INITIALS = regex.compile(r"(?<![\w.])[\p{Lu}\p{Ll}](?:\ +[\p{Lu}\p{Ll}](?!\w))++")
_TURKISH = str.maketrans({"I": "\u0131", "\u0130": "i"})
# The signs of a target without words, such as 5!, (n+1)! or A*.
_WORDLESS = regex.compile(r"(?:(?!\p{L}{2})[\p{L}\p{N}\s().,\[\]!*/^+=-])+")
_SIGNS = {
    "!": regex.compile(r"(?<=\d|(?<!\w)\p{Ll}|[)\]])!+"),
    "*": regex.compile(r"(?<=(?<![\w*])\p{L})\*(?![\w*])"),
}


def find_readings(answer: str, target: str) -> Iterator[tuple[str, str]]:
    """Give answer and target in every way in which they are compared; the plain one is first.

    Vowel points and stress are removed, see `_POINTS`, unless both texts have some. A sign of the
    target such as the ! of 5! makes another word of what is before it. Further readings are those
    with initials apart, J K Rowling, with Greek words as the other text has them in capitals, and
    by the Turkish rule for I.
    """
    texts = unicodedata.normalize("NFC", answer), unicodedata.normalize("NFC", target)
    if not all(map(_POINTS.search, texts)):
        texts = _POINTS.sub("", texts[0]), _POINTS.sub("", texts[1])
    answer, target = _raise_signs(*texts)
    yield answer, target
    texts = [ABBREVIATION.sub(lambda f: f[0].replace(".", " "), text) for text in (answer, target)]
    if _INITIALS.search(texts[1]):
        yield texts[0], texts[1]
    capitals = _find_capitals(answer), _find_capitals(target)
    if any(capitals):
        yield _capitalise(answer, capitals[1]), _capitalise(target, capitals[0])
    if any(one in text for one in "\u0131\u0130" for text in (answer, target)):
        yield answer.translate(_TURKISH).lower(), target.translate(_TURKISH).lower()


def split_signs(text: str, like: str) -> list[str]:
    """Return the signs of a text as they are seen: an emoji of several characters is one.

    Args:
        text: the text.
        like: the target. If it has no tone of skin, those of the text do not count.
    """
    text = _STYLE.sub("", text)
    if not _TONES.search(like):
        text = _TONES.sub("", text)
    return regex.findall(r"\X", text)


def _raise_signs(answer: str, target: str) -> tuple[str, str]:
    """Write the signs that make a word of the target as letters, in both texts."""
    if _WORDLESS.fullmatch(target) or FACTORIAL.search(target):
        for sign, pattern in _SIGNS.items():
            if pattern.search(target):
                answer, target = (raise_sign(sign, pattern, text) for text in (answer, target))
    return answer, target


def _find_capitals(text: str) -> dict[str, str]:
    """Return the Greek words of a text that are in capitals, by themselves without accents."""
    words = (found[0] for found in _GREEK.finditer(text))
    return {_bare(word): word for word in words if len(word) > 1 and word.isupper()}


def _capitalise(text: str, capitals: dict[str, str]) -> str:
    """Write Greek words of a text as another text has them."""
    return _GREEK.sub(lambda found: capitals.get(_bare(found[0]), found[0]), text)


def _bare(word: str) -> str:
    return _TONOS.sub("", unicodedata.normalize("NFD", word)).upper()
