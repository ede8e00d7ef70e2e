"""Pooled statistics for experts that few calibration tokens reach."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from prunelit.activations import Probe, Statistic
from prunelit.errors import InputError
from prunelit.models.experts import ExpertMap


@dataclass
class Reach:
    """Experts of a mixture that were pruned, and those among them that few tokens reach.

    Args:
        least: number of tokens that an expert must read to have statistics of its own.
        experts: number of experts.
        pooled: number of those that read fewer tokens, and got the statistics of all experts of
            their block together.
        unreached: number of those that read no token.
    """

    least: int
    experts: int = 0
    pooled: int = 0
    unreached: int = 0

    def add_(self, other: "Reach") -> None:
        """Add the experts of another block, in place."""
        self.experts += other.experts
        self.pooled += other.pooled
        self.unreached += other.unreached

    def warning(self, tokens: int) -> str | None:
        """Say how much more text would reach the experts that read nothing; None if there are none.

        Args:
            tokens: number of calibration tokens.
        """
        if not self.unreached:
            return None
        return (
            f"{self.unreached} of {self.experts} experts read none of the {tokens:,} calibration "
            "tokens. They were pruned with the statistics of all experts of their block. An expert "
            f"that one token in {tokens:,} reaches needs {self.least} times as much text, "
            f"{self.least * tokens:,} tokens, for statistics of its own (`expert_tokens`)."
        )


def pool_experts(
    modules: Mapping[str, nn.Module], probes: Mapping[str, Probe], least: int
) -> Reach:
    """Give experts that read few tokens the statistics of all experts of their block together.

    Args:
        modules: of one block, by name.
        probes: of these modules, filled, with the tokens that they read.
        least: see `Reach`.

    Raises:
        InputError: if an expert needs it and the statistic cannot be added up.
    """
    groups: dict[tuple[int, str], list[tuple[int, Probe]]] = {}
    for name, module in modules.items():
        if isinstance(module, ExpertMap):
            group = groups.setdefault((id(module.experts), module.tensor), [])
            group.append((module.index, probes[name]))
    read: dict[tuple[int, int], int] = {}
    for (experts, _), group in groups.items():
        short = [probe for _, probe in group if probe.tokens < least]
        if short:
            pooled = _add_up([probe.statistic for _, probe in group])
            for probe in short:
                probe.statistic = pooled
        read |= {(experts, index): probe.tokens for index, probe in group}
    counts = read.values()
    return Reach(
        least,
        experts=len(counts),
        pooled=sum(count < least for count in counts),
        unreached=sum(count == 0 for count in counts),
    )


def _add_up(statistics: list[Statistic]) -> Statistic:
    first, *others = statistics
    total = copy.deepcopy(first)
    for other in others:
        try:
            total.add_(other)
        except NotImplementedError as error:
            raise InputError(
                f"Few calibration tokens reach an expert, and {type(total).__name__} cannot be "
                "added up over experts: give more text, or write its method `add_`."
            ) from error
    return total
