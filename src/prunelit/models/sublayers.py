"""Run the sublayers of a block one by one on a residual stream, in any family."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import KINDS, Sublayer, decoder_blocks, sublayers
from prunelit.models.replay import Form, Stream, capture, check_replay
from prunelit.models.residual import check_residual, without_sublayers


@dataclass
class Layout:
    """Structure of the blocks of a model, found with the dense model.

    Args:
        form: type in which blocks return the hidden state.
        parts: `sublayers` of each block.
        parallel: for each block, True if attention and MLP read the same input.
        width: D, width of the residual stream.
    """

    form: Form
    parts: list[dict[str, Sublayer]]
    parallel: list[bool]
    width: int


@torch.no_grad()
def find_layout(model: PreTrainedModel) -> Layout:
    """Find the layout, and refuse a model whose sublayers cannot be run one by one.

    It runs a few tokens through the model several times.

    Args:
        model: with all its sublayers, in evaluation mode.

    Raises:
        InputError: if a block cannot be run alone or is not the sum of its sublayers.
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
            after = _run_sublayer(stream, block, index, "attention", before, parts[index])
            in_sequence = _run_sublayer(stream, block, index, "mlp", after, parts[index])
            if not torch.allclose(in_sequence, stream.hidden, rtol=1e-4, atol=1e-4):
                raise InputError(
                    f"Expected the attention and MLP of {type(block).__name__}, run one after the "
                    "other, to give the output of the block but they differ: the sublayers of this "
                    "family cannot be measured one by one."
                )
    return Layout(form, parts, parallel, stream.hidden.shape[-1])


@dataclass
class Steps:
    """Residual stream before and after the two sublayers of one block, each (B, T, D).

    Args:
        attention: input and output of attention, including the residual.
        mlp: input and output of the MLP, likewise.
        output: output of the block.
    """

    attention: tuple[Tensor, Tensor]
    mlp: tuple[Tensor, Tensor]
    output: Tensor

    def get(self, kind: str) -> tuple[Tensor, Tensor]:
        """Return input and output of a sublayer, `attention` or `mlp`."""
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
    """Run the sublayers of a block, at the cost of one block, or of two if it is parallel.

    Args:
        stream: stream of the block's model; it holds the other arguments of the block.
        block: the block; it may lack sublayers.
        index: index of the block in its model.
        hidden: (B, T, D), its input.
        parts: see `Layout`.
        parallel: see `Layout`; if True, both sublayers read `hidden`.
    """
    attended = _run_sublayer(stream, block, index, "attention", hidden, parts)
    if not parallel:
        output = _run_sublayer(stream, block, index, "mlp", attended, parts)
        return Steps((hidden, attended), (attended, output), output)
    alone = _run_sublayer(stream, block, index, "mlp", hidden, parts)
    return Steps((hidden, attended), (hidden, alone), stream.run(block, index, hidden))


def counterfactual(
    stream: Stream, block: nn.Module, index: int, steps: Steps, parts: Mapping[str, Sublayer]
) -> dict[str, Tensor]:
    """Run the sublayers of `block` on the inputs of the same sublayers of another model.

    Attention computes its keys and values from the whole stream of the other model.

    Args:
        stream: stream of the block's own model.
        block: the block.
        index: index of the block in its own model.
        steps: steps of the other model.
        parts: see `Layout`.

    Returns:
        Output of each sublayer, (B, T, D), including the residual.
    """
    return {
        kind: _run_sublayer(stream, block, index, kind, steps.get(kind)[0], parts) for kind in KINDS
    }


def _run_sublayer(
    stream: Stream,
    block: nn.Module,
    index: int,
    kind: str,
    hidden: Tensor,
    parts: Mapping[str, Sublayer],
) -> Tensor:
    """Run the block with only one of its sublayers."""
    other = "mlp" if kind == "attention" else "attention"
    with without_sublayers(block, other, parts=dict(parts)):
        return stream.run(block, index, hidden)
