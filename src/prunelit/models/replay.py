"""Run the blocks of a model one by one, with the arguments of the model's own forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.data.batches import Batch
from prunelit.errors import InputError, first_line
from prunelit.models.architecture import (
    bidirectional,
    block_output,
    decoder_blocks,
    embedded_tokens,
    final_hidden,
    trunk,
)
from prunelit.models.forwards import replaced_forwards
from prunelit.models.stores import whole


@dataclass(frozen=True)
class Form:
    """Form in which the blocks of a model return the hidden state.

    Args:
        length: of the tuple whose first value it is, as in older families; None is a tensor.
    """

    length: int | None

    @classmethod
    def of(cls, output: Any) -> "Form":
        """Return the form of the output of a block."""
        return cls(None if isinstance(output, Tensor) else len(output))

    def wrap(self, hidden: Tensor) -> Tensor | tuple[Tensor | None, ...]:
        """Return a hidden state as a block would."""
        return hidden if self.length is None else (hidden, *[None] * (self.length - 1))


@dataclass
class Stream:
    """One batch between two blocks.

    Args:
        hidden: (B, T, D), the input of the next block. In a few families each token has several
            rows, (A, B, T, D) or (B, T, A, D).
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
            device = next((weight.device for weight in block.parameters()), own.device)
            inputs = move_data_to_device((own, args, kwargs), device)
            return block_output(block(inputs[0], *inputs[1], **inputs[2]))

    def run_in_float32(self, block: nn.Module, index: int) -> Tensor:
        """Run a block whose weights are float32; gradients may flow to them.

        Args:
            block: the block.
            index: index of the block.

        Returns:
            (N, D), its output at each real token, float32.
        """

        def widen(value: Tensor) -> Tensor:
            # Copies, since a block may edit what it gets, and autograd takes no inference tensors.
            return value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)

        wide = Stream(
            *apply_to_collection((self.hidden, [self.calls[index]], self.tokens), Tensor, widen)
        )
        output = wide.by_token(wide.run(block, 0))
        return output[wide.tokens.to(output.device)]

    def by_token(self, hidden: Tensor) -> Tensor:
        """View a hidden state of this batch as (B, T, D), with all rows of a token in one."""
        if hidden.ndim > 3 and hidden.shape[-3:-1] == self.tokens.shape:
            hidden = hidden.movedim((-3, -2), (0, 1))
        return hidden.flatten(2)


