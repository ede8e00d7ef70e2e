"""Shards: each rank keeps its share of the bytes of every block."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import check_plain, decoder_blocks
from prunelit.models.stores import Store, check_here, keep_in, place_outside

_ALIGNMENT = 64  # bytes; last bits of results can depend on the alignment of weights
# torch 2.13 deprecates the older name.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass
class _Weight:
    """Parameter of a block.

    Args:
        here: the parameter while the block is whole; it has no data while the block is away.
        away: a parameter on `meta` in its place.
        places: every place where a module of the block holds it; more than one if it is tied.
        start: its first byte in the block.
    """

    here: nn.Parameter
    away: nn.Parameter
    places: list[tuple[dict[str, nn.Parameter | None], str]]
    start: int

    def put(self, parameter: nn.Parameter) -> None:
        """Put a parameter into all places."""
        for parameters, name in self.places:
            parameters[name] = parameter


class Shards(Store):
    """Keep 1/R of the bytes of a block on each of R ranks; one all-gather makes it whole.

    All ranks fetch the same blocks in the same order. A change needs no communication: each rank
    makes it on the whole block and keeps its share. While the block is away, its parameters are on
    `meta`, so that nothing reads them by mistake. Buffers stay.

    Args:
        block: a decoder block, equal on all ranks and on one device. Of weights that lie in a
            mapped file, each rank reads its share.
        dtype: of the weights; None is the one that they have.
        device: place of the share and of the whole block; None is where the block is.
    """

    collective = True

    def __init__(
        self,
        block: nn.Module,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self._block = block
        self._device = device or next(block.parameters()).device
        self._coming: tuple[Tensor, dist.Work | None] | None = None
        self._weights: list[_Weight] = []
        self._share = self._cut(dtype)
        self.leave(edited=False)

    @property
    def nbytes(self) -> int:
        """Bytes that this rank keeps while the block is away."""
        return self._share.nbytes

    def prefetch(self) -> None:
        if self._coming is None and not self._inside:
            with torch.inference_mode(False):
                everything = self._share.new_empty(self._share.numel() * dist.get_world_size())
                work = _gather(everything, self._share, async_op=True)
            self._coming = everything, work

    def fetch(self) -> None:
        self.prefetch()
        assert self._coming is not None
        (everything, work), self._coming = self._coming, None
        if work is not None:
            work.wait()
        with torch.inference_mode(False):
            for weight in self._weights:
                like = weight.away
                if like.dtype != weight.here.dtype:
                    raise RuntimeError("The dtype of a model was changed while its blocks waited.")
                part = everything[weight.start : weight.start + like.nbytes]
                weight.here.data = part.view(like.dtype).view(like.shape)
                weight.here.requires_grad_(like.requires_grad)
                weight.put(weight.here)

    def leave(self, edited: bool) -> None:
        if edited:
            self._share = self._cut()
        with torch.inference_mode(False):
            for weight in self._weights:
                weight.away.requires_grad_(weight.here.requires_grad)
                weight.put(weight.away)
                weight.here.data = torch.empty(0, dtype=weight.away.dtype, device=self._device)

    @torch.no_grad()
    @torch.inference_mode(False)
    def _cut(self, dtype: torch.dtype | None = None) -> Tensor:
        """Find the present parameters of the block and copy the share of this rank."""
        self._weights, size = _layout(self._block.modules(), dtype)
        share = _aligned(-(-size // dist.get_world_size()))
        low = dist.get_rank() * share
        own = torch.zeros(share, dtype=torch.uint8, device=self._device)
        for weight in self._weights:
            flat, item = weight.here.detach().contiguous().flatten(), weight.away.element_size()
            first = max(low, weight.start)
            last = min(low + share, weight.start + flat.numel() * item)
            if first < last:
                part = flat[(first - weight.start) // item : (last - weight.start) // item]
                part = part.to(self._device, weight.away.dtype)
                own[first - low : last - low] = part.view(torch.uint8)
        return own


def shard_blocks(
    model: PreTrainedModel,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> None:
    """Let every rank keep its share of the blocks of a model, in place.

    What is outside the blocks stays whole on every rank: embeddings, final norm, head, buffers.

    Args:
        model: the same on all ranks of the default process group.
        dtype: of the weights; None is the one that they have. Buffers keep theirs.
        device: of this rank; None is where the model is.

    Raises:
        InputError: before any change, if there is no process group, if weights are no plain
            numbers, or if a parameter is in two blocks, or inside and outside a block.
    """
    if not dist.is_initialized():
        raise InputError("Expected several processes to share the blocks of a model but got one.")
    check_here(model, "Sharding")
    check_plain(model)
    prefix, blocks = decoder_blocks(model)
    _check_apart(model, prefix)
    device = device or model.device
    for block in blocks:
        keep_in(block, Shards(block, dtype, device))
    place_outside(model, blocks, device, dtype)
    if dtype is not None:
        model.config.dtype = dtype


def _check_apart(model: nn.Module, prefix: str) -> None:
    """Refuse a model whose blocks share parameters with each other or with the rest."""
    places: dict[int, tuple[str, str | None]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        inside = name.removeprefix(f"{prefix}.")
        block = None if inside == name else inside.partition(".")[0]
        earlier, owner = places.setdefault(id(parameter), (name, block))
        if owner != block:
            raise InputError(
                f"{type(model).__name__} cannot be sharded block by block: {earlier!r} and "
                f"{name!r} are one parameter. Load it with the placement resident."
            )


def _layout(modules: Iterable[nn.Module], dtype: torch.dtype | None) -> tuple[list[_Weight], int]:
    """Place the parameters of modules one after the other, in their dtype or in another one.

    Returns:
        The parameters, and the number of bytes.
    """
    found: dict[int, _Weight] = {}
    size = 0
    for module in modules:
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in found:
                blank = torch.empty_like(parameter, device="meta", dtype=dtype)
                away = nn.Parameter(blank, parameter.requires_grad)
                found[id(parameter)] = _Weight(parameter, away, [], size)
                size += _aligned(blank.nbytes)
            found[id(parameter)].places.append((module._parameters, name))
    return list(found.values()), size


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
