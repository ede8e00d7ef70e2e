"""Training of weights that are sharded: FSDP2 spreads them over the ranks, block by block."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks
from prunelit.models.model_pair import ModelPair
from prunelit.models.stores import Store, keep_in
from prunelit.pruning.lora import Adapters
from prunelit.pruning.masks import own_part
from prunelit.pruning.recovery import Recovery


class Sharding:
    """Both models of a run while they are trained.

    FSDP2 keeps a share of every weight on each rank, and brings a block together when the loss
    needs it. All other work, such as a round of pruning or a task, uses the models of `pair`, which
    become plain models without weights: `whole` and `filled` bring these, on every rank.

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
        self._views = {id(pair.pruned): _View(self.model, pair.pruned)}
        if dense is not None:
            pair.dense, _ = _without_weights(dense)
            self._views[id(pair.dense)] = _View(dense, pair.dense)
        for model in (self.model, dense):
            for block in () if model is None else decoder_blocks(model)[1]:
                fully_shard(block, mesh=mesh)
        self.loss = RecoveryLoss(recovery, self.model, dense)
        fully_shard(self.loss, mesh=mesh)  # the root: what lies outside the blocks

    @contextmanager
    def whole(self, model: PreTrainedModel, *, edited: bool = False) -> Iterator[None]:
        """Have the weights outside the blocks here; the blocks come one by one from their stores.

        Every rank must enter it.

        Args:
            model: of the pair; one that is not sharded is left as it is.
            edited: the weights outside the blocks are changed inside.
        """
        view = self._views.get(id(model))
        if view is None:
            yield
            return
        view.rest.fetch()
        try:
            yield
        finally:
            view.rest.leave(edited)

    @contextmanager
    def filled(self, model: PreTrainedModel) -> Iterator[None]:
        """Have all weights of a model here, as ranks with different numbers of batches need them.

        Every rank must enter it. Changes are lost.

        Args:
            model: as in `whole`.
        """
        view = self._views.get(id(model))
        if view is None:
            yield
            return
        view.fill()
        try:
            yield
        finally:
            view.empty()

    def holds(self, model: PreTrainedModel) -> bool:
        """Return True if the weights of a model of the pair are sharded."""
        return id(model) in self._views

    def end(self) -> None:
        """Fill the models of the pair for good. The shards are no longer needed."""
        for view in self._views.values():
            view.fill()


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


class _View:
    """A plain model whose weights are the shards of another one.

    Args:
        model: is or will be sharded by FSDP2.
        plain: has the same parameters, by name.

    Attributes:
        rest: store of what is outside the blocks. Every block has one of its own.
    """

    def __init__(self, model: PreTrainedModel, plain: PreTrainedModel) -> None:
        prefix, blocks = decoder_blocks(plain)
        self.rest = ShardStore(model, plain, lambda name: not name.startswith(f"{prefix}."))
        self._stores = [
            (block, ShardStore(model, plain, lambda name, own=own: name.startswith(own)))
            for block, own in ((block, f"{prefix}.{index}.") for index, block in enumerate(blocks))
        ]
        for block, store in self._stores:
            keep_in(block, store)

    def fill(self) -> None:
        """Bring all weights, which are in no store until `empty`."""
        self.rest.fetch()
        for block, store in self._stores:
            store.fetch()
            keep_in(block, None)

    def empty(self) -> None:
        """Drop all weights."""
        self.rest.leave(edited=False)
        for block, store in self._stores:
            store.leave(edited=False)
            keep_in(block, store)


class ShardStore(Store):
    """Keep a part of a plain model as shards of another one, between training steps.

    Args:
        model: is or will be sharded by FSDP2.
        plain: has the same parameters, by name.
        has: tells by its name if a parameter belongs to the part.
    """

    collective = True

    def __init__(
        self, model: PreTrainedModel, plain: PreTrainedModel, has: Callable[[str], bool]
    ) -> None:
        super().__init__()
        self._model = model
        names = {id(weight): name for name, weight in plain.named_parameters() if has(name)}
        self._owners: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in names.values()}
        for module in plain.modules():
            for key, weight in module.named_parameters(recurse=False):
                if id(weight) in names:
                    self._owners[names[id(weight)]].append((module, key))  # tied ones have several

    @torch.inference_mode(False)
    @torch.no_grad()
    def fetch(self) -> None:
        """Gather the weights."""
        for name, shard in self._shards():
            self._place(name, shard.full_tensor())

    @torch.inference_mode(False)
    @torch.no_grad()
    def leave(self, edited: bool) -> None:
        """Drop the whole weights; those that were edited become shards."""
        for name, shard in self._shards():
            module, key = self._owners[name][0]
            weight = module.get_parameter(key)
            if edited:
                shard.to_local().copy_(own_part(weight.detach(), shard))
            self._place(name, torch.empty_like(weight, device="meta"))

    def _shards(self) -> Iterator[tuple[str, DTensor]]:
        for name in self._owners:
            shard = self._model.get_parameter(name)
            assert isinstance(shard, DTensor)
            yield name, shard

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
