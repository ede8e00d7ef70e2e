"""Records of the quantities that compare a dense with a pruned model, token by token.

Tasks, metrics and figures read from here in which direction a quantity changes, whether it has a
second-order estimate, and with which other quantities it shares a chart.
"""

from dataclasses import dataclass

_SPACES = ("embedding", "logit", "probability")
ESTIMATE = "_estimate"  # ends the name of a second-order estimate


@dataclass(frozen=True)
class Quantity:
    """One quantity.

    Args:
        name: as `prunelit.metrics.deviations` returns it.
        space: `embedding`, `logit` or `probability`.
        family: name of the chart that it shares with the quantities of the same kind and unit.
        unit: of its values; empty for a number without a unit.
        unchanged: its value for two equal models, 1 or 0.
        estimated: a second-order estimate of it exists, under its name and `_estimate`.
        direction: of a divergence: `dense_pruned` if the dense model gives the weights.
    """

    name: str
    space: str
    family: str
    unit: str = ""
    unchanged: int = 0
    estimated: bool = False
    direction: str = ""


_NATS, _LOGITS = "nats", "logit units"
_RECORDS = [
    *(Quantity(f"{s}_cosine", s, "cosine", unchanged=1, estimated=True) for s in _SPACES),
    *(Quantity(f"{s}_distance", s, "distance") for s in _SPACES),
    *(Quantity(f"{s}_{part}", s, part) for s in _SPACES[:2] for part in ("parallel", "orthogonal")),
    Quantity("logit_mse", "logit", "logit_mse", "squared logit units"),
    Quantity("logit_std", "logit", "logit_std", _LOGITS),
    Quantity("logit_std_p", "logit", "logit_std", _LOGITS),
    Quantity("logit_std_top5", "logit", "logit_std", _LOGITS),
    Quantity("logit_std_top10", "logit", "logit_std", _LOGITS),
    *(
        Quantity(f"kl_{way}", "probability", "kl", _NATS, estimated=True, direction=way)
        for way in ("dense_pruned", "pruned_dense")
    ),
    Quantity("js", "probability", "js", _NATS),
    Quantity("top1_agreement", "probability", "top tokens", unchanged=1),
    Quantity("top5_overlap", "probability", "top tokens", unchanged=1),
    Quantity("top10_overlap", "probability", "top tokens", unchanged=1),
]
QUANTITIES = {quantity.name: quantity for quantity in _RECORDS}
# One of each kind: tasks report them at every place, and judge their estimates.
LEADING = (*(f"{space}_cosine" for space in _SPACES), "kl_dense_pruned")
# An estimate of a cosine has a chart of its own; estimates of a KL share the chart of the KL.
QUANTITIES |= {
    quantity.name + ESTIMATE: Quantity(
        quantity.name + ESTIMATE,
        quantity.space,
        quantity.family + (ESTIMATE if quantity.unchanged else ""),
        quantity.unit,
        quantity.unchanged,
        direction=quantity.direction,
    )
    for quantity in _RECORDS
    if quantity.estimated
}


def find_quantity(tag: str) -> Quantity | None:
    """Find the record of a metric, a column or a curve.

    Args:
        tag: name of a quantity, after the way in which it was measured:
            `teacher_forced/kl_dense_pruned`, or `subspace_kl_dense_pruned`.

    Returns:
        The record; None for a name that is no quantity.
    """
    return QUANTITIES.get(tag.rpartition("/")[2].removeprefix("subspace_"))


def unchanged_value(tag: str) -> int:
    """Return the value of a quantity for two equal models: 1 or 0; 0 for an unknown name."""
    quantity = find_quantity(tag)
    return 0 if quantity is None else quantity.unchanged
