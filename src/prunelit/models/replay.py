"""Run the blocks of a model one by one, with the arguments of the model's own forward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.data.batches import Batch
from prunelit.errors import InputError
from prunelit.models.architecture import block_output, decoder_blocks, final_hidden
from prunelit.models.stores import whole

Form = type[Tensor] | type[tuple]


@dataclass
class Stream:
    """One batch between two blocks.

    Args:
        hidden: (B, T, D), the input of the next block.
        calls: positional and keyword arguments of each block, without the hidden state.
        tokens: (B, T) bool, False at padding.
    """

    hidden: Tensor
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    tokens: Tensor

    def run(self, block: nn.Module, index: int, hidden: Tensor | None = None) -> Tensor:
        """Run a block on its device and return its output, (B, T, D). The stream does not change.

        Args:
            block: the block.
            index: index of the block, which selects the other arguments.
            hidden: (B, T, D), input of the block; None takes `self.hidden`.
        """
        args, kwargs = self.calls[index]
        own = self.hidden if hidden is None else hidden
        with whole(block):
            device = next(block.parameters()).device
            inputs = move_data_to_device((own, args, kwargs), device)
            return block_output(block(inputs[0], *inputs[1], **inputs[2]))


def capture(model: PreTrainedModel, blocks: nn.ModuleList, batch: Batch, form: Form) -> Stream:
    """Record the input of block 0 and the other arguments of every block; no block is run.

    Args:
        model: in evaluation mode.
        blocks: blocks of the model.
        batch: `input_ids` and `attention_mask`.
        form: `Tensor` if blocks return the hidden state, `tuple` if they return it as the first
            entry of a tuple, as in older families.

    Raises:
        InputError: if the model does not call each block once.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    first: list[Tensor] = []

    def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor]:
        if not first:
            first.append(hidden)
        # Each replay would append to a cache.
        calls.append((args, {key: value for key, value in kwargs.items() if "past" not in key}))
        return (hidden,) if form is tuple else hidden

    with replace_forward(blocks, record):
        final_hidden(model, **move_data_to_device(batch, model.device))
    if len(calls) != len(blocks):
        raise InputError(
            f"Expected one call of each block but {type(model).__name__} called {len(calls)} of "
            f"its {len(blocks)} blocks: they cannot be run one by one."
        )
    return Stream(first[0], calls, batch["attention_mask"].bool().to(first[0].device))


@contextmanager
def replace_forward(blocks: nn.ModuleList, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward method of every block, within the context."""
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


def check_replay(model: PreTrainedModel, batch: Batch) -> Form:
    """Run the blocks one by one and compare the result with the model's own run.

    Each block runs twice: in the model's own run, then on its own.

    Args:
        model: in evaluation mode, gradients off.
        batch: a small one.

    Returns:
        The form in which blocks return the hidden state.

    Raises:
        InputError: if the blocks cannot be run one by one, or if the results differ.
    """
    _, blocks = decoder_blocks(model)
    last: list[Tensor] = []
    forms: list[Form] = []

    def keep_last(_module: nn.Module, _args: Any, output: Any) -> None:
        forms.append(Tensor if isinstance(output, Tensor) else tuple)
        last.append(block_output(output))

    handle = blocks[-1].register_forward_hook(keep_last)
    try:
        final_hidden(model, **move_data_to_device(batch, model.device))
    finally:
        handle.remove()
    with _refusing(model):
        stream = capture(model, blocks, batch, forms[0])
    for index, block in enumerate(blocks):
        # A block that does not come, since a rank is gone, is another error.
        with whole(block), _refusing(model):
            stream.hidden = stream.run(block, index)
    mine, own = stream.hidden[stream.tokens].float(), last[0][stream.tokens].float()
    # Equal to the last bit on a CPU. Some GPU kernels add in another order in each call.
    tolerance = 1e-5 if stream.hidden.dtype.itemsize >= 4 else 2e-2
    worst = (mine - own).abs().max().item()
    if not worst <= tolerance * own.abs().max().item():
        raise InputError(
            f"Running the blocks of {type(model).__name__} one by one differs by {worst:.3g} from "
            "running the model: methods that need the inputs of blocks cannot be used."
        )
    return forms[0]


@contextmanager
def _refusing(model: PreTrainedModel) -> Iterator[None]:
    try:
        yield
    except (TypeError, AttributeError, IndexError, RuntimeError) as error:
        raise InputError(
            f"The blocks of {type(model).__name__} cannot be run one by one: {error}."
        ) from error


def apply_final_norm(model: PreTrainedModel, hidden: Tensor, form: Form) -> Tensor:
    """Apply the final norm, and a projection if the family has one, to a residual stream.

    The model's own forward pass does this, with blocks that return `hidden`. So the names of the
    modules of a family are not needed.

    Args:
        model: in evaluation mode.
        hidden: (N, D), residual stream after any block or sublayer.
        form: type in which blocks return the hidden state.

    Returns:
        (N, D'), the input of the unembedding.
    """
    rows = hidden[:, None]

    def return_hidden(*_args: Any, **_kwargs: Any) -> Tensor | tuple[Tensor]:
        return (rows,) if form is tuple else rows

    ids = torch.zeros(len(hidden), 1, dtype=torch.int64, device=hidden.device)
    with replace_forward(decoder_blocks(model)[1], return_hidden):
        return final_hidden(model, ids, torch.ones_like(ids))[:, 0]
