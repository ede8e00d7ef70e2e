"""Merge the experts of a mixture whose outputs are alike."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks, device_of
from prunelit.models.expert_outputs import OutputProducts
from prunelit.models.experts import find_experts
from prunelit.models.fewer_experts import alive_experts
from prunelit.pruners.base import Probe
from prunelit.pruners.expert_pruner import ExpertPruner, drop_, mixture_of, own_tensors


class ExpertMerge(ExpertPruner):
    """Merge the experts that tokens reach least into those whose outputs are most like theirs.

    The experts that most tokens reach stay. Each other one joins that among them whose outputs
    differ least from its own, as a squared difference summed over all calibration tokens. Where a
    router first chooses groups of experts, it joins one of its own group. All weights of a merged
    expert are the means of those of its members, each with the number of its tokens as its share.

    M-SMoE (arXiv:2310.01334) chooses the experts that stay and computes the mean in this way, and
    HC-SMoE (arXiv:2410.08589) compares outputs. The differences: M-SMoE compares what the router
    gives each expert, and first permutes neurons; HC-SMoE compares mean outputs, and finds groups
    by hierarchical clustering. Both leave all rows in the router, so that a merged expert gets the
    tokens of all its members; no stock class can do that. Here the router keeps the row of the
    expert that stays, and any expert that is left may take the tokens of the others.

    One pass over the calibration text looks at the dense model. It computes all experts for all
    tokens. What it finds is kept on disk, so that another `ratio` or `count` needs no pass.

    Args:
        ratio: share of the experts that are merged into others, in [0, 1).
        count: number of these experts in each mixture, instead of `ratio`.

    Example:
        >>> import torch
        >>> from prunelit import prune
        >>> from prunelit.pruners import ExpertMerge
        >>> from transformers import AutoModelForCausalLM, MixtralConfig
        >>> config = MixtralConfig(vocab_size=64, hidden_size=16, intermediate_size=8,
        ...                        num_hidden_layers=2, num_attention_heads=2,
        ...                        num_key_value_heads=2, num_local_experts=4)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> report = prune(model, ExpertMerge(0.25), torch.arange(64).view(4, 16))
        >>> model.model.layers[0].mlp.experts.down_proj.shape
        torch.Size([3, 16, 8])
    """

    amounts: Sequence[str] = ("ratio", "count")

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        self._found: dict[nn.Module, dict[str, Tensor]] = {}

    def look(self, model: PreTrainedModel) -> Iterable[dict[str, Probe]]:
        for block in decoder_blocks(model)[1]:
            yield {
                mixture_of(name): Probe(OutputProducts(block, name, device_of(block)))
                for name in find_experts(block)
            }

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        self._found = {
            block: {name: probe.statistic.value.cpu() for name, probe in own.items()}
            for block, own in zip(decoder_blocks(model)[1], probes, strict=True)
        }
        return False

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        for name, experts in find_experts(block).items():
            found = self._found[block][mixture_of(name)]
            products, tokens = found[:, :-1], found[:, -1]
            gone = self._lowest(experts, tokens)
            alive = alive_experts(experts).tolist()
            for kept, joined in self._join(products, [e for e in gone if alive[e]], gone).items():
                _average_(experts, kept, joined, tokens)
            drop_(experts, gone)

    def _join(
        self, products: Tensor, joining: Iterable[int], gone: Sequence[int]
    ) -> dict[int, list[int]]:
        """Find which experts join each of those that stay.

        Args:
            products: (E, E), inner products of the outputs.
            joining: experts that join others.
            gone: these, and those that an earlier round merged.
        """
        size = len(products) // self._groups
        norms = products.diagonal()
        distances = norms[:, None] + norms - 2 * products
        found: dict[int, list[int]] = {}
        for expert in sorted(joining):
            group = range(expert // size * size, (expert // size + 1) * size)
            stay = [other for other in group if other not in gone]
            best = min(stay, key=lambda other: float(distances[expert, other]))
            found.setdefault(best, []).append(expert)
        return found


def _average_(experts: nn.Module, kept: int, joined: Sequence[int], tokens: Tensor) -> None:
    """Give an expert the mean weights of itself and of others, in place.

    Args:
        experts: the module that holds them.
        kept: number of the expert.
        joined: numbers of the others; if no token reaches any of them all, nothing changes.
        tokens: (E,), the weights of the mean.
    """
    members = torch.tensor([kept, *joined])
    shares = tokens[members] / tokens[members].sum().clamp(min=1)
    if not shares.any():
        return
    for value in own_tensors(experts).values():
        parts = value[members.to(value.device)].float()
        value[kept] = torch.tensordot(shares.float().to(value.device), parts, 1)
