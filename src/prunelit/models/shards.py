"""Shards: each rank keeps its share of the bytes of every block."""

from collections.abc import Iterator
from itertools import cycle

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import check_plain, decoder_blocks
from prunelit.models.flat_block import FlatBlock, aligned, check_flat, new_run
from prunelit.models.masked import apply_mask_, dense_stores, pack_mask
from prunelit.models.sharing import share_outside
from prunelit.models.stores import Store, align, bring, keep_in, place_outside, store_of
from prunelit.models.unread import Unread

# torch 2.13 deprecates the older name.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Shards(Store):
    """Keep 1/R of the bytes of a block on each of R ranks; one all-gather makes it whole.

    All ranks fetch the same blocks in the same order. A change needs no communication: each rank
    makes it on the whole block and keeps its share. While the block is away, its parameters are on
    `meta`, so that nothing reads them by mistake. Buffers stay.

    Args:
        block: a decoder block, equal on all ranks and on one device. Of weights that lie in a
            mapped file, each rank reads its share.
        device: place of the share and of the whole block; None is where the block is.
        owner: rank that has the block and gives every rank its share; None if all have it.
    """

    collective = True

    def __init__(
        self,
        block: nn.Module,
        device: torch.device | None = None,
        owner: int | None = None,
    ) -> None:
        super().__init__()
        self._block = block
        self._device = device or next(block.parameters()).device
        self._coming: tuple[Tensor, Tensor, dist.Work | None] | None = None
        self._flat = FlatBlock(block.modules())
        self._dense: Tensor | None = None
        self._keep(self._cut() if owner is None else self._receive(owner))
        self._flat.hide()

    @property
    def nbytes(self) -> int:
        """Bytes that this rank keeps while the block is away, beside those of the dense block."""
        return (self._share if self._bits is None else self._bits).nbytes

    def prefetch(self) -> None:
        if self._coming is None and not self._inside:
            with torch.inference_mode(False):
                everything = new_run(self._share.numel() * dist.get_world_size(), self._device)
                share = self._own()
                self._coming = everything, share, _gather(everything, share, async_op=True)

    def fetch(self) -> None:
        self.prefetch()
        assert self._coming is not None
        (everything, _, work), self._coming = self._coming, None
        if work is not None:
            work.wait()
        self._flat.show(everything)

    def leave(self, edited: bool) -> None:
        if edited:
            self._flat = FlatBlock(self._block.modules())
            self._keep(self._cut())
        self._flat.hide()

    @torch.inference_mode(False)
    def keep_masked(self, dense: Store) -> None:
        if isinstance(dense, Shards):
            self._dense = dense._own()
            self._keep(self._own())

    @torch.inference_mode(False)
    def _cut(self) -> Tensor:
        """Copy the share of this rank of the present block."""
        share = new_run(self._part, self._device).zero_()
        self._flat.copy_into(share, dist.get_rank() * self._part)
        return share

    @torch.inference_mode(False)
    def _receive(self, owner: int) -> Tensor:
        """Get the share of this rank from the only one that has the block."""
        share, parts = new_run(self._part, self._device), None
        if dist.get_rank() == owner:
            run = new_run(self._part * dist.get_world_size(), self._device).zero_()
            self._flat.copy_into(run)
            parts = list(run.split(self._part))
        dist.scatter(share, parts, src=owner)
        return share

    @property
    def _part(self) -> int:
        """Bytes of a share."""
        return aligned(-(-self._flat.size // dist.get_world_size()))

    @torch.inference_mode(False)
    def _keep(self, share: Tensor) -> None:
        """Keep a share, or the dense one and a mask if it lost weights and nothing else."""
        self._share, self._bits = share, None
        if self._dense is not None and self._dense.numel() == share.numel():
            self._bits = pack_mask(share, self._dense, self._flat.itemsize)
        if self._dense is not None and self._bits is not None:
            self._share = self._dense

    def _own(self) -> Tensor:
        """Return the share of this rank."""
        if self._bits is None:
            return self._share
        share = new_run(self._share.numel(), self._device).copy_(self._share)
        apply_mask_(share, self._bits)
        return share


def shard_blocks(
    model: PreTrainedModel,
    device: torch.device | None = None,
    dense: PreTrainedModel | None = None,
) -> None:
    """Let every rank keep its share of the blocks of a model, in place.

    What is outside the blocks stays whole on every rank: embeddings, final norm, head, buffers.

    Args:
        model: the same on all ranks of the default process group.
        device: of this rank; None is where the model is.
        dense: a model that was sharded before. Blocks that only lost weights of its blocks are
            kept as these and a mask, now and after each edit.

    Raises:
        InputError: before any change, if there is no process group, if weights are no plain
            numbers, or if a parameter is in two blocks, or inside and outside a block.
    """
    if not dist.is_initialized():
        raise InputError("Expected several processes to share the blocks of a model but got one.")
    check_plain(model)
    check_flat(model)
    blocks = decoder_blocks(model)[1]
    device, owners = device or model.device, cycle(range(dist.get_world_size()))
    for block, other in zip(blocks, dense_stores(len(blocks), dense), strict=True):
        keep_in(block, store := Shards(block, device, _read(block, owners)))
        if other is not None:
            store.keep_masked(other)
    place_outside(model, blocks, device)
    if device.type == "cpu":
        align(model)
    if dense is not None:
        share_outside(model, dense)


def _read(block: nn.Module, owners: Iterator[int]) -> int | None:
    """Have a block here to cut it: on every rank if that takes no memory, else on the next owner.

    Returns:
        The owner; None if all ranks have the block.
    """
    store = store_of(block)
    owner = next(owners) if isinstance(store, Unread) and not store.mapped else None
    if isinstance(store, Unread) and owner not in (None, dist.get_rank()):
        store.make_room()
        keep_in(block, None)
    else:
        bring(block)
    return owner
