"""Bisection over the settings of one knob, of which each is measured for all uses at once.

The answer for a use is the strongest measured setting such that it and every weaker measured one
keep the use. Scores need not fall evenly: a setting above one that does not keep is never an
answer, also if it keeps.
"""

from collections.abc import Mapping, Sequence


def find_bracket(kept: Mapping[float, bool]) -> tuple[float | None, float | None]:
    """Find the answer among the measured settings, and the weakest setting that does not keep.

    Args:
        kept: True for each measured setting that keeps the use.

    Returns:
        The strongest setting up to which every measured one keeps, None if there is none; and the
        weakest measured one that does not keep, None if all keep.

    Example:
        >>> from prunelit.report.bisection import find_bracket
        >>> find_bracket({0.2: True, 0.4: True, 0.5: False, 0.6: True})
        (0.4, 0.5)
    """
    smallest = min((setting for setting, keeps in kept.items() if not keeps), default=None)
    below = (setting for setting in kept if smallest is None or setting < smallest)
    return max(below, default=None), smallest


def next_setting(grid: Sequence[float], kept: Sequence[Mapping[float, bool]]) -> float | None:
    """Choose the setting to measure next: the middle of those that are open for a use.

    A setting is open if it lies between the answer of a use and its weakest setting that does not
    keep. A use alone needs at most ``ceil(log2(k + 1))`` of k settings. Where a setting that was
    measured for another use lowers an answer, settings below may be open again; no setting is
    measured twice.

    Args:
        grid: the settings in ascending order.
        kept: of each use, True for each measured setting that keeps it.

    Returns:
        The setting; None if no use has an open one.

    Example:
        >>> from prunelit.report.bisection import next_setting
        >>> next_setting([0.2, 0.3, 0.4], [{}])
        0.3
        >>> next_setting([0.2, 0.3, 0.4], [{0.3: False}])
        0.2
    """
    for own in kept:
        low, high = find_bracket(own)
        unknown = [
            setting
            for setting in grid
            if (low is None or setting > low) and (high is None or setting < high)
        ]
        if unknown:
            return unknown[(len(unknown) - 1) // 2]
    return None


def find_uneven(kept: Mapping[float, bool]) -> list[float]:
    """List the measured settings that keep the use although a weaker one does not.

    Args:
        kept: True for each measured setting that keeps the use.
    """
    smallest = find_bracket(kept)[1]
    above = (setting for setting, keeps in kept.items() if keeps)
    return sorted(setting for setting in above if smallest is not None and setting > smallest)
