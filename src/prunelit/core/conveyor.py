"""The conveyor: many batches pass a block before the next block comes.

A model whose blocks wait in stores reads a block from disk, or gathers it from all ranks, for every
pass of every batch. On the conveyor the batches of a flight are under way at once, each in a thread
of its own, and one of them runs at a time. A batch waits on its way into a block. When all wait,
the next block is brought, and every batch that waits for it passes it. Batches need not make the
same passes: texts may end at different steps, and a rank may have no batch.
"""

import contextvars
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks
from prunelit.models.stores import TURN, Store, Turn, store_of, whole
from prunelit.tasks.base import RankBatches

Value = TypeVar("Value")
Place = tuple[int, int]  # number of a model, and of a block in it


class Flights:
    """The batches of a task, in lists of at most `size`; every rank has as many lists.

    Args:
        batches: of this rank.
        size: number of batches that are under way at once.
    """

    def __init__(self, batches: RankBatches, size: int) -> None:
        self._batches = batches
        self._size = size

    def __len__(self) -> int:
        return math.ceil(len(self._batches) / self._size)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        left = iter(self._batches)
        while flight := list(islice(left, self._size)):
            yield flight


class Conveyor:
    """Runs batches together, so that a block comes once for all that wait for it.

    Blocks of the first model come before those of the second, as long as a batch waits for one:
    tasks read the dense model first, so no batch runs ahead of the others.

    Args:
        models: dense before pruned. Batches run views of them, see `prunelit.models.views`.
        watch: called after each block that came.

    Attributes:
        brought: number of blocks that came.
    """

    def __init__(
        self, models: Iterable[PreTrainedModel], watch: Callable[[], None] | None = None
    ) -> None:
        self._blocks: dict[Place, nn.Module] = {}
        self._places: dict[Store, Place] = {}
        for number, model in enumerate(models):
            for index, block in enumerate(decoder_blocks(model)[1]):
                if (store := store_of(block)) is not None and store not in self._places:
                    self._blocks[number, index] = block
                    self._places[store] = number, index
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._collective = together and any(store.collective for store in self._places)
        self._watch = watch
        self._last: dict[int, int] = {}  # block of each model that came last
        self.brought = 0

    def run(self, works: Sequence[Callable[[], Value]]) -> list[Value]:
        """Run a flight; if a store needs all ranks, every rank must call it.

        Args:
            works: one for each batch. The first error of one ends all.

        Returns:
            What each of `works` returns, in their order.

        Raises:
            torch.distributed.DistError: if another rank failed.
        """
        batches = [_Batch(work, self._places) for work in works]
        try:
            self._advance(batches)
            while (place := self._next_place(batches)) is not None:
                self._bring(place, batches)
            return [batch.result for batch in batches]
        finally:
            for batch in batches:
                batch.end()

    def _advance(self, batches: Iterable["_Batch[Any]"], here: Store | None = None) -> None:
        """Let batches go on, one after the other, until one fails."""
        for batch in batches:
            batch.go(here)
            if batch.error is not None:
                return

    def _bring(self, place: Place, batches: Sequence["_Batch[Any]"]) -> None:
        block = self._blocks[place]
        store = store_of(block)
        following = self._blocks.get((place[0], place[1] + 1))
        with whole(block):
            if following is not None:
                store_of(following).prefetch()  # type: ignore[union-attr]
            self._advance([batch for batch in batches if batch.wanted is store], store)
        self._last[place[0]] = place[1]
        self.brought += 1
        if self._watch is not None:
            self._watch()

    def _next_place(self, batches: Sequence["_Batch[Any]"]) -> Place | None:
        """Choose the block that comes next; None if no batch of any rank waits for one."""
        # One that gave way goes on as soon as another, which it waits for, has gone on.
        while paused := [batch for batch in batches if batch.paused]:
            self._advance(paused)
            if any(batch.wanted is not None or batch.error is not None for batch in batches):
                break
        error = next((batch.error for batch in batches if batch.error is not None), None)
        wanted = {self._places[b.wanted] for b in batches if b.wanted is not None}
        failed = error is not None
        if self._collective:
            wanted, failed = self._agree(wanted, failed)
        if error is not None:
            raise error
        if failed:
            raise dist.DistError("another process could not go on, and its error says why")
        if not wanted:
            return None
        model = min(number for number, _ in wanted)
        own = sorted(index for number, index in wanted if number == model)
        later = (index for index in own if index > self._last.get(model, -1))
        return model, next(later, own[0])

    def _agree(self, wanted: set[Place], failed: bool) -> tuple[set[Place], bool]:
        """Return the blocks that any rank wants, and True if any has failed."""
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        flags = [*(place in wanted for place in self._blocks), failed]
        found = torch.tensor(flags, dtype=torch.int32, device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        *flags, failed = found.bool().tolist()
        return {place for place, flag in zip(self._blocks, flags, strict=True) if flag}, failed


class _Ended(BaseException):
    """Unwinds the thread of a batch that is not wanted any more."""


class _Batch(Turn, Generic[Value]):
    """One batch on its way, in a thread that runs only inside `go`.

    Args:
        work: measures the batch.
        places: stores that a conveyor brings.

    Attributes:
        wanted: the store that the batch waits for.
        paused: True if it waits for another batch.
        error: the error that ended it.
        result: of `work`.
    """

    result: Value

    def __init__(self, work: Callable[[], Value], places: Iterable[Store]) -> None:
        self.wanted: Store | None = None
        self.paused = False
        self.error: BaseException | None = None
        self._work = work
        self._places = places
        self._here: Store | None = None
        self._moves = self._ended = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._settings = _thread_settings()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), daemon=True
        )

    def go(self, here: Store | None) -> None:
        """Let the batch run until it waits again, ends or fails.

        Args:
            here: the store whose block is here.
        """
        self.wanted, self.paused, self._here = None, False, here
        try:
            if self._thread.ident is None:
                self._thread.start()
            else:
                self._go.release()
            self._back.acquire()
        except BaseException:  # of a signal: the block must stay until the batch stands still
            self._ended = True
            if self._moves:
                self._back.acquire()
            raise

    def end(self) -> None:
        """End the thread, wherever it is."""
        if self._thread.ident is not None:
            self._ended = True
            self._go.release()
            self._thread.join()

    def wait_for(self, store: Store) -> None:
        if store in self._places and store is not self._here:
            self.wanted = store
            self._stand()

    def give_way(self) -> None:
        self.paused = True
        self._stand()

    def _stand(self) -> None:
        if not self._ended:
            self._moves = False
            self._back.release()
            self._go.acquire()
            self._moves = True
        if self._ended:
            raise _Ended

    def _run(self) -> None:
        self._moves = True
        TURN.set(self)
        try:
            with ExitStack() as stack:
                self._settings(stack)
                self.result = self._work()
        except _Ended:
            pass
        except BaseException as error:  # noqa: BLE001 - the thread of the conveyor raises it
            self.error = error
        finally:
            del self._work  # with its views and its memory
            self._moves = False
            self._back.release()


def _thread_settings() -> Callable[[ExitStack], None]:
    """Return a function that gives another thread the settings of PyTorch that this one has."""
    threads = torch.get_num_threads()
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    # Without the cache of casts, which would hold the blocks that are gone.
    casts = [
        partial(torch.autocast, kind, torch.get_autocast_dtype(kind), cache_enabled=False)
        for kind in ("cpu", "cuda")
        if torch.is_autocast_enabled(kind)
    ]
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def restore(stack: ExitStack) -> None:
        torch.set_num_threads(threads)
        stack.enter_context(torch.inference_mode(inference))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for cast in casts:
            stack.enter_context(cast())
        if stream is not None:
            stack.enter_context(torch.cuda.stream(stream))

    return restore
