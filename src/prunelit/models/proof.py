"""Prove that a folder holds the model that is in memory, before anything believes it."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import InputError, first_line
from prunelit.models.architecture import decoder_blocks, probe_ids
from prunelit.models.loading import load_written
from prunelit.models.rebuilding import find_attribute
from prunelit.models.stores import store_of
from prunelit.models.streaming import place_model, stream


@torch.no_grad()
def answer(model: PreTrainedModel) -> Tensor:
    """Return the logits of a few tokens, (1, 8, V), float32; all ranks that share a model ask it.

    Args:
        model: any; it is asked in evaluation mode.
    """
    training = model.training
    model.eval()
    ids = probe_ids(model, 1, 8)
    with torch.autocast(model.device.type, enabled=False):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    model.train(training)
    return logits.float()


def prove_written(folder: Path, model: PreTrainedModel, expected: Tensor) -> None:
    """Load a folder and compare what it answers with the model in memory.

    Args:
        folder: as it was written.
        model: in memory; weights of the folder come to its device one block at a time.
        expected: `answer` of the model.

    Raises:
        InputError: if the folder cannot be loaded, or gives other logits; it names the cause.
    """
    family = type(model).__name__
    try:
        loaded = load_written(folder)
        if model.device.type != "cpu" or any(map(store_of, decoder_blocks(model)[1])):
            _bring_by_block(loaded, model.device)
        found = answer(loaded)
    except Exception as error:
        raise InputError(
            f"The folder of this {family} could not be loaded, so it was not kept: "
            f"{first_line(error).rstrip('.')}. Prune with a method that leaves all shapes as they "
            "are, or load the dense model by another class."
        ) from error
    tolerance = 1e-4 if model.dtype.itemsize >= 4 else 3e-2
    worst = (found - expected).abs().max().item()
    if not worst <= tolerance * max(1.0, expected.abs().max().item()):
        raise InputError(
            f"The folder of this {family} would be another model, so it was not kept: its logits "
            f"differ by {worst:.3g} from those in memory{_cause(model, loaded)}. Save a model that "
            "its class and its configuration describe."
        )


def _bring_by_block(model: PreTrainedModel, device: torch.device) -> None:
    """Let the blocks of a model come to a device one at a time, if they share no weights."""
    _, blocks = decoder_blocks(model)
    if sum(len(list(block.parameters())) for block in blocks) == len(list(blocks.parameters())):
        stream(model)
    place_model(model, device)


def _cause(model: PreTrainedModel, loaded: PreTrainedModel) -> str:
    """Name fields of the configuration, or else an attribute of a block, that differ."""
    own, other = model.config.to_dict(), loaded.config.to_dict()
    fields = [
        name
        for name in sorted(own.keys() | other.keys())
        if name not in _IRRELEVANT and own.get(name) != other.get(name)
    ]
    if fields:
        return f"; `{fields[0]}` of its config.json is {other.get(fields[0])!r}"
    return find_attribute(model, loaded)


_IRRELEVANT = ("_name_or_path", "architectures", "dtype", "transformers_version")
