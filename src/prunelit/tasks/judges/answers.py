"""Answers in what a model wrote: finding them, and comparing them.

Every function takes a text and returns the answer in it, or None where it finds none. A YAML names
one by its path; one of your own does as well.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

Extract = Callable[[str], str | None]
Normalise = Callable[[str], str]

# A minus after a letter, a digit or a bracket is subtraction or a hyphen.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]])-)?\$?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)
_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def whole(text: str) -> str:
    """All of it, without the space around it."""
    return text.strip()


def verbatim(text: str) -> str:
    """All of it, indentation included."""
    return text


def first_line(text: str) -> str | None:
    """The first line that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


def first_word(text: str) -> str | None:
    """The first word, without punctuation around it."""
    return next((word for part in text.split() if (word := _bare(part))), None)


def first_number(text: str) -> str | None:
    """The first number: digits, with sign, thousands, decimals or a dollar sign."""
    found = _NUMBER.search(text)
    return found[0] if found else None


def last_number(text: str) -> str | None:
    """The last number: digits, with sign, thousands, decimals or a dollar sign."""
    found = _NUMBER.findall(text)
    return found[-1] if found else None


def code_block(text: str) -> str | None:
    """What stands in the first fenced block; one that is not closed reaches to the end."""
    found = _FENCE.search(text)
    return found[1] if found else None


@dataclass(frozen=True)
class AfterMarker:
    """What follows the first marker, as `then` finds it.

    Args:
        marker: a text such as `####`.
        then: reads what stands behind it.
    """

    marker: str
    then: Extract = first_line

    def __call__(self, text: str) -> str | None:
        """The answer, or None where there is no marker or nothing behind it."""
        _, found, rest = text.partition(self.marker)
        return self.then(rest) if found else None


def normalise(text: str) -> str:
    """Lower case, without punctuation, single spaces."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]", " ", text).split())


def normalise_number(text: str) -> str:
    """One spelling for one number (`$1,200.00`, `1200` and `+1200`); another text is stripped."""
    plain = text.strip().replace(",", "").replace("$", "")
    if not re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)", plain):
        return text.strip()
    value = Decimal(plain)
    digits = f"{value:f}"
    return "0" if value == 0 else digits.rstrip("0").rstrip(".") if "." in digits else digits


def exact_match(answer: str | None, target: str, normalised: Normalise) -> bool:
    """Whether answer and target have one normal form, and it is not empty."""
    return answer is not None and normalised(answer) == normalised(target) != ""


def contains(answer: str, target: str) -> bool:
    """Whether the target stands in the answer as whole words, after `normalise`.

    That drops signs and points: a target without any letter or digit has to stand there verbatim.
    """
    if not (words := normalise(target)):
        return target.strip() in answer
    return f" {words} " in f" {normalise(answer)} "


def _bare(word: str) -> str:
    return re.sub(r"^\W+|\W+$", "", word)
