"""A ruler for KL: the KL divergence of one model quantised to fewer and fewer bits."""

import math
from dataclasses import dataclass

from prunelit.arguments import checked
from prunelit.errors import InputError

SOURCE = "llama.cpp, tools/perplexity/README.md at f364eb6f: Llama-3-8B on WikiText-2"


@dataclass(frozen=True)
class Rung:
    """One quantised model.

    Args:
        name: bits per weight.
        scheme: name of the quantisation in llama.cpp.
        kl: mean KL(dense || quantised) of the next-token distributions, nats per token.
    """

    name: str
    scheme: str
    kl: float


# Rows without an importance matrix, except for iq1_S, which needs one. The first rung is the error
# of llama.cpp's own 16-bit storage of the dense logits, so the source cannot resolve a smaller KL.
# The contexts of the source are 256 tokens or longer.
RUNGS = (
    Rung("f16", "f16", 0.000551),
    Rung("8-bit", "q8_0", 0.001355),
    Rung("6-bit", "q6_K", 0.005452),
    Rung("5-bit", "q5_K_M", 0.010762),
    Rung("4-bit", "q4_K_M", 0.031273),
    Rung("3-bit", "q3_K_M", 0.101913),
    Rung("2-bit", "q2_K", 0.445132),
    Rung("1-bit", "iq1_S", 2.254554),
)


@dataclass(frozen=True)
class Placement:
    """Position of a KL on the ruler.

    Args:
        rung: the nearest rung, by the logarithm of the KL.
        below: the last rung with a KL that is not larger; None if there is none.
        above: the first rung with a larger KL; None if there is none.
        between: position between `below` and `above` in logarithms, in [0, 1); None if there is
            only one of them.
    """

    rung: Rung
    below: Rung | None
    above: Rung | None
    between: float | None


@checked
def place_on_ruler(kl: float) -> Placement:
    """Find the quantised model whose KL is nearest to a mean KL(dense || pruned).

    This compares the size of the damage, not its kind. The rungs were measured with one model on
    one text.

    Formula:
        ``between = log(kl / kl_below) / log(kl_above / kl_below)``

    Source:
        llama.cpp, tools/perplexity/README.md at f364eb6f: Llama-3-8B on WikiText-2.

    Args:
        kl: nats per token, 0 and infinity included.

    Raises:
        InputError: if it is negative or NaN.

    Example:
        >>> from prunelit.metrics import place_on_ruler
        >>> place_on_ruler(0.03).rung.name
        '4-bit'
    """
    if not kl >= 0:
        raise InputError(f"Expected a KL of at least 0 but got {kl}.")
    below = max((rung for rung in RUNGS if rung.kl <= kl), key=_kl, default=None)
    above = min((rung for rung in RUNGS if rung.kl > kl), key=_kl, default=None)
    if below is None or above is None:
        only = below or above
        assert only is not None
        return Placement(only, below, above, None)
    between = math.log(kl / below.kl) / math.log(above.kl / below.kl)
    return Placement(below if between < 0.5 else above, below, above, between)


def _kl(rung: Rung) -> float:
    return rung.kl
