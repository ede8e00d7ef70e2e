"""Drop the experts of a mixture that matter least."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.activations import Statistic, sum_ranks_
from prunelit.models.architecture import decoder_blocks, device_of
from prunelit.models.expert_outputs import SetLosses
from prunelit.models.experts import count_experts, find_experts
from prunelit.models.fewer_experts import alive_experts
from prunelit.models.stores import each_whole
from prunelit.pruners.base import Probe
from prunelit.pruners.expert_pruner import ExpertPruner, drop_, mixture_of
from prunelit.sparsity import Ratio

Criterion = Literal["reap", "frequency", "gate", "output_norm", "reconstruction", "random"]
_SETS = 256  # of experts, which `reconstruction` compares with each other


class ExpertDrop(ExpertPruner):
    """Drop the experts with the lowest scores, the same number in every mixture.

    The router loses the rows, biases and correction biases of these experts, so that other experts
    take their tokens. Where a router first chooses groups of experts, every group loses the same
    number. A dropped expert is 0 until `prunelit.prune` takes it out of the model; so long the
    router may choose it.

    The scores are those of the dense model, as in REAP: one pass over the calibration text scores
    the experts of all blocks, before any is dropped. With the share g of an expert for a token and
    its output f, the score of an expert is

    * `reap`: the mean of g ||f|| over the tokens that reach it (arXiv:2510.13999)
    * `frequency`: the number of these tokens
    * `gate`: the sum of g over them
    * `output_norm`: the sum of ||f|| over them
    * `random`: a random number, the floor; it needs no text

    Where the share is a factor of what an expert reads (Llama 4), f is its output for that, and g
    is 1. An expert that no token reaches has the score 0.

    `reconstruction` scores no expert alone but sets of them (NAEE, arXiv:2402.14800): those experts
    go without which the output of the mixture changes least, as a squared error over the tokens,
    where the router chooses among the others and shares out anew. All sets are compared while there
    are at most 256 of them. Else the experts go one by one, each with a pass of its own, until so
    few sets are left. All experts are computed for all tokens, so a pass takes longer than that of
    the other criteria.

    Scores are kept on disk, so that another `ratio` or `count` needs no pass. Those of
    `reconstruction` are not: they are of sets of one size.

    Args:
        ratio: share of the experts to drop, in [0, 1).
        count: number of experts to drop in each mixture, instead of `ratio`.
        criterion: how an expert is scored.
        seed: of `random`.

    Example:
        >>> import torch
        >>> from prunelit import prune
        >>> from prunelit.pruners import ExpertDrop
        >>> from transformers import AutoModelForCausalLM, MixtralConfig
        >>> config = MixtralConfig(vocab_size=64, hidden_size=16, intermediate_size=8,
        ...                        num_hidden_layers=2, num_attention_heads=2,
        ...                        num_key_value_heads=2, num_local_experts=4)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> report = prune(model, ExpertDrop(0.25), torch.arange(64).view(4, 16))
        >>> model.model.layers[0].mlp.experts.down_proj.shape
        torch.Size([3, 16, 8])
    """

    def __init__(
        self,
        ratio: Ratio = 0.25,  # type: ignore[valid-type]
        count: int | None = None,
        criterion: Criterion = "reap",
        seed: int = 0,
    ) -> None:
        super().__init__(ratio, count)
        self.criterion: Criterion = criterion
        self.seed = seed
        # By block and name of the experts; the second is of `reconstruction`.
        self._scores: dict[nn.Module, dict[str, Tensor]] = {}
        self._gone: dict[nn.Module, dict[str, tuple[int, ...]]] = {}

    @property
    def needs_shares(self) -> bool:
        """True for criteria that look at shares; those of Llama 4 cannot be seen."""
        return self.criterion in ("gate", "reconstruction")

    @property
    def asks_routers(self) -> bool:
        """True for `reconstruction`, which lets them choose among fewer experts."""
        return self.criterion == "reconstruction"

    @property
    def amounts(self) -> Sequence[str]:  # type: ignore[override]
        """Options that the scores do not depend on; `reconstruction` scores sets of one size."""
        return () if self.criterion == "reconstruction" else ("ratio", "count")

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        self._gone = {}

    def look(self, model: PreTrainedModel) -> Iterable[dict[str, Probe]]:
        blocks = decoder_blocks(model)[1]
        if self.criterion == "reconstruction":
            self._gone = self._gone or {block: _find_gone(block) for block in each_whole(blocks)}
            yield from (self._set_probes(block) for block in blocks)
        elif self.criterion != "random":
            for block in blocks:
                device = device_of(block)
                yield {
                    name: Probe(_Use(count_experts(experts), self.criterion, device), at="expert")
                    for name, experts in find_experts(block).items()
                }

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        blocks = decoder_blocks(model)[1]
        if self.criterion == "random":
            generator = torch.Generator().manual_seed(self.seed)
            self._scores = {
                block: {
                    name: torch.rand(count_experts(experts), generator=generator)
                    for name, experts in find_experts(block).items()
                }
                for block in blocks
            }
        elif self.criterion != "reconstruction":
            self._scores = {
                block: {name: probe.statistic.value.cpu() for name, probe in own.items()}
                for block, own in zip(blocks, probes, strict=True)
            }
        else:
            for block, own in zip(blocks, probes, strict=False):
                for name in self._gone[block]:
                    if (probe := own.get(mixture_of(name))) is not None:
                        losses = probe.statistic
                        assert isinstance(losses, SetLosses)
                        self._gone[block][name] = losses.sets[int(losses.value.argmin())]
            return any(self.look(model))
        return False

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        for name, experts in find_experts(block).items():
            if self.criterion == "reconstruction":
                drop_(experts, self._gone[block][name])
            else:
                drop_(experts, self._lowest(experts, self._scores[block][name]))

    def _set_probes(self, block: nn.Module) -> dict[str, Probe]:
        """Give probes for the sets that are to be compared; none where the choice is made."""
        sets = {
            name: self._find_sets(count_experts(block.get_submodule(name)), gone)
            for name, gone in self._gone[block].items()
        }
        return {
            mixture_of(name): Probe(SetLosses(block, name, own, device_of(block)))
            for name, own in sets.items()
            if len(own) > 1
        }

    def _find_sets(self, count: int, gone: tuple[int, ...]) -> list[tuple[int, ...]]:
        """List the sets to compare of so many experts; all have those that are gone already."""
        size = count // self._groups
        free = [[e for e in range(i, i + size) if e not in gone] for i in range(0, count, size)]
        quota = self._number(count) // self._groups
        missing = [max(0, quota - (size - len(own))) for own in free]
        if math.prod(math.comb(len(own), k) for own, k in zip(free, missing, strict=True)) <= _SETS:
            parts = [itertools.combinations(own, k) for own, k in zip(free, missing, strict=True)]
            return [(*gone, *itertools.chain(*chosen)) for chosen in itertools.product(*parts)]
        return [(*gone, e) for own, k in zip(free, missing, strict=True) if k for e in own]


def _find_gone(block: nn.Module) -> dict[str, tuple[int, ...]]:
    """Find the experts that an earlier round dropped, by the name of the module that holds them."""
    return {
        name: tuple((~alive_experts(experts)).nonzero().flatten().tolist())
        for name, experts in find_experts(block).items()
    }


class _Use(Statistic):
    """Sums over the tokens of each expert.

    Args:
        count: number of experts.
        criterion: what is summed.
        device: device of the sums.
    """

    def __init__(self, count: int, criterion: Criterion, device: torch.device) -> None:
        self._criterion = criterion
        self._sums = torch.zeros(count, dtype=torch.float64, device=device)
        self._tokens = torch.zeros_like(self._sums)

    def update(self, index: int, shares: Tensor, outputs: Tensor) -> None:  # type: ignore[override]
        values = torch.ones(len(outputs), dtype=torch.float64, device=outputs.device)
        if self._criterion in ("reap", "gate"):
            values = values * shares
        if self._criterion in ("reap", "output_norm"):
            values = values * outputs.double().norm(dim=-1)
        self._sums[index] += values.sum()
        self._tokens[index] += len(outputs)

    def all_reduce_(self) -> None:
        sum_ranks_(self._sums, self._tokens)

    @property
    def value(self) -> Tensor:
        """(E,)."""
        if self._criterion == "reap":
            return self._sums / self._tokens.clamp(min=1)
        return self._sums
