"""Run the sublayers of a block one by one on a residual stream, in any family."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks, probe_ids
from prunelit.models.parts import KINDS
from prunelit.models.replay import Form, Stream, capture, check_replay
from prunelit.models.residual import Structure, find_structure, without_sublayers

Step = tuple[Tensor, Tensor]


@dataclass
class Layout:
    """Structure of the blocks of a model, found with the dense model.

    Args:
        form: form in which blocks return the hidden state.
        blocks: structure of each block.
        width: D, width of the residual stream.
    """

    form: Form
    blocks: list[Structure]
    width: int

    @property
    def names(self) -> dict[str, str]:
        """Names of the kinds of sublayers that occur; a mixer is `attention` if each one is."""
        found = [structure.sublayers for structure in self.blocks]
        mixers = [own["mixer"] for own in found if "mixer" in own]
        attends = all(mixer.name == "attention" for mixer in mixers)
        names = {"mixer": "attention" if attends else "mixer", "mlp": "mlp"}
        return {kind: names[kind] for kind in KINDS if any(kind in own for own in found)}


@torch.no_grad()
def find_layout(model: PreTrainedModel) -> Layout:
    """Find the layout, and refuse a model whose sublayers cannot be run one by one.

    It runs a few tokens through the model several times.

    Args:
        model: with all its sublayers, in evaluation mode.

    Raises:
        InputError: if a block cannot be run alone or is not the sum of its sublayers.
    """
    ids = probe_ids(model, 2, 8)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    _, blocks = decoder_blocks(model)
    form = check_replay(model, batch)
    stream = capture(model, blocks, batch, form)
    structures = []
    for index, block in enumerate(blocks):
        run = partial(stream.run, block, index)
        structures.append(find_structure(block, run, stream.hidden))
        stream.hidden = run()
    return Layout(form, structures, stream.hidden.shape[-1])


@dataclass
class Steps:
    """Residual stream before and after the sublayers of one block, each (B, T, D).

    Args:
        sublayers: input and output of each kind that the block has, including the residual.
        output: output of the block.
    """

    sublayers: dict[str, Step]
    output: Tensor


def block_steps(
    stream: Stream, block: nn.Module, index: int, hidden: Tensor, structure: Structure
) -> Steps:
    """Run the sublayers of a block, at the cost of one block, or of two if it is parallel.

    Args:
        stream: stream of the block's model; it holds the other arguments of the block.
        block: the block; it may lack sublayers.
        index: index of the block in its model.
        hidden: (B, T, D), its input.
        structure: of the block. If it is parallel, both sublayers read `hidden`.
    """
    steps: dict[str, Step] = {}
    now = hidden
    for kind in KINDS:
        if kind in structure.sublayers:
            after = _run_sublayer(stream, block, index, kind, now, structure)
            steps[kind] = (now, after)
            now = hidden if structure.parallel else after
    output = stream.run(block, index, hidden) if structure.parallel else now
    return Steps(steps, output)


def counterfactual(
    stream: Stream, block: nn.Module, index: int, steps: Steps, structure: Structure
) -> dict[str, Tensor]:
    """Run the sublayers of `block` on the inputs of the same sublayers of another model.

    Attention computes its keys and values from the whole stream of the other model.

    Args:
        stream: stream of the block's own model.
        block: the block.
        index: index of the block in its own model.
        steps: steps of the other model.
        structure: of the block.

    Returns:
        Output of each sublayer, (B, T, D), including the residual.
    """
    return {
        kind: _run_sublayer(stream, block, index, kind, before, structure)
        for kind, (before, _) in steps.sublayers.items()
    }


def _run_sublayer(
    stream: Stream, block: nn.Module, index: int, kind: str, hidden: Tensor, structure: Structure
) -> Tensor:
    """Run the block with only one of its sublayers."""
    others = [other for other in KINDS if other != kind]
    with without_sublayers(block, *others, structure=structure):
        return stream.run(block, index, hidden)
