"""Training of weights that are sharded: FSDP2 spreads them over the ranks, block by block."""

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
from prunelit.models.shards import Shards
from prunelit.models.stores import Store, bring, is_shared, keep_in
from prunelit.models.views import blank
from prunelit.pruning.masks import own_part
from prunelit.pruning.recovery import Recovery


class Sharding:
    """Both models of a run while they are trained.

    FSDP2 keeps a share of every weight on each rank, and brings a block together when the loss
    needs it. All other work, such as a round of pruning or a task, uses the models of `pair`, which
    become plain models without weights: `whole` and `measured` bring these, on every rank.

    Args:
        recovery: the loss. A dense model that it does not need stays as it is.
        pair: both models, changed in place. Each is whole on every rank, or the ranks share its
            blocks: then no rank ever has more than one block and what is outside the blocks.
        mesh: of the ranks that share the weights.

    Attributes:
        model: the pruned model with its shards, which is trained.
        loss: gives the losses of (B, T) token ids, see `Recovery.losses`.
    """

    def __init__(self, recovery: Recovery, pair: ModelPair, mesh: DeviceMesh) -> None:
        self.model = pair.pruned
        dense = pair.dense if recovery.needs_reference else None
        self._shared = is_shared(decoder_blocks(self.model)[1])
        pair.pruned = blank(self.model)
        self._views = {id(pair.pruned): _View(self.model, pair.pruned)}
        if dense is not None:
            pair.dense = blank(dense)
            self._views[id(pair.dense)] = _View(dense, pair.dense)
        for model in (self.model, dense):
            for block in () if model is None else decoder_blocks(model)[1]:
                bring(block)
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
    def measured(self, model: PreTrainedModel) -> Iterator[None]:
        """Have a model here as tasks need it. Every rank must enter it. Changes are lost.

        A model whose blocks the ranks shared is as in `whole`. Any other has all its weights, so
        that ranks may run different numbers of batches.

        Args:
            model: as in `whole`.
        """
        view = self._views.get(id(model))
        with self.whole(model):
            if view is None or self._shared:
                yield
                return
            view.fill()
            try:
                yield
            finally:
                view.empty()

    def end(self) -> None:
        """Let the models of the pair be as they came. The shards are no longer needed."""
        for view in self._views.values():
            view.rest.fetch()
            for block in view.blocks:
                bring(block)
                if self._shared:
                    keep_in(block, Shards(block))


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
        rest: store of what is outside the blocks.
        blocks: of the plain model; each has a store of its own.
    """

    def __init__(self, model: PreTrainedModel, plain: PreTrainedModel) -> None:
        prefix, blocks = decoder_blocks(plain)
        self.rest = ShardStore(model, plain, lambda name: not name.startswith(f"{prefix}."))
        self.blocks = blocks
        self._stores = [
            ShardStore(model, plain, lambda name, own=f"{prefix}.{index}.": name.startswith(own))
            for index in range(len(blocks))
        ]
        self._keep()

    def fill(self) -> None:
        """Bring the weights of all blocks, which are in no store until `empty`."""
        for block in self.blocks:
            bring(block)

    def empty(self) -> None:
        """Drop the weights of all blocks."""
        for store in self._stores:
            store.leave(edited=False)
        self._keep()

    def _keep(self) -> None:
        for block, store in zip(self.blocks, self._stores, strict=True):
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
