"""Find the answer in the text of a model, and compare it with the target.

A function that finds an answer takes a text and returns the answer, or None if there is none. A
YAML names it by its import path, your own function included.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from prunelit.arguments import checked
from prunelit.errors import InputError
from prunelit.recipe import check_own
from prunelit.tasks.judges.readings import find_readings, split_signs
from prunelit.tasks.judges.words import find_numbers, read_number, split_words, trim_word

Extract = Callable[[str], str | None]
Normalise = Callable[[str], str]

_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


@checked
def whole(text: str) -> str:
    """Return the whole text without whitespace at its ends.

    Example:
        >>> from prunelit.tasks.judges import whole
        >>> whole(" two words ")
        'two words'
    """
    return text.strip()


@checked
def verbatim(text: str) -> str:
    """Return the text unchanged, indentation included.

    Example:
        >>> from prunelit.tasks.judges import verbatim
        >>> verbatim("    return 1")
        '    return 1'
    """
    return text


@checked
def first_line(text: str) -> str | None:
    r"""Return the first line that is not empty.

    Example:
        >>> from prunelit.tasks.judges import first_line
        >>> first_line("\n Paris \nRome")
        'Paris'
    """
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


@checked
def first_word(text: str) -> str | None:
    """Return the first word, without punctuation around it.

    The sign of a number stays, and so do the signs of words like C++.

    Example:
        >>> from prunelit.tasks.judges import first_word
        >>> first_word('"Paris," he said')
        'Paris'
    """
    return next((word for part in text.split() if (word := trim_word(part))), None)


@checked
def first_number(text: str) -> str | None:
    """Return the first number.

    It may have a sign, a currency, separators of thousands, decimals, an exponent or a fraction
    bar, and digits of any script. A minus sign after a letter, digit, bracket or unit is
    subtraction or a hyphen, not part of a number; minus 5 and negative 5 are -5. 5k is 5e3, 5
    million 5e6, and 5万 50000.

    Example:
        >>> from prunelit.tasks.judges import first_number
        >>> first_number("He paid $1,200.50 for 3 of them.")
        '$1,200.50'
        >>> first_number("He paid $1.5 million.")
        '$1.5e6'
    """
    return next(iter(find_numbers(text)), None)


@checked
def last_number(text: str) -> str | None:
    """Return the last number, see `first_number`.

    Example:
        >>> from prunelit.tasks.judges import last_number
        >>> last_number("3 * 4 = 12.")
        '12'
    """
    return next(reversed(find_numbers(text)), None)


@checked
def code_block(text: str) -> str | None:
    r"""Return the code in the first fenced block, up to the end of the text if it is not closed.

    Example:
        >>> from prunelit.tasks.judges import code_block
        >>> code_block("Here it is:\n```python\nreturn 1\n```\nDone.")
        'return 1\n'
    """
    found = _FENCE.search(text)
    return found[1] if found else None


@checked
@dataclass(frozen=True)
class AfterMarker:
    """Find the answer after the first occurrence of a marker.

    Args:
        marker: a string such as `####`.
        then: finds the answer in the text after the marker.

    Raises:
        InputError: if `marker` is empty.

    Example:
        >>> from prunelit.tasks.judges import AfterMarker
        >>> AfterMarker("####")("3 * 4 = 12 #### 12")
        '12'
    """

    marker: str
    then: Extract = first_line

    def __post_init__(self) -> None:
        if not self.marker:
            raise InputError("Expected a `marker` of at least one character but got ''.")
        check_own("then", self.then)

    def __call__(self, text: str) -> str | None:
        """Return the answer, or None if there is no marker or no answer after it."""
        _, found, rest = text.partition(self.marker)
        return self.then(rest) if found else None


@checked
def normalise(text: str) -> str:
    """Convert to lower case, remove punctuation and put one space between words.

    A letter keeps its combining signs. A number keeps its sign and is written in one way; 5k, 5
    thousand and 5 mille are 5000, 5万 is 50000, and minus 5 is -5. Numbers in words stay words, and
    so do units: 5 dozen is 5 of a unit. The ! of 5! ends a sentence, or is part of the word if the
    term goes on: 5! = 120. The words C, C++ and C# stay different, R&D is one word, and U.S.A. is
    USA. In scripts without spaces, and in Hangul, whose words carry particles, every character is a
    word. A currency or percent sign is removed. Dates, times and versions are one word.
    Signs of mathematics, arrows, and primes after a letter are kept.

    Example:
        >>> from prunelit.tasks.judges import normalise
        >>> normalise("The  Answer: Paris!"), normalise("-1,200.50"), normalise("東京")
        ('the answer paris', '-1200.5', '東 京')
    """
    return " ".join(split_words(text))


@checked
def normalise_number(text: str) -> str:
    """Convert every spelling of a number to the same string; strip any other text.

    A percent sign counts as a unit and is removed.

    Example:
        >>> from prunelit.tasks.judges import normalise_number
        >>> texts = ("$1,200.00", "+1200", "1.2e3", "1/2", "\u22120.5", " none ")
        >>> [normalise_number(text) for text in texts]
        ['1200', '1200', '1200', '0.5', '-0.5', 'none']
    """
    number = read_number(text)
    return text.strip() if number is None else number


def exact_match(answer: str | None, target: str, normalised: Normalise) -> bool:
    """Return True if answer and target are equal, and not empty, after normalising.

    If nothing is left of the target, they are compared as they are, without spaces at their ends.
    The ! of a target such as 5! and the star of A* make other words than 5 and A.

    Args:
        answer: found in the text of a model; None is never right.
        target: the right answer.
        normalised: applied to both.
    """
    if answer is None:
        return False
    readings = [*find_readings(answer, target)]
    answer, target = readings[0]
    if not normalised(target):
        return split_signs(answer.strip(), target) == split_signs(target.strip(), target) != []
    return any(normalised(a) == normalised(t) for a, t in readings)


def contains(answer: str, target: str) -> bool:
    """Return True if the answer contains the target as whole words, after `normalise`.

    A target without letters and digits would be empty then, so it is searched as it is. The ! of a
    target such as 5! and the star of A* make other words than 5 and A.
    """
    readings = [*find_readings(answer, target)]
    answer, target = readings[0]
    if not normalise(target):
        signs, wanted = split_signs(answer, target), split_signs(target.strip(), target)
        size = len(wanted)
        return any(signs[n : n + size] == wanted for n in range(len(signs) - size + 1))
    return any(f" {normalise(t)} " in f" {normalise(a)} " for a, t in readings)
