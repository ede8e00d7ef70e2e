"""Stores: places where the weights of a block wait until something works on the block."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from itertools import chain, groupby
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from prunelit.arguments import checked
from prunelit.errors import InputError

ALIGNMENT = 64  # bytes; last bits of results can depend on the alignment of weights
# Integers of as many bytes as a weight has, to compare all bits.
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ATTRIBUTE = "prunelit_store"
_Module = TypeVar("_Module", bound=nn.Module)


class Turn(Protocol):
    """Work that shares blocks with other work, see `prunelit.core.conveyor`."""

    def wait_for(self, store: "Store") -> None:
        """Wait until the conveyor has brought a block."""

    def give_way(self) -> None:
        """Let other work go on first."""


# Of the current thread; None outside a conveyor.
TURN: ContextVar[Turn | None] = ContextVar("TURN", default=None)


class Store(ABC):
    """Place where the weights of one block wait.

    `whole` calls `fetch` and `leave`, and who replaces a store; nothing else does.

    Attributes:
        collective: True if all ranks must fetch a block together, in the same order.
        edits: number of times that changed weights were taken away.
    """

    collective = False

    def __init__(self) -> None:
        self.edits = 0
        self._inside = 0
        self._edited = False

    @abstractmethod
    def fetch(self) -> None:
        """Bring the weights to where they are worked on."""

    @abstractmethod
    def leave(self, edited: bool) -> None:
        """Take the weights away again.

        Args:
            edited: keep the weights as they are now; False may forget a change.
        """

    def prefetch(self) -> None:  # noqa: B027 - most stores have nothing to begin
        """Begin to bring the weights; `fetch` comes soon. It changes no result."""

    def keep_masked(self, dense: "Store") -> None:  # noqa: B027 - it need not
        """Keep the block as another one and a mask if it can, now and whenever it is edited.

        Args:
            dense: store of the same block of the dense model; a later edit there changes nothing.
        """

    def __deepcopy__(self, memo: dict[int, Any]) -> "Store":
        raise RuntimeError("A model whose blocks wait in a store cannot be copied.")

    @contextmanager
    def _whole(self, edited: bool) -> Iterator[None]:
        if (turn := TURN.get()) is not None:
            turn.wait_for(self)
        if not self._inside:
            self.fetch()
        self._inside += 1
        self._edited |= edited
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                edited, self._edited = self._edited, False
                self.edits += edited
                self.leave(edited)


def keep_in(block: nn.Module, store: Store | None) -> None:
    """Let a store keep the weights of a block; the forward pass of the block has them here.

    Args:
        block: a decoder block; its views, which share its attributes, have the same store. So have
            all modules inside.
        store: of this block alone; None if its weights stay here from now on.
    """
    for module in block.modules():
        vars(module).pop(_ATTRIBUTE, None)
        if store is not None:
            setattr(module, _ATTRIBUTE, store)
    vars(block).pop("forward", None)
    if store is not None:
        block.forward = partial(_forward, block)


def bring(block: nn.Module) -> None:
    """Have the weights of a block here from now on, in no store."""
    if (store := store_of(block)) is not None:
        store.fetch()
        keep_in(block, None)


def _forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with whole(block):
        return type(block).forward(block, *args, **kwargs)


def store_of(module: nn.Module) -> Store | None:
    """Return the store of a block or of a module inside; None if its weights are always here."""
    return vars(module).get(_ATTRIBUTE)


def share_store(module: nn.Module, owner: nn.Module) -> None:
    """Let a module that reads the weights of another one have its store.

    Args:
        module: outside the block.
        owner: has the weights.
    """
    if (store := store_of(owner)) is not None:
        setattr(module, _ATTRIBUTE, store)


def is_shared(blocks: Iterable[nn.Module]) -> bool:
    """Return True if all ranks must bring these blocks together, since each has a share.

    Args:
        blocks: of a model.
    """
    return any(store is not None and store.collective for store in map(store_of, blocks))


@torch.no_grad()
def place_outside(
    model: nn.Module,
    blocks: nn.ModuleList,
    device: torch.device,
) -> None:
    """Move all of a model but the weights of its blocks, in place.

    Args:
        model: any.
        blocks: its blocks; their buffers, such as masks and positions of old families, move too.
        device: where the model computes.
    """
    inside = {part for block in blocks for part in block.modules()}
    for module in model.modules():
        if module not in inside:
            module._apply(lambda tensor: tensor.to(device), recurse=False)
        else:
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))


@torch.inference_mode(False)
def align(model: nn.Module) -> None:
    """Let the weights that are here begin at a multiple of 64 bytes; copy those that do not.

    Last bits of results on the CPU can depend on it.

    Args:
        model: any, on the CPU.
    """
    for tensor in chain(model.parameters(), model.buffers()):
        if type(tensor.data) is Tensor and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def check_here(model: nn.Module, what: str) -> None:
    """Refuse a model whose blocks wait in stores.

    Args:
        model: any.
        what: needs the whole model at once; first words of the error.

    Raises:
        InputError: naming `what`.
    """
    store = next((store for module in model.modules() if (store := store_of(module))), None)
    if store is not None:
        raise InputError(
            f"{what} needs all weights of the model at once, but its blocks wait in "
            f"{type(store).__name__}: load the model with the placement resident."
        )


@checked
@contextmanager
def whole(block: nn.Module, *, edited: bool = False) -> Iterator[None]:
    """Have the weights of a block here, within the context; it may be entered again inside.

    A block may wait on a disk, or other processes may have parts of it. A method needs this where
    it looks at a whole model, as in `Pruner.decide`; `Pruner.prune_block` gets a block that is
    here. It does nothing for a block that is always here.

    Args:
        block: a decoder block, or a module inside.
        edited: the weights are changed inside; False may forget a change.

    Example:
        >>> import torch
        >>> from prunelit.pruners import whole
        >>> block = torch.nn.Sequential(torch.nn.Linear(2, 2)).requires_grad_(False)
        >>> with whole(block, edited=True):
        ...     block[0].weight[0] = 0
        >>> block[0].weight[0]
        tensor([0., 0.])
    """
    store = store_of(block)
    if store is None:
        yield
    else:
        with store._whole(edited):
            yield


def each_whole(modules: Iterable[_Module], *, edited: bool = False) -> Iterator[_Module]:
    """Give modules one by one, each while the weights of its block are here.

    Modules of one block that follow one another bring it once.

    Args:
        modules: blocks, modules inside blocks, or others.
        edited: the weights are changed.
    """
    for store, same in groupby(modules, key=store_of):
        with nullcontext() if store is None else store._whole(edited):
            yield from same


def each_part(model: nn.Module) -> Iterator[list[str]]:
    """Give the names of the parameters that are here together, while they are.

    What is done with all of them then brings every block once. A model without stores is one part.

    Args:
        model: any.
    """
    names = [name for name, _ in model.named_parameters()]
    owners = (model.get_submodule(name.rpartition(".")[0]) for name in names)
    stores = dict(zip(names, map(store_of, owners), strict=True))
    for store, same in groupby(names, key=stores.__getitem__):
        with nullcontext() if store is None else store._whole(False):
            yield list(same)


def each_weight(
    model: nn.Module, names: Iterable[str] | None = None, *, edited: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Give parameters one by one, each while the weights of its block are here.

    Args:
        model: any.
        names: names of parameters; None gives all, as `named_parameters` does.
        edited: the weights are changed.
    """
    if names is None:
        names = [name for name, _ in model.named_parameters()]
    split = [name.rpartition(".") for name in names]
    owners = each_whole([model.get_submodule(path) for path, _, _ in split], edited=edited)
    for (path, dot, last), owner in zip(split, owners, strict=True):
        yield f"{path}{dot}{last}", owner.get_parameter(last)


@contextmanager
def one_at_a_time(lock: threading.Lock) -> Iterator[None]:
    """Hold a lock; a batch on a conveyor lets the others go on until it is free.

    Args:
        lock: held by one batch at a time, which may wait for blocks meanwhile.
    """
    turn = TURN.get()
    while not lock.acquire(blocking=turn is None):
        assert turn is not None
        turn.give_way()
    try:
        yield
    finally:
        lock.release()
