"""Routers are found by structure, and watched without a change of what the model computes."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, probe_ids
from prunelit.models.replay import Form, Stream, capture
from prunelit.models.routers import (
    Decisions,
    find_gate,
    find_mixture,
    log_scores,
    route_again,
    watch_router,
)

MakeModel = Callable[..., PreTrainedModel]


def last_block(model: PreTrainedModel) -> tuple[nn.Module, Stream]:
    """The last block, and a stream of 16 tokens through it."""
    ids = probe_ids(model, 2, 8)
    blocks = decoder_blocks(model)[1]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return blocks[-1], capture(model, blocks, batch, Form(None))


@torch.no_grad()
def test_the_decisions_are_those_of_the_pass(mixture: str, make_model: MakeModel) -> None:
    block, stream = last_block(make_model(mixture))
    found = find_mixture(block)
    assert found is not None
    run = partial(stream.run, block, 2)
    plain = run()
    output, decisions = watch_router(block, found, run)
    assert output.equal(plain)
    assert decisions.logits.shape == (16, 4)
    assert decisions.active.sum(1).tolist() == [2] * 16
    # Shares follow the gate that is found, in every family.
    gate = find_gate(decisions)
    assert gate == ("sigmoid" if mixture == "deepseek_v3" else "softmax")
    own = log_scores(decisions.logits, gate).gather(1, decisions.chosen).softmax(1)
    shares = decisions.shares / decisions.shares.sum(1, keepdim=True)
    torch.testing.assert_close(own, shares, rtol=1e-4, atol=1e-5)
    assert not block._forward_pre_hooks
    assert not any(module._forward_pre_hooks for module in block.modules())


@torch.no_grad()
def test_a_router_that_reads_other_states_decides_for_them(
    mixture: str, make_model: MakeModel
) -> None:
    model = make_model(mixture)
    block, stream = last_block(model)
    found = find_mixture(block)
    assert found is not None
    run = partial(stream.run, block, 2)
    _, own = watch_router(block, found, run)
    called: list[Tensor] = []
    block.get_submodule(found.experts).register_forward_hook(lambda *seen: called.append(seen[2]))
    same = route_again(block, found, run, own.inputs)
    assert same.logits.equal(own.logits)
    assert same.chosen.equal(own.chosen)
    flipped = own.inputs.flatten(0, -2).flip(0).view_as(own.inputs)
    other = route_again(block, found, run, flipped)
    torch.testing.assert_close(other.logits, own.logits.flip(0))
    assert not called  # experts are not computed


def test_shares_in_bfloat16_tell_the_gate() -> None:
    logits = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    chosen = logits.topk(3).indices
    for gate in ("softmax", "sigmoid"):
        scores = log_scores(logits, gate).exp().gather(1, chosen)  # type: ignore[arg-type]
        shares = (2.5 * scores / scores.sum(1, keepdim=True)).bfloat16()
        assert find_gate(Decisions(logits, logits, chosen, shares)) == gate
    # Shares of a rule of its own.
    other = Decisions(logits, logits, chosen, torch.rand(64, 3))
    assert find_gate(other) == "softmax"


def test_a_block_without_one_router_is_refused(make_model: MakeModel) -> None:
    dense = decoder_blocks(make_model("llama"))[1][0]
    assert find_mixture(dense) is None
    block = copy.deepcopy(decoder_blocks(make_model("mixtral"))[1][0])
    block.mlp.second = copy.deepcopy(block.mlp.gate)  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"but 2 matrices beside 'mlp\.experts' have a row"):
        find_mixture(block)


def test_experts_that_read_something_else_are_refused(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, stream = last_block(make_model("mixtral"))
    found = find_mixture(block)
    assert found is not None
    read = (torch.zeros(3, 2),)
    monkeypatch.setattr("prunelit.models.routers.routed_inputs", lambda *_: read)
    with pytest.raises(InputError, match=r"'mlp\.experts' gets no list of the experts of each"):
        watch_router(block, found, partial(stream.run, block, 2))
