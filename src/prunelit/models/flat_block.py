"""Flat blocks: the parameters of a block as one run of bytes."""

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.stores import ALIGNMENT

_CPU = torch.device("cpu")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")  # of Linux


@dataclass
class Weight:
    """Parameter of a block.

    Args:
        here: the parameter while the block is here; it has no data while the block is away.
        away: a parameter on `meta` in its place.
        places: every place where a module of the block holds it; more than one if it is tied.
        start: its first byte in the run.
    """

    here: nn.Parameter
    away: nn.Parameter
    places: list[tuple[dict[str, nn.Parameter | None], str]]
    start: int

    def put(self, parameter: nn.Parameter) -> None:
        """Put a parameter into all places."""
        for parameters, name in self.places:
            parameters[name] = parameter


class FlatBlock:
    """The parameters of a block, and their places in a run of bytes that waits elsewhere.

    Each begins at a multiple of 64 bytes. While the block is away, parameters on `meta` stand in
    for its own, so that nothing reads them by mistake. Buffers stay.

    Args:
        modules: all modules of the block, whose parameters are here.

    Attributes:
        weights: the parameters, in their order; a tied one is there once.
        size: bytes of the run, a multiple of 64.
        layout: shape and dtype of each parameter. Runs of equal layouts have equal places.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        found: dict[int, Weight] = {}
        self.size = 0
        for module in modules:
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in found:
                    blank = torch.empty_like(parameter, device="meta")
                    away = nn.Parameter(blank, parameter.requires_grad)
                    found[id(parameter)] = Weight(parameter, away, [], self.size)
                    self.size += aligned(away.nbytes)
                found[id(parameter)].places.append((module._parameters, name))
        self.weights = list(found.values())
        self.layout = [(weight.away.shape, weight.away.dtype) for weight in self.weights]

    @property
    def itemsize(self) -> int:
        """Bytes of the smallest number in the run; its words of this size hold no two numbers."""
        return min((dtype.itemsize for _, dtype in self.layout), default=1)

    @torch.no_grad()
    def copy_into(self, run: Tensor, low: int = 0) -> None:
        """Copy a part of the bytes of the parameters that are here.

        Args:
            run: (N,) uint8 of zeros, on any device.
            low: its first byte, a multiple of 64.
        """
        for weight in self.weights:
            item, count = weight.away.element_size(), weight.away.nbytes
            first, last = max(low, weight.start), min(low + run.numel(), weight.start + count)
            if first < last:
                flat = weight.here.detach().contiguous().flatten()
                part = flat[(first - weight.start) // item : (last - weight.start) // item]
                run[first - low : last - low] = part.to(run.device).view(torch.uint8)

    @torch.inference_mode(False)
    def show(self, run: Tensor) -> None:
        """Let the parameters be here, with the values of a run.

        Args:
            run: (size,) uint8 at an aligned address, on any device; the parameters are views of it.

        Raises:
            RuntimeError: if their dtype was changed while they were away.
        """
        for weight in self.weights:
            like = weight.away
            if like.dtype != weight.here.dtype:
                raise RuntimeError("The dtype of a model was changed while its blocks waited.")
            part = run[weight.start : weight.start + like.nbytes]
            weight.here.data = part.view(like.dtype).view(like.shape)
            weight.here.requires_grad_(like.requires_grad)
            weight.put(weight.here)

    @torch.inference_mode(False)
    def hide(self) -> None:
        """Let the parameters be away; their memory is given up."""
        for weight in self.weights:
            weight.away.requires_grad_(weight.here.requires_grad)
            weight.put(weight.away)
            weight.here.data = weight.here.new_empty(0)


def new_run(size: int, device: torch.device = _CPU) -> Tensor:
    """Return new memory for a run, (size,) uint8 at an aligned address.

    On the CPU the system has it back once it is not used. The allocator of C keeps much of what is
    freed: after blocks of 14 MB, up to 40 of them.

    Args:
        size: bytes; their content is not defined.
        device: any.
    """
    if device.type != "cpu" or not size:
        return torch.empty(size, dtype=torch.uint8, device=device)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _HUGE_PAGES.exists():  # to fill small ones takes five times as long
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)


def aligned(size: int) -> int:
    """Return the next multiple of 64."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def check_flat(model: PreTrainedModel) -> None:
    """Refuse a model whose blocks cannot wait one by one, each as a run of bytes.

    Raises:
        InputError: naming a parameter that is quantised or sharded, or one that is in two blocks,
            or inside and outside a block.
    """
    prefix, _ = decoder_blocks(model)
    places: dict[int, tuple[str, str | None]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        inside = name.removeprefix(f"{prefix}.")
        block = None if inside == name else inside.partition(".")[0]
        earlier, owner = places.setdefault(id(parameter), (name, block))
        why = None
        if owner != block:
            why = f"{earlier!r} and {name!r} are one parameter"
        elif type(parameter.data) is not Tensor:
            why = f"{name!r} is a {type(parameter.data).__name__}"
        if why is not None:
            raise InputError(
                f"{type(model).__name__} cannot be taken block by block: {why}. Load it with the "
                "placement resident."
            )
