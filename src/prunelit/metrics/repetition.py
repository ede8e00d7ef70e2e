"""How much a text repeats itself."""

from collections.abc import Sequence


def distinct(tokens: Sequence[int], n: int) -> float:
    """Share of different n-grams among all (distinct-n, Li et al. 2016, arXiv:1510.03055).

    Args:
        tokens: of one text.
        n: tokens a gram.

    Returns:
        In (0, 1]; 1 for a text shorter than n, which repeats nothing.

    Differs from the source: divides by the number of n-grams; there by that of tokens.
    """
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


ROLLOUT_MEASURES = ("repetition", "distinct_1", "distinct_2", "end_of_text", "length")


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Fraction of n-grams that repeat an earlier one; 0 for fewer than two n-grams."""
    return 1 - distinct(tokens, n)


def rollout_measures(tokens: Sequence[int], ended: bool) -> dict[str, float]:
    """Measure a rollout without judging it; the names are those of `ROLLOUT_MEASURES`.

    Args:
        tokens: of the rollout.
        ended: whether it ended in time, by itself or at a stop string.
    """
    values = (repetition(tokens), distinct(tokens, 1), distinct(tokens, 2), ended, len(tokens))
    return dict(zip(ROLLOUT_MEASURES, values, strict=True))
