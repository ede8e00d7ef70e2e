"""Block-by-block driver: observe a block, sum over ranks, prune it, run it again, go on."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.data.batches import Batch
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, device_of
from prunelit.models.replay import Form, Stream, capture
from prunelit.models.stores import store_of, whole
from prunelit.pruners.base import Probe, Pruner
from prunelit.pruning.dry_walk import walk_blocks
from prunelit.pruning.hooks import Feed, Trial
from prunelit.pruning.outputs import Outputs
from prunelit.pruning.peak_memory import PeakMemory
from prunelit.pruning.pooling import Reach, pool_experts
from prunelit.pruning.report import BlockCost
from prunelit.pruning.saved_look import SavedChanges, SavedLook


@dataclass
class RankText:
    """Calibration text of one rank.

    Args:
        batches: the batches of this rank; there may be none.
        sample: one sequence, the same on every rank, to check the replay with.
        held: the batches at which a method that measures the output of the model compares it.
        compared: (B, T) bool for each of these, the tokens that are compared.
    """

    batches: list[Batch]
    sample: Batch
    held: list[Batch] = field(default_factory=list)
    compared: list[Tensor] = field(default_factory=list)


def _say_nothing(done: int, total: int) -> None:
    """Show no progress."""


def prune_blocks(
    model: PreTrainedModel,
    pruner: Pruner,
    text: RankText | None,
    memory: PeakMemory,
    reach: Reach,
    saved: SavedLook | None = None,
    changes: SavedChanges | None = None,
    tick: Callable[[int, int], None] = _say_nothing,
) -> Iterator[BlockCost]:
    """Prune every block in place, each calibrated on the outputs of the pruned blocks before it.

    A block costs two forward passes over the calibration text: one to observe it and one to pass
    its new output on. A method with no probes costs none.

    Args:
        model: in evaluation mode, gradients off; its blocks may wait in stores.
        pruner: the method.
        text: calibration text of this rank; None if there is none.
        memory: measures the peak memory of a block.
        reach: counts experts, and those that few tokens reach.
        saved: what an earlier run found in the first pass; None keeps nothing.
        changes: what an earlier run measured of the first variations; None keeps nothing.
        tick: shows the progress of measurements of the output, see `Outputs`.

    Yields:
        Time and memory of a block, each time one is done. A method that looks at the whole model
        first takes every block more than once. The model is pruned when the last value is taken.

    Raises:
        InputError: before any weight changes, if the method needs text and there is none, if the
            blocks of this model cannot be run one by one, or if the pruner refuses one of them;
            later, with earlier blocks already pruned, if activations are not finite.
    """
    _, blocks = decoder_blocks(model)
    watches, looks, form, trials = try_blocks(model, pruner, text)
    batches = [] if text is None else text.batches
    if looks:
        yield from _look_and_decide(model, pruner, batches, form, memory, reach.least, saved)
    else:
        pruner.decide(model, [])
    if pruner.measured(model)[0]:
        assert text is not None
        outputs = Outputs(model, text.held, text.compared, form, pruner.measure, tick)
        yield from _measure_and_settle(model, pruner, outputs, memory, changes)
    streams = _capture_all(model, blocks, batches, form) if watches else []
    last = len(blocks) - 1
    prune = _PrunePass(pruner, streams, trials if watches else None, reach, last)
    yield from _take_blocks(prune, blocks, memory)
    pruner.finish(model)


def try_blocks(
    model: PreTrainedModel, pruner: Pruner, text: RankText | None
) -> tuple[bool, bool, Form, list[Trial]]:
    """Check that a method can prune every block; no weight changes.

    Returns:
        True if the method has probes while it prunes; True if it has some before; the form of the
        output of a block, and the trials of all blocks, see `walk_blocks`.

    Raises:
        InputError: see `prune_blocks`.
    """
    blocks = decoder_blocks(model)[1]
    watches = sum(bool(pruner.watch(block)) for block in blocks) > 0  # all: one may be refused
    looks = any(pruner.look(model))
    if not (watches or looks or pruner.measured(model)[0]):
        return watches, looks, Form(None), []
    if text is None:
        raise _missing_text(pruner)
    return watches, looks, *walk_blocks(model, pruner, text.sample)


def check_text(pruner: Pruner, model: PreTrainedModel) -> None:
    """Refuse a method that needs calibration text, for a run that has none.

    Raises:
        InputError: if the method needs text.
    """
    for step in pruner.steps:
        if reads_text(step, model):
            raise _missing_text(step)


def reads_text(pruner: Pruner, model: PreTrainedModel) -> bool:
    """Return True if a method looks at calibration text."""
    blocks = decoder_blocks(model)[1]
    return any(
        any(step.watch(block) for block in blocks)
        or any(step.look(model))
        or step.measured(model)[0] > 0
        for step in pruner.steps
    )


def _look_and_decide(
    model: PreTrainedModel,
    pruner: Pruner,
    batches: list[Batch],
    form: Form,
    memory: PeakMemory,
    expert_tokens: int,
    saved: SavedLook | None,
) -> Iterator[BlockCost]:
    """Show the method the statistics of the whole model, again as often as it asks for them."""
    _, blocks = decoder_blocks(model)
    again = True
    while again:
        probes = None if saved is None else saved.read()
        if probes is None:
            streams = _capture_all(model, blocks, batches, form)
            look = _LookPass(iter(pruner.look(model)), streams, expert_tokens)
            del streams
            yield from _take_blocks(look, blocks, memory)
            probes = look.probes
            del look  # frees the hidden states before the next ones are captured
            if saved is not None:
                saved.write(probes)
        again = pruner.decide(model, probes)


def _measure_and_settle(
    model: PreTrainedModel,
    pruner: Pruner,
    outputs: Outputs,
    memory: PeakMemory,
    saved: SavedChanges | None,
) -> Iterator[BlockCost]:
    """Show the method the output with its variations, again as often as it asks for it."""
    _, blocks = decoder_blocks(model)
    if pruner.timed:
        seconds = None if saved is None else saved.read_times()
        if seconds is None:
            seconds = pruner.times(model)
            if saved is not None:
                saved.write_times(seconds)
        pruner.seconds = seconds
    again = True
    while again and (variations := pruner.alternatives(model)):
        known = None if saved is None else saved.read()
        if known is None or pruner.measured(model)[0] > 1:  # later ones need the dense output
            for _ in outputs.measure(variations if known is None else ()):
                yield from _take_blocks(outputs, blocks, memory)
        if known is None:
            known = outputs.values
            if saved is not None:
                saved.write(known)
        saved = None  # later variations are those of a model that has changed
        again = pruner.settle(model, known)


class _LookPass:
    """Fill probes in all blocks and change none of them.

    Args:
        wanted: the probes of each block, asked for when the block is reached.
        streams: the batches, at the input of the next block.
        expert_tokens: see `Pruner`.
    """

    edits = False

    def __init__(
        self, wanted: Iterator[dict[str, Probe]], streams: list[Stream], expert_tokens: int
    ) -> None:
        self.probes: list[dict[str, Probe]] = []
        self._wanted = wanted
        self._streams = streams
        self._expert_tokens = expert_tokens

    def work(self, index: int, block: nn.Module) -> None:
        """Observe one block and take the streams through it."""
        probes = next(self._wanted, {})
        feed = Feed(block, index, probes)
        for stream in self._streams:
            output = feed.observe(stream)
            assert output is not None  # without a trial a block runs to its end
            stream.hidden.copy_(output)
        feed.all_reduce_()
        pool_experts(feed.modules, probes, self._expert_tokens)
        self.probes.append(probes)


class _PrunePass:
    """Prune all blocks.

    Args:
        pruner: the method.
        streams: the batches, at the input of the next block.
        trials: of each block; None if the method has no probes.
        reach: counts experts, and those that few tokens reach.
        last: index of the last block, whose output nothing reads.
    """

    edits = True

    def __init__(
        self,
        pruner: Pruner,
        streams: list[Stream],
        trials: list[Trial] | None,
        reach: Reach,
        last: int,
    ) -> None:
        self._pruner = pruner
        self._reach = reach
        self._streams = streams
        self._trials = trials
        self._last = last

    def work(self, index: int, block: nn.Module) -> None:
        """Observe one block, prune it and take the streams through it."""
        probes = self._pruner.watch(block)
        if self._trials is not None:
            feed = Feed(block, index, probes, self._trials[index])
            for stream in self._streams:
                feed.observe(stream)
            feed.all_reduce_()
            self._reach.add_(pool_experts(feed.modules, probes, self._reach.least))
        with torch.autocast(device_of(block).type, enabled=False):
            try:
                self._pruner.prune_streams(block, probes, self._streams, index)
            except InputError as error:
                raise InputError(f"Block {index} cannot be pruned. {error}") from error
        # Autocast of the caller may have cached half-precision copies of the dense weights.
        torch.clear_autocast_cache()
        if index < self._last:
            for stream in self._streams:
                stream.hidden.copy_(stream.run(block, index))


def _take_blocks(
    work: _LookPass | _PrunePass | Outputs, blocks: nn.ModuleList, memory: PeakMemory
) -> Iterator[BlockCost]:
    """Bring each block, work on it and put it away; the next one begins to come meanwhile."""
    following = [store_of(block) for block in blocks][1:]
    for index, block in enumerate(blocks):
        memory.start()
        start = time.perf_counter()
        with whole(block, edited=work.edits):
            if index < len(following) and (store := following[index]) is not None:
                store.prefetch()
            work.work(index, block)
        peak = memory.peak()  # waits for the device, so it belongs to the time
        yield BlockCost(index, time.perf_counter() - start, peak)


def _missing_text(pruner: Pruner) -> InputError:
    return InputError(
        f"Expected calibration text, `data.calibration`: {type(pruner).__name__} needs it."
    )


def _capture_all(
    model: PreTrainedModel,
    blocks: nn.ModuleList,
    batches: list[Batch],
    form: Form,
) -> list[Stream]:
    """Streams of all batches at block 0; one tensor holds all their hidden states."""
    streams: list[Stream] = []
    room: Tensor | None = None
    place = 0
    for batch in batches:
        stream = capture(model, blocks, batch, form)
        if room is None:
            tokens = sum(other["input_ids"].numel() for other in batches)
            width = stream.hidden.numel() // stream.tokens.numel()
            room = stream.hidden.new_empty(tokens * width)
        own = room[place : place + stream.hidden.numel()].view_as(stream.hidden)
        stream.hidden = own.copy_(stream.hidden)
        place += stream.hidden.numel()
        if streams:
            _share_arguments(stream, streams[-1])
        streams.append(stream)
    return streams


def _share_arguments(stream: Stream, earlier: Stream) -> None:
    """Share equal arguments with an earlier batch, such as positions, to hold them once."""
    known: dict[int, Tensor] = {}
    taken: dict[int, Tensor] = {}

    def note(value: Tensor) -> Tensor:
        return known.setdefault(id(value), value)

    def take(value: Tensor) -> Tensor:
        if id(value) not in taken:
            equal = (k for k in known.values() if k.dtype == value.dtype and k.equal(value))
            taken[id(value)] = next(equal, value)
        return taken[id(value)]

    apply_to_collection(earlier.calls, Tensor, note)
    stream.calls = apply_to_collection(stream.calls, Tensor, take)
