"""Measure how much a text repeats itself."""

from collections.abc import Sequence

from prunelit.arguments import checked
from prunelit.errors import check_whole


@checked
def distinct(tokens: Sequence[int], n: int) -> float:
    """Share of different n-grams among all n-grams (distinct-n); 1 means no repetition.

    Formula:
        ``|set of n-grams| / number of n-grams``

    Source:
        Li et al. 2016, arXiv:1510.03055, who divide by the number of tokens instead.

    Args:
        tokens: ids of one text.
        n: tokens per n-gram.

    Returns:
        In (0, 1]; 1 for a text that is shorter than n.

    Raises:
        InputError: if n is below 1.

    Example:
        >>> from prunelit.metrics import distinct
        >>> distinct([7, 7, 8, 7], n=1)
        0.5
    """
    check_whole("n", n, 1)
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


ROLLOUT_MEASURES = ("repetition", "distinct_1", "distinct_2", "end_of_text", "length")


@checked
def repetition_rate(tokens: Sequence[int], n: int = 4) -> float:
    """Fraction of n-grams that repeat an earlier one; 0 means no repetition.

    Formula:
        ``1 - |set of n-grams| / number of n-grams``

    Source:
        Welleck et al. 2020, arXiv:1908.04319, seq-rep-n.

    Args:
        tokens: ids of one text.
        n: tokens per n-gram.

    Returns:
        In [0, 1); 0 for fewer than two n-grams.

    Raises:
        InputError: if n is below 1.

    Example:
        >>> from prunelit.metrics import repetition_rate
        >>> repetition_rate([1, 2, 1, 2, 1], n=2)
        0.5
    """
    return 1 - distinct(tokens, n)


def rollout_measures(tokens: Sequence[int], ended: bool) -> dict[str, float]:
    """Measure a rollout without judging it; the names are those of `ROLLOUT_MEASURES`.

    Args:
        tokens: ids of the rollout.
        ended: True if an end-of-text token or a stop string ended it within its budget.

    Returns:
        `repetition` of 4-grams, `distinct_1`, `distinct_2`, `end_of_text` (0 or 1) and `length` in
        tokens.
    """
    values = (repetition_rate(tokens), distinct(tokens, 1), distinct(tokens, 2), ended, len(tokens))
    return dict(zip(ROLLOUT_MEASURES, values, strict=True))