def capture(model: PreTrainedModel, blocks: nn.ModuleList, batch: Batch, form: Form) -> Stream:
    """Record the input of block 0 and the other arguments of every block; no block is run.

    Args:
        model: in evaluation mode.
        blocks: blocks of the model.
        batch: `input_ids` and `attention_mask`.
        form: of the output of its blocks.

    Raises:
        InputError: if the model does not call each block once.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    first: list[Tensor] = []

    def record(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not first:
            first.append(hidden)
        # Each replay would append to a cache.
        calls.append((args, {key: value for key, value in kwargs.items() if "past" not in key}))
        return form.wrap(hidden)

    with replaced_forwards(dict.fromkeys(blocks, record)):
        final_hidden(model, **move_data_to_device(batch, model.device))
    if len(calls) != len(blocks):
        raise InputError(
            f"Expected one call of each block but {type(model).__name__} called {len(calls)} of "
            f"its {len(blocks)} blocks: they cannot be run one by one."
        )
    return Stream(first[0], calls, batch["attention_mask"].bool().to(first[0].device))


def check_replay(model: PreTrainedModel, batch: Batch) -> Form:
    """Run the blocks one by one and compare the result with the model's own run.

    Each block runs twice: in the model's own run, then on its own. A second sequence, whose last
    token is another one, shows if tokens change what comes before them.

    Args:
        model: in evaluation mode, gradients off.
        batch: one sequence, or a few.

    Returns:
        The form in which blocks return the hidden state.

    Raises:
        InputError: if the blocks cannot be run one by one, if the results differ, or if the model
            is bidirectional.
    """
    _, blocks = decoder_blocks(model)
    batch = _with_other_end(batch, embedded_tokens(model))
    last: list[Any] = []
    handle = blocks[-1].register_forward_hook(lambda _module, _args, output: last.append(output))
    try:
        final_hidden(model, **move_data_to_device(batch, model.device))
    finally:
        handle.remove()
    if not last:
        raise InputError(
            f"{type(model).__name__} does not call its last block: its blocks cannot be run one by "
            "one."
        )
    form = Form.of(last[0])
    with _refusing(model):
        stream = capture(model, blocks, batch, form)
    for index, block in enumerate(blocks):
        # A block that does not come, since a rank is gone, is another error.
        with whole(block), _refusing(model):
            stream.hidden = _run_again(stream, block, index)
    own = stream.by_token(block_output(last[0]))
    mine = stream.by_token(stream.hidden)
    # Equal to the last bit on a CPU. Some GPU kernels add in another order in each call.
    tolerance = 1e-5 if stream.hidden.dtype.itemsize >= 4 else 2e-2
    real = stream.tokens
    tolerance *= own[real].float().abs().max().item()
    worst = (mine[real].float() - own[real].float()).abs().max().item()
    if not worst <= tolerance:
        raise InputError(
            f"Running the blocks of {type(model).__name__} one by one differs by {worst:.3g} from "
            "running the model: methods that need the inputs of blocks cannot be used; `Magnitude` "
            "and `Random` can."
        )
    count = len(own) // 2
    ends = (batch["input_ids"][:count] != batch["input_ids"][count:]).to(real.device)
    earlier = real[:count] & (ends.long().cumsum(1) == 0)
    changes = (own[:count] - own[count:])[earlier].float().abs()
    if changes.numel() and changes.max().item() > 10 * tolerance:
        raise bidirectional(model)
    return form


def _with_other_end(batch: Batch, tokens: int) -> Batch:
    """Add the same sequences once more, with another last token."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    places = torch.arange(ids.shape[1], device=ids.device)
    last = (mask * places).argmax(1, keepdim=True)
    other = ids.scatter(1, last, (ids.gather(1, last) + tokens // 2) % tokens)
    return {"input_ids": torch.cat([ids, other]), "attention_mask": torch.cat([mask, mask])}


@contextmanager
def _refusing(model: PreTrainedModel) -> Iterator[None]:
    try:
        yield
    except (TypeError, AttributeError, LookupError, RuntimeError) as error:
        raise InputError(
            f"The blocks of {type(model).__name__} cannot be run one by one: "
            f"{first_line(error).rstrip('.')}. Methods that need the inputs of blocks cannot be "
            "used; `Magnitude` and `Random` can."
        ) from error


def _run_again(stream: Stream, block: nn.Module, index: int) -> Tensor:
    """Run a block; one that misses what the model hands on refuses its input twice."""
    try:
        return stream.run(block, index)
    except InputError:
        raise
    except ValueError as error:
        try:
            stream.run(block, index)
        except ValueError as same:
            raise RuntimeError(str(same)) from error
        raise  # a fault that does not come back


@dataclass(frozen=True)
class End:
    """The part of a model behind its blocks, without the unembedding.

    Args:
        trunk: see `prunelit.models.architecture.trunk`.
        blocks: of the model.
        form: type in which blocks return the hidden state.
    """

    trunk: PreTrainedModel
    blocks: nn.ModuleList
    form: Form

    @classmethod
    def of(cls, model: PreTrainedModel, form: Form) -> "End":
        """Find the parts of a model in evaluation mode."""
        return cls(trunk(model), decoder_blocks(model)[1], form)


def apply_final_norm(end: End, hidden: Tensor) -> Tensor:
    """Apply the final norm, and a projection if the family has one, to a residual stream.

    The model's own forward pass does this, with blocks that return `hidden`. So the names of the
    modules of a family are not needed.

    Args:
        end: of the model.
        hidden: (N, D), residual stream after any block or sublayer.

    Returns:
        (N, D'), the input of the unembedding.
    """
    rows = hidden[:, None]

    def return_hidden(*_args: Any, **_kwargs: Any) -> Any:
        return end.form.wrap(rows)

    ids = torch.zeros(len(hidden), 1, dtype=torch.int64, device=hidden.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    with replaced_forwards(dict.fromkeys(end.blocks, return_hidden)):
        return end.trunk(**inputs).last_hidden_state[:, 0]
