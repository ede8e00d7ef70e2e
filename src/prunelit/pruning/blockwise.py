"""The block-by-block driver: observe, reduce over ranks, prune, run again, propagate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.data.batches import Batch
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.replay import Form, Stream, capture, checked_form
from prunelit.pruners.base import Probe, Pruner
from prunelit.pruning.hooks import Feed, Inputs, noting_inputs


def calibrate(
    model: PreTrainedModel,
    pruner: Pruner,
    batches: list[Batch] | None,
    check_batch: Batch | None,
    around_block: Callable[[int], Any],
) -> None:
    """Prune every block in place, each reading what the pruned blocks before it put out.

    Two passes over the calibration tokens a block: one to observe, one to propagate. A method that
    watches nothing costs none.

    Args:
        model: in evaluation mode, gradients off.
        pruner: the method.
        batches: this rank's share, possibly empty; None where there is no text.
        check_batch: a small batch, the same on every rank, for the replay check.
        around_block: gives a context manager that is open while block i is worked on.

    Raises:
        InputError: before any weight changes, if the method needs text and there is none, the
            blocks of this model cannot be replayed one by one, or the pruner refuses one of them;
            later, with earlier blocks already pruned, if activations are not finite.
    """
    _, blocks = decoder_blocks(model)
    reads = sum(bool(pruner.watch(block)) for block in blocks)  # all: one may be refused
    form: Form | None = None
    known: list[Inputs] = []

    @contextmanager
    def noting(index: int) -> Iterator[None]:
        with noting_inputs(blocks[index], pruner.watch(blocks[index])) as inputs:
            yield
        known.append(inputs)

    def check() -> Form:
        nonlocal form
        if check_batch is None:
            raise _lacks_text(pruner)
        if form is None:
            form = checked_form(model, check_batch, noting)
        return form

    def streams() -> list[Stream]:
        found = check()
        return _capture_all(model, blocks, batches or [], found)

    def observe(watch: Callable[[nn.Module], dict[str, Probe]]) -> list[dict[str, Probe]]:
        passing, filled = streams(), []
        for index, block in enumerate(blocks):
            with around_block(index):
                probes = watch(block)
                feed = Feed(block, probes)
                for stream in passing:
                    run = partial(stream.run, block, index)
                    output = feed.read(run, stream.hidden, stream.tokens)
                    assert output is not None  # without a trial run it reads to the end
                    stream.hidden.copy_(output)
                feed.all_reduce_()
                filled.append(probes)
        return filled

    if reads:  # what cannot be calibrated is refused before `start` may edit anything
        check()
    pruner.start(model, observe)
    passing = streams() if reads else []
    for index, block in enumerate(blocks):
        with around_block(index):
            probes = pruner.watch(block)
            if reads:
                feed = Feed(block, probes, known[index])
                for stream in passing:
                    feed.read(partial(stream.run, block, index), stream.hidden, stream.tokens)
                feed.all_reduce_()
            with torch.autocast(next(block.parameters()).device.type, enabled=False):
                try:
                    pruner.prune_block(block, probes)
                except InputError as error:
                    raise InputError(f"Block {index} cannot be pruned. {error}") from error
            # A caller's autocast may have kept half-precision copies of the dense weights.
            torch.clear_autocast_cache()
            if index + 1 < len(blocks):
                for stream in passing:
                    stream.hidden.copy_(stream.run(block, index))
    pruner.finish(model)


def check_text(pruner: Pruner, model: PreTrainedModel) -> None:
    """Refuse a method that reads calibration text where there is none.

    Raises:
        InputError: if it does.
    """
    if pruner.looks_first or any(pruner.watch(block) for block in decoder_blocks(model)[1]):
        raise _lacks_text(pruner)


def _lacks_text(pruner: Pruner) -> InputError:
    return InputError(
        f"Expected calibration text, `data.calibration`: {type(pruner).__name__} needs it."
    )


def _capture_all(
    model: PreTrainedModel,
    blocks: nn.ModuleList,
    batches: list[Batch],
    form: Form,
) -> list[Stream]:
    """Every batch at block 0. Memory holds one copy of the hidden states, in one tensor."""
    streams: list[Stream] = []
    room: Tensor | None = None
    place = 0
    for batch in batches:
        stream = capture(model, blocks, batch, form)
        if room is None:
            tokens = sum(other["input_ids"].numel() for other in batches)
            room = stream.hidden.new_empty(tokens, stream.hidden.shape[-1])
        own = room[place : place + stream.tokens.numel()].view_as(stream.hidden)
        stream.hidden = own.copy_(stream.hidden)
        place += stream.tokens.numel()
        if streams:
            _share_arguments(stream, streams[-1])
        streams.append(stream)
    return streams


def _share_arguments(stream: Stream, earlier: Stream) -> None:
    """Take over from an earlier batch what is equal, positions above all: it is held once."""
    known: dict[int, Tensor] = {}
    taken: dict[int, Tensor] = {}

    def note(value: Tensor) -> Tensor:
        return known.setdefault(id(value), value)

    def take(value: Tensor) -> Tensor:
        if id(value) not in taken:
            alike = (k for k in known.values() if k.dtype == value.dtype and k.equal(value))
            taken[id(value)] = next(alike, value)
        return taken[id(value)]

    apply_to_collection(earlier.calls, Tensor, note)
    stream.calls = apply_to_collection(stream.calls, Tensor, take)
