"""Walk over all blocks before any weight changes, to see that their probes can be filled."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from prunelit.data.batches import Batch
from prunelit.errors import InputError
from prunelit.models.absent import filled
from prunelit.models.architecture import decoder_blocks, repeated_weights
from prunelit.models.experts import find_experts
from prunelit.models.replay import Form, Stream, capture, check_replay
from prunelit.pruners.base import Pruner
from prunelit.pruning.hooks import Trial, check_rows

_SAMPLE = 64  # tokens; blocks that do as the model does with these do so with more


def walk_blocks(model: PreTrainedModel, pruner: Pruner, sample: Batch) -> tuple[Form, list[Trial]]:
    """Check that blocks can be run one by one, and that their probes see what they need.

    Args:
        model: in evaluation mode.
        pruner: gives the probes.
        sample: one sequence. Its last 64 tokens are run, all of it in a mixture, of whose experts
            these may reach too few.

    Returns:
        The form of the output of a block; and of each block, which of its probes read the same
        tensor.

    Raises:
        InputError: if the blocks cannot be run one by one, or if a probe would see nothing, or not
            a row for each token.
    """
    _, blocks = decoder_blocks(model)
    if not any(map(find_experts, blocks)):
        sample = _shorten(sample)
    trials = [Trial(block, pruner.watch(block)) for block in blocks]
    try:
        form = check_replay(model, sample)
    finally:
        for trial in trials:
            trial.remove()
    unread = [trial.find_unread() for trial in trials]
    tokens = torch.Size((2 * len(sample["input_ids"]), sample["input_ids"].shape[1]))
    for index, trial in enumerate(trials):
        for name, (shape, rows) in trial.inputs.items():
            try:
                check_rows(name, shape, rows, tokens)
            except InputError as error:
                raise InputError(f"Block {index} cannot be pruned. {error}") from error
    if any(unread):
        _check_shared(model, unread)
        _check_used(blocks, unread, capture(model, blocks, sample, form))
    return form, trials


def _shorten(sample: Batch) -> Batch:
    """Return the last tokens of a sequence, without padding after them."""
    end = int(sample["attention_mask"][0].nonzero()[-1]) + 1
    return {key: value[:, max(0, end - _SAMPLE) : end] for key, value in sample.items()}


def _check_shared(model: PreTrainedModel, unread: Sequence[Sequence[str]]) -> None:
    """Refuse weights that a block has and another one uses."""
    _, blocks = decoder_blocks(model)
    shared = {
        id(block.get_parameter(name))
        for block, names in zip(blocks, repeated_weights(model), strict=True)
        for name in names
    }
    for index, (block, names) in enumerate(zip(blocks, unread, strict=True)):
        for name in names:
            weights = block.get_submodule(_owner(block, name)).parameters()
            if any(id(weight) in shared for weight in weights):
                raise InputError(
                    f"Block {index} cannot be pruned. It does not use {name!r}, which another "
                    "block has too and uses, so it would be pruned without its inputs: exclude it, "
                    f"as with `exclude: [{name!r}]`."
                )


def _check_used(blocks: nn.ModuleList, unread: Sequence[Sequence[str]], stream: Stream) -> None:
    """Refuse weights that a block uses without a call of their module.

    Another module that was not called is an expert that this sample does not reach.
    """
    for index, block in enumerate(blocks):
        for name in unread[index]:
            with filled(block, (_owner(block, name),), torch.nan):
                output = stream.run(block, index)
            if not output.isfinite().all():
                raise InputError(
                    f"Block {index} cannot be pruned. It uses the weight of {name!r} without a "
                    "call of that module, so the inputs of the weight cannot be observed: exclude "
                    f"it, as with `exclude: ['*{name.rpartition('.')[2]}']`."
                )
        stream.hidden = stream.run(block, index)


def _owner(block: nn.Module, name: str) -> str:
    """Name of the module that holds the weight of a linear map; experts hold those of many."""
    experts = (owner for owner in find_experts(block) if name.startswith(f"{owner}."))
    return next(experts, name)
