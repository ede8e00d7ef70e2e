"""Base of methods that leave a mixture fewer experts."""

import copy
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.experts import count_experts, find_experts
from prunelit.models.fewer_experts import alive_experts, is_mixture, routed_tensors
from prunelit.pruners.base import Probe, Pruner
from prunelit.sparsity import Ratio, check_ratio, count_removed

# The configuration's names for the number of experts that a token gets.
_ACTIVE = ("num_experts_per_tok", "moe_topk", "top_k_experts")
_Self = TypeVar("_Self", bound="ExpertPruner")


class ExpertPruner(Pruner):
    """A method that takes the same number of experts out of every mixture.

    The router loses the rows, biases and correction biases of these experts. Where a router first
    chooses groups of experts, every group loses the same number. An expert that is gone is 0 until
    `prunelit.prune` takes it out of the model; so long the router may choose it.

    Args:
        ratio: share of the experts that go, in [0, 1).
        count: number of experts that go in each mixture, instead of `ratio`.
    """

    shrinks = True
    drops_experts = True

    @property
    def needs_shares(self) -> bool:
        """True if the method has to know the share of each expert for each token."""
        return True

    @property
    def asks_routers(self) -> bool:
        """True if the method runs the router and the experts of a mixture alone."""
        return True

    def __init__(self, ratio: Ratio = 0.25, count: int | None = None) -> None:  # type: ignore[valid-type]
        check_ratio(ratio)
        if count is not None and count < 0:
            raise InputError(f"Expected `count` of at least 0 but got {count}.")
        self.ratio = float(ratio)
        self.count = count
        self._groups = 1

    def scale(self: _Self, fraction: float) -> _Self:
        other = copy.copy(self)
        other.ratio = self.ratio * fraction
        if self.count is not None:
            other.count = math.ceil(round(fraction * self.count, 9))
        return other

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        if not is_mixture(model):
            raise InputError(
                f"Expected a mixture with fused experts but {type(model).__name__} has none: take "
                "another method, such as `Neuron`."
            )
        config = model.config.get_text_config(decoder=True)
        groups = self._groups = getattr(config, "n_group", None) or 1
        active = max(getattr(config, name, None) or 1 for name in _ACTIVE)
        for block in decoder_blocks(model)[1]:
            for name, experts in find_experts(block).items():
                listed = len(inspect.signature(type(experts).forward).parameters) == 4
                if self.needs_shares and not listed:
                    raise InputError(
                        f"{name!r} gets no list of the experts of each token, so that "
                        f"{type(self).__name__} does not see their shares: take `ExpertDrop` with "
                        "another `criterion`, such as `reap`."
                    )
                before = count_experts(experts)
                kept = max(0, before - self._number(before))
                if kept % groups or before % groups:
                    raise InputError(
                        f"Expected to keep a multiple of {groups} experts, the groups of the "
                        f"router, but {kept} of {before} are left: change `ratio` or `count`."
                    )
                # A router with groups scores a group by its two best experts.
                open_groups = (getattr(config, "topk_group", None) or 1) if groups > 1 else 1
                least = max(active, 2 * groups if groups > 1 else 1)
                if kept < least or kept // groups * open_groups < active:
                    raise InputError(
                        f"Expected at least {least} experts to be left, of which each token gets "
                        f"{active}, but {kept} of {before} are: drop fewer."
                    )
                routed = [value for value, _ in routed_tensors(block, name).values()]
                if all(value.ndim != 2 for value in routed):
                    raise InputError(
                        f"Expected a router beside {name!r} with a row for each of {before} "
                        "experts but found none: take another method."
                    )

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        return {}

    def _number(self, count: int) -> int:
        """Number of experts that go, of so many."""
        return count_removed(self.ratio, count) if self.count is None else self.count

    def _lowest(self, experts: nn.Module, scores: Tensor) -> list[int]:
        """Find the experts that go: those with the lowest scores, of each group as many.

        Args:
            experts: the module that holds them; those of an earlier round go first.
            scores: (E,), higher stays.
        """
        count = len(scores)
        scores = scores.cpu().masked_fill(~alive_experts(experts).cpu(), -torch.inf)
        number = self._number(count) // self._groups
        grouped = scores.view(self._groups, -1).argsort(dim=1, stable=True)[:, :number]
        starts = torch.arange(0, count, count // self._groups)[:, None]
        return (grouped + starts).flatten().tolist()


def mixture_of(name: str) -> str:
    """Name the module that holds the router and the experts of this name.

    Args:
        name: of fused experts inside a block.

    Raises:
        InputError: if it is the block, whose router cannot be asked alone.
    """
    parent = name.rpartition(".")[0]
    if not parent:
        raise InputError(
            f"The router beside {name!r} stands in the block itself, so it cannot be asked alone: "
            "take `ExpertDrop` with another `criterion`, such as `reap`."
        )
    return parent


def drop_(experts: nn.Module, gone: Iterable[int]) -> None:
    """Set all weights of some fused experts to 0, in place.

    Args:
        experts: the module that holds them.
        gone: their numbers.
    """
    for value in own_tensors(experts).values():
        value[torch.tensor([*gone], dtype=torch.long, device=value.device)] = 0


def own_tensors(experts: nn.Module) -> Mapping[str, Tensor]:
    """Find the parameters of fused experts that have an entry for each of them, by name."""
    count = count_experts(experts)
    own = experts.named_parameters(recurse=False)
    return {name: value for name, value in own if len(value) == count}
