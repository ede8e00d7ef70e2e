"""A ruler for KL: what it costs to quantise a model to a few bits."""

import math
from dataclasses import dataclass

from prunelit.errors import InputError

SOURCE = "llama.cpp, tools/perplexity/README.md at f364eb6f: Llama-3-8B on WikiText-2"


@dataclass(frozen=True)
class Rung:
    """One quantised model.

    Args:
        name: bits a weight, in words.
        scheme: of the quantisation.
        kl: mean KL(dense || quantised) of its next-token distributions, nats.
    """

    name: str
    scheme: str
    kl: float


# Of schemes that come with and without an importance matrix the row without is taken; iq1_S has
# none without. The first rung is what llama.cpp loses by storing the dense logits in 16 bits, so
# nothing below it could be told apart there. Contexts there are 256 tokens or longer.
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
    """Where a KL lies on the ruler.

    Args:
        rung: the nearest one by the logarithm of the KL.
        below: the last rung that is not above the KL; None where it is below the first.
        above: the first rung above the KL; None where it is beyond the last.
        between: how far it is from `below` to `above`, in [0, 1) of the logarithm; None where one
            of them is missing.
    """

    rung: Rung
    below: Rung | None
    above: Rung | None
    between: float | None


def place_on_ruler(kl: float) -> Placement:
    """The place of a mean KL(dense || pruned) among quantised models.

    A comparison of sizes, not of kinds: the rungs were measured on one model and one text.

    Args:
        kl: nats, 0 and infinity included.

    Raises:
        InputError: if it is negative or not a number.
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
