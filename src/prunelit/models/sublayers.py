"""What each sublayer of a block makes of a residual stream, in any family."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import Sublayer, decoder_blocks, sublayers
from prunelit.models.replay import Form, Stream, capture, check_replay
from prunelit.models.residual import check_residual, without_sublayers

KINDS = ("attention", "mlp")


@dataclass
class Layout:
    """How the blocks of a model are built, found on its dense form.

    Args:
        form: in which blocks return the hidden state.
        parts: `sublayers` of each block.
        parallel: for each block, whether attention and MLP read the same input.
        width: D, of the residual stream.
    """

    form: Form
    parts: list[dict[str, Sublayer]]
    parallel: list[bool]
    width: int


@torch.no_grad()
def find_layout(model: PreTrainedModel) -> Layout:
    """Find the layout, and refuse a model whose sublayers cannot be run one by one.

    Runs a few tokens through the model, some times over.

    Args:
        model: that lacks no sublayer; in evaluation mode.

    Raises:
        InputError: saying what does not fit.
    """
    ids = torch.arange(16, device=model.device).view(2, 8)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    _, blocks = decoder_blocks(model)
    parts = [sublayers(block) for block in blocks]
    form = check_replay(model, batch)
    stream = capture(model, blocks, batch, form)
    parallel = []
    for index, block in enumerate(blocks):
        before = stream.hidden
        parallel.append(
            check_residual(block, lambda b=block, i=index: stream.run(b, i), before)  # type: ignore[misc]
        )
        stream.hidden = stream.run(block, index)
        if not parallel[-1]:
            after = _alone(stream, block, index, "attention", before, parts[index])
            put_together = _alone(stream, block, index, "mlp", after, parts[index])
            if not torch.allclose(put_together, stream.hidden, rtol=1e-4, atol=1e-4):
                raise InputError(
                    f"The attention and MLP of a {type(block).__name__}, one after the other, are "
                    "not what the block computes, so they cannot be looked at one by one."
                )
    return Layout(form, parts, parallel, stream.hidden.shape[-1])


@dataclass
class Steps:
    """A residual stream around the two sublayers of one block, each (B, T, D).

    Args:
        attention: the input of attention and what it made of it, residual included.
        mlp: likewise.
        output: of the block.
    """

    attention: tuple[Tensor, Tensor]
    mlp: tuple[Tensor, Tensor]
    output: Tensor

    def get(self, kind: str) -> tuple[Tensor, Tensor]:
        """Input and output of a sublayer."""
        return self.attention if kind == "attention" else self.mlp


def block_steps(
    stream: Stream,
    block: nn.Module,
    index: int,
    hidden: Tensor,
    parts: Mapping[str, Sublayer],
    *,
    parallel: bool,
) -> Steps:
    """Run a block in pieces, at the cost of one block, or of two where it is parallel.

    Args:
        stream: of the block's model, for the arguments beside the hidden state.
        block: this block; it may lack sublayers.
        index: its place in its model.
        hidden: (B, T, D), its input.
        parts: see `Layout`.
        parallel: see `Layout`; both sublayers then read `hidden`.
    """
    attended = _alone(stream, block, index, "attention", hidden, parts)
    if not parallel:
        output = _alone(stream, block, index, "mlp", attended, parts)
        return Steps((hidden, attended), (attended, output), output)
    alone = _alone(stream, block, index, "mlp", hidden, parts)
    return Steps((hidden, attended), (hidden, alone), stream.run(block, index, hidden))


def counterfactual(
    stream: Stream, block: nn.Module, index: int, steps: Steps, parts: Mapping[str, Sublayer]
) -> dict[str, Tensor]:
    """What the sublayers of `block` make of the inputs that those of another model read.

    Attention reads keys and values that it makes itself of the other model's whole stream.

    Args:
        stream: of the block's own model.
        block: this block.
        index: its place in its own model.
        steps: of the other model.
        parts: see `Layout`.

    Returns:
        For each sublayer (B, T, D), residual included.
    """
    return {kind: _alone(stream, block, index, kind, steps.get(kind)[0], parts) for kind in KINDS}


def _alone(
    stream: Stream,
    block: nn.Module,
    index: int,
    kind: str,
    hidden: Tensor,
    parts: Mapping[str, Sublayer],
) -> Tensor:
    """The block with only one of its sublayers."""
    other = "mlp" if kind == "attention" else "attention"
    with without_sublayers(block, other, parts=dict(parts)):
        return stream.run(block, index, hidden)
