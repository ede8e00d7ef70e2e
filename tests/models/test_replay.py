"""Blocks run one by one, compared with the model's own forward pass."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from prunelit import InputError
from prunelit.models.architecture import decoder_blocks, final_hidden
from prunelit.models.replay import End, Form, apply_final_norm, capture, check_replay


@torch.no_grad()
def test_a_replay_of_all_blocks_and_the_end_is_the_models_own_run(
    family: str, make_model: Callable[..., PreTrainedModel], padded: dict[str, torch.Tensor]
) -> None:
    model = make_model(family)
    blocks = decoder_blocks(model)[1]
    form = check_replay(model, padded)
    stream = capture(model, blocks, padded, form)
    assert len(stream.calls) == len(blocks)
    for index, block in enumerate(blocks):
        before = stream.hidden.clone()
        stream.hidden = stream.run(block, index)
        assert not torch.equal(before, stream.hidden)
    there = padded["attention_mask"].bool()
    assert stream.tokens.equal(there)
    mine = apply_final_norm(End.of(model, form), stream.hidden[there])
    torch.testing.assert_close(mine, final_hidden(model, **padded)[there], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_model_that_skips_a_block_is_refused(
    model: PreTrainedModel, padded: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = decoder_blocks(model)[1]
    inner = model.base_model
    monkeypatch.setattr(inner, "config", copy.deepcopy(inner.config))
    inner.config.num_hidden_layers -= 1
    with pytest.raises(InputError, match=f"called {len(blocks) - 1} of its {len(blocks)} blocks"):
        capture(model, blocks, padded, Form(None))
