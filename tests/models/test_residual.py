from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from prunelit import prune
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.parts import drop_
from prunelit.models.residual import find_structure, residual_steps, without_sublayers
from prunelit.pruners import SublayerDrop

PARALLEL = ("phi", "gpt_neox")


def block_of(
    model: PreTrainedModel, batch: dict[str, Tensor]
) -> tuple[nn.Module, Callable[..., Tensor], Tensor]:
    """The second block of `model`, a function that runs it on `batch`, and its input."""
    block = decoder_blocks(model)[1][1]
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handle = block.register_forward_pre_hook(
        lambda _m, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    model(**batch, use_cache=False)
    handle.remove()
    ((args, kwargs),) = calls

    def run(hidden: Tensor | None = None) -> Tensor:
        output = block(args[0] if hidden is None else hidden, *args[1:], **kwargs)
        return output if isinstance(output, Tensor) else output[0]

    return block, run, args[0]


def without(block: nn.Module, kind: str, run: Callable[..., Tensor]) -> Tensor:
    """The output of the block if all weights of a sublayer are 0."""
    kept = {name: value.clone() for name, value in block.state_dict().items()}
    drop_(block, kind)
    output = run()
    block.load_state_dict(kept)
    return output


@torch.no_grad()
def test_steps_are_those_of_a_block_without_the_part(
    family: str, make_model: Callable[..., PreTrainedModel], padded: dict[str, Tensor]
) -> None:
    block, run, hidden = block_of(make_model(family), padded)
    output = run()
    after_mixer, after_mlp = without(block, "mlp", run), without(block, "mixer", run)
    wanted = ("mixer", "mlp", "block")
    steps, structure = residual_steps(block, run, hidden, output, wanted)
    assert structure is not None
    assert structure.parallel == (family in PARALLEL)
    expected = {
        "mixer": (hidden, after_mixer),
        "mlp": (hidden, after_mlp) if structure.parallel else (after_mixer, output),
        "block": (hidden, output),
    }
    for name, (before, after) in steps.items():
        assert torch.equal(before, expected[name][0]), name
        assert torch.equal(after, expected[name][1]), name
    # Together the sublayers add what the block adds.
    added = {name: after - before for name, (before, after) in steps.items()}
    torch.testing.assert_close(added["mixer"] + added["mlp"], added["block"])
    assert min(float(change.abs().mean()) for change in added.values()) > 0.01
    for name in wanted:  # alone, and for a later batch
        (step,) = residual_steps(block, run, hidden, output, [name], structure)[0].values()
        assert all(map(torch.equal, step, expected[name]))


def test_the_block_alone_costs_no_run(model: PreTrainedModel, padded: dict[str, Tensor]) -> None:
    block, run, hidden = block_of(model, padded)
    output = run()
    steps, _ = residual_steps(block, pytest.fail, hidden, output, ["block"])
    assert steps == {"block": (hidden, output)}


@torch.no_grad()
def test_silence_ends_with_its_context(model: PreTrainedModel, padded: dict[str, Tensor]) -> None:
    block, run, hidden = block_of(model, padded)
    output = run()
    structure = find_structure(block, run, hidden)
    with without_sublayers(block, "mixer", "mlp", structure=structure):
        assert torch.equal(run(), hidden)
    assert torch.equal(run(), output)
    one = without_sublayers(block, "mlp", structure=structure)
    with pytest.raises(RuntimeError, match="halfway"), one:
        raise RuntimeError("halfway")
    assert torch.equal(run(), output)


def test_blocks_that_are_no_identity_without_sublayers_are_refused(input_ids: Tensor) -> None:
    config = OPTConfig(
        vocab_size=300,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
        do_layer_norm_before=False,
    )
    model = OPTForCausalLM(config).eval()
    with pytest.raises(InputError, match="changes its input if its sublayers add nothing"):
        prune(model, SublayerDrop(1), input_ids)
