"""Time functions in turns, so that a slow moment of the machine meets all of them alike."""

import time
from collections.abc import Callable, Mapping


def seconds(function: Callable[[], object]) -> float:
    """Return the CPU seconds of one call; other processes on the machine add little to them."""
    start = time.process_time()
    function()
    return time.process_time() - start


def multiples(
    base: Callable[[], object], others: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, list[float]]:
    """Time functions against another one, in turns.

    Args:
        base: the function that the others are compared with.
        others: by name.
        repeats: how often each is called.

    Returns:
        For each name its CPU seconds over those of the base, once a repeat.
    """
    found: dict[str, list[float]] = {name: [] for name in others}
    for repeat in range(repeats):
        own = seconds(base)
        for name, function in others.items():
            found[name].append(seconds(function) / own)
        ratios = ", ".join(f"{name} {values[-1]:.3f}" for name, values in found.items())
        print(f"{repeat}: base {own:.2f} s; {ratios}", flush=True)
    return found
