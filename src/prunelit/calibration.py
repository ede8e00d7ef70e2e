"""The block-by-block driver: observe, reduce over ranks, prune, run again, propagate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.batches import Batch
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, final_hidden
from prunelit.probing import Feed, Inputs, noting_inputs
from prunelit.pruners.base import Probe, Pruner


@dataclass
class _Stream:
    """One calibration batch on its way through the blocks."""

    hidden: Tensor  # (B, T, D), the input of the next block
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]  # other arguments, block by block
    tokens: Tensor  # (B, T) bool, False at padding


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
    form: type[Tensor] | type[tuple] | None = None
    known: list[Inputs] = []

    def check() -> type[Tensor] | type[tuple]:
        nonlocal form, known
        if check_batch is None:
            raise InputError(
                f"Expected calibration text, `data.calibration`: {type(pruner).__name__} needs it."
            )
        if form is None:
            form, known = _check_replay(model, blocks, pruner, check_batch)
        return form

    def streams() -> list[_Stream]:
        found = check()
        return _capture_all(model, blocks, batches or [], found)

    def observe(watch: Callable[[nn.Module], dict[str, Probe]]) -> list[dict[str, Probe]]:
        passing, filled = streams(), []
        for index, block in enumerate(blocks):
            with around_block(index):
                probes = watch(block)
                feed = Feed(block, probes)
                for stream in passing:
                    run = partial(_run, block, stream, index)
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
                    feed.read(partial(_run, block, stream, index), stream.hidden, stream.tokens)
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
                    stream.hidden.copy_(_run(block, stream, index))
    pruner.finish(model)


def _run(block: nn.Module, stream: _Stream, index: int) -> Tensor:
    device = next(block.parameters()).device
    args, kwargs = stream.calls[index]
    inputs = move_data_to_device((stream.hidden, args, kwargs), device)
    output = block(inputs[0], *inputs[1], **inputs[2])
    return output if isinstance(output, Tensor) else output[0]


def _capture_all(
    model: PreTrainedModel,
    blocks: nn.ModuleList,
    batches: list[Batch],
    form: type[Tensor] | type[tuple],
) -> list[_Stream]:
    """Every batch at block 0. Memory holds one copy of the hidden states, in one tensor."""
    streams: list[_Stream] = []
    room: Tensor | None = None
    place = 0
    for batch in batches:
        stream = _capture(model, blocks, batch, form)
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


def _share_arguments(stream: _Stream, earlier: _Stream) -> None:
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


def _capture(
    model: PreTrainedModel, blocks: nn.ModuleList, batch: Batch, form: type[Tensor] | type[tuple]
) -> _Stream:
    """The input of block 0 and every block's other arguments, without running a block.

    Blocks return the hidden state bare or, in older families, first in a tuple: `form`.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    first: list[Tensor] = []

    def passing(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        if not first:
            first.append(hidden)
        # A cache would be appended to by each replay.
        calls.append((args, {key: value for key, value in kwargs.items() if "past" not in key}))
        return (hidden,) if form is tuple else hidden

    with _replaced_forward(blocks, passing):
        final_hidden(model, **move_data_to_device(batch, model.device))
    if len(calls) != len(blocks):
        raise InputError(
            f"{type(model).__name__} called {len(calls)} of its {len(blocks)} blocks, so they "
            "cannot be calibrated one by one."
        )
    return _Stream(first[0], calls, batch["attention_mask"].bool().to(first[0].device))


@contextmanager
def _replaced_forward(blocks: nn.ModuleList, forward: Callable[..., Any]) -> Iterator[None]:
    own = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = forward
    try:
        yield
    finally:
        for block, function in zip(blocks, own, strict=True):
            if function is None:
                del block.forward
            else:
                block.forward = function


def _check_replay(
    model: PreTrainedModel, blocks: nn.ModuleList, pruner: Pruner, batch: Batch
) -> tuple[type[Tensor] | type[tuple], list[Inputs]]:
    """Compare a replay with the model's own run, and note which probes read the same tensor.

    Returns:
        The form in which blocks return the hidden state, and the inputs of each block's probes.
    """
    last: list[Tensor] = []
    forms: list[type[Tensor] | type[tuple]] = []

    def keep_last(_module: nn.Module, _args: Any, output: Any) -> None:
        forms.append(Tensor if isinstance(output, Tensor) else tuple)
        last.append(output if isinstance(output, Tensor) else output[0])

    handle = blocks[-1].register_forward_hook(keep_last)
    try:
        final_hidden(model, **move_data_to_device(batch, model.device))
    finally:
        handle.remove()
    try:
        stream = _capture(model, blocks, batch, forms[0])
        known = []
        for index, block in enumerate(blocks):
            with noting_inputs(block, pruner.watch(block)) as inputs:
                stream.hidden = _run(block, stream, index)
            known.append(inputs)
    except (TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(
            f"The blocks of {type(model).__name__} cannot be run one by one: {error}."
        ) from error
    mine, own = stream.hidden[stream.tokens].float(), last[0][stream.tokens].float()
    # Bit-equal on a CPU; some GPU kernels add in another order from call to call.
    tolerance = 1e-5 if stream.hidden.dtype.itemsize >= 4 else 2e-2
    worst = (mine - own).abs().max().item()
    if not worst <= tolerance * own.abs().max().item():
        raise InputError(
            f"Running the blocks of {type(model).__name__} one by one differs by {worst:.3g} from "
            "running the model, so calibration would see wrong inputs."
        )
    return forms[0], known
