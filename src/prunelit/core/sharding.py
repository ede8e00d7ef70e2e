"""Training of weights that are sharded: FSDP2 spreads them over the ranks, block by block."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks
from prunelit.models.model_pair import ModelPair
from prunelit.pruning.lora import Adapters
from prunelit.pruning.masks import own_part
from prunelit.pruning.recovery import Recovery


class Sharding:
    """Both models of a run while they are trained.

    FSDP2 keeps a share of every weight on each rank, and brings a block together when the loss
    needs it. All other work, such as a round of pruning or a task, uses the models of `pair`, which
    become plain models without weights: `whole` fills one, on every rank.

    Args:
        recovery: the loss. A dense model that it does not need stays whole.
        pair: both models, whole on every rank; changed in place.
        adapters: of the pruned model.
        mesh: of the ranks that share the weights.

    Attributes:
        model: the pruned model with its shards, which is trained.
        adapters: of the plain pruned model.
        loss: gives the losses of (B, T) token ids, see `Recovery.losses`.
    """

    def __init__(
        self, recovery: Recovery, pair: ModelPair, adapters: Adapters | None, mesh: DeviceMesh
    ) -> None:
        self.model = pair.pruned
        dense = pair.dense if recovery.needs_reference else None
        pair.pruned, self.adapters = _without_weights(self.model, adapters)
        self._shards = {id(pair.pruned): Shards(self.model, pair.pruned)}
        if dense is not None:
            pair.dense, _ = _without_weights(dense)
            self._shards[id(pair.dense)] = Shards(dense, pair.dense)
        for model in (self.model, dense):
            for block in () if model is None else decoder_blocks(model)[1]:
                fully_shard(block, mesh=mesh)
        self.loss = RecoveryLoss(recovery, self.model, dense)
        fully_shard(self.loss, mesh=mesh)  # the root: what lies outside the blocks

    @contextmanager
    def whole(self, model: PreTrainedModel, *, edited: bool = False) -> Iterator[None]:
        """Have the weights of a plain model here, within the context; every rank must enter it.

        Args:
            model: of the pair; one that is not sharded is left as it is.
            edited: the weights are changed inside, and the shards after it.
        """
        shards = self._shards.get(id(model))
        if shards is None:
            yield
            return
        shards.gather()
        try:
            yield
        finally:
            shards.leave(edited)

    def shards(self, model: PreTrainedModel) -> bool:
        """Return True if the weights of a model of the pair are sharded."""
        return id(model) in self._shards

    def end(self) -> None:
        """Fill the models of the pair for good. The shards are no longer needed."""
        for shards in self._shards.values():
            shards.gather()


class RecoveryLoss(nn.Module):
    """The recovery loss as a module, so that FSDP2 knows where a forward pass begins and ends."""

    def __init__(
        self, recovery: Recovery, pruned: PreTrainedModel, dense: PreTrainedModel | None
    ) -> None:
        super().__init__()
        self.recovery = recovery
        self.pruned = pruned
        self.dense = dense

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Compute the loss and its parts, see `Recovery.losses`."""
        losses = self.recovery.losses(self.pruned, self.dense, input_ids)
        # FSDP2 warns of views, whose later change in place it would not notice.
        return {name: loss.clone() for name, loss in losses.items()}


class Shards:
    """The weights of a plain model while they are the shards of another one.

    Args:
        model: is or will be sharded by FSDP2.
        plain: has the same parameters, by name.
    """

    def __init__(self, model: PreTrainedModel, plain: PreTrainedModel) -> None:
        self._model = model
        names = {id(weight): name for name, weight in plain.named_parameters()}
        self._owners: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names.values()}
        for module in plain.modules():
            for key, weight in module.named_parameters(recurse=False):
                self._owners[names[id(weight)]].append((module, key))  # a tied one has several

    @torch.no_grad()
    def gather(self) -> None:
        """Fill the plain model."""
        for name, shard in self._shards():
            self._place(name, shard.full_tensor())

    @torch.no_grad()
    def leave(self, edited: bool) -> None:
        """Empty the plain model; its weights become shards if they were edited."""
        for name, shard in self._shards():
            module, key = self._owners[name][0]
            weight = module.get_parameter(key)
            if edited:
                shard.to_local().copy_(own_part(weight.detach(), shard))
            self._place(name, torch.empty_like(weight, device="meta"))

    def _shards(self) -> list[tuple[str, DTensor]]:
        shards = list(self._model.named_parameters())
        assert all(isinstance(shard, DTensor) for _, shard in shards)
        return shards  # type: ignore[return-value]

    def _place(self, name: str, tensor: Tensor) -> None:
        weight = nn.Parameter(tensor, requires_grad=False)
        for module, key in self._owners[name]:
            module.register_parameter(key, weight)


def _without_weights(
    model: PreTrainedModel, adapters: Adapters | None = None
) -> tuple[PreTrainedModel, Adapters | None]:
    """Copy a model and its adapters; the parameters have shapes only."""
    shapes = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
        for weight in model.parameters()
    }
    return copy.deepcopy((model, adapters), shapes)  # type: ignore[arg-type]
