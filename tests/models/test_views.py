"""Views of a model share its weights and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks, final_hidden
from prunelit.models.parts import sublayers
from prunelit.models.residual import Structure, without_sublayers
from prunelit.models.stores import Store, keep_in, store_of, whole
from prunelit.models.views import blank, original, recast, view

MakeModel = Callable[..., PreTrainedModel]


class Lent(Store):
    """Takes the parameters out of their modules: those that are away are on `meta`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._places = [
            (module._parameters, name, weight)
            for module in block.modules()
            for name, weight in module._parameters.items()
            if weight is not None
        ]
        self.leave(edited=False)

    def fetch(self) -> None:
        for parameters, name, weight in self._places:
            parameters[name] = weight

    def leave(self, edited: bool) -> None:
        for parameters, name, weight in self._places:
            parameters[name] = nn.Parameter(torch.empty_like(weight, device="meta"))


@pytest.fixture
def batch(padded: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return padded["input_ids"], padded["attention_mask"]


@torch.no_grad()
def test_a_view_computes_the_same(family: str, make_model: MakeModel, batch: Any) -> None:
    model = make_model(family)
    seen = view(model)
    assert torch.equal(final_hidden(seen, *batch), final_hidden(model, *batch))
    assert all(one is own for one, own in zip(seen.parameters(), model.parameters(), strict=True))
    assert not {id(one) for one in seen.modules()} & {id(one) for one in model.modules()}
    assert original(view(seen)) is original(seen) is original(model) is model


@torch.no_grad()
def test_hooks_modules_and_attributes_of_one_view_touch_no_other(
    model: PreTrainedModel, batch: Any
) -> None:
    one, other = view(model), view(model)
    expected = final_hidden(model, *batch)
    calls = []
    decoder_blocks(one)[1][0].register_forward_hook(lambda *_: calls.append(1))
    one.generation_config = None
    one.base_model.norm.register_buffer("scale", torch.ones(1))
    structure = Structure(sublayers(decoder_blocks(model)[1][1]), {"mlp": "zeros"}, parallel=False)
    with without_sublayers(decoder_blocks(one)[1][1], "mlp", structure=structure):
        assert torch.equal(final_hidden(other, *batch), expected)
        assert torch.equal(final_hidden(model, *batch), expected)
        assert not calls
        assert not torch.equal(final_hidden(one, *batch), expected)
    assert calls == [1]
    assert other.generation_config is model.generation_config is not None
    assert not hasattr(model.base_model.norm, "scale")


@torch.no_grad()
def test_blocks_that_wait_come_in_every_view(model: PreTrainedModel, batch: Any) -> None:
    expected = final_hidden(model, *batch)
    for block in decoder_blocks(model)[1]:
        keep_in(block, Lent(block))
    seen = view(view(model))
    calls = []
    blocks = decoder_blocks(seen)[1]
    blocks[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(final_hidden(model, *batch), expected)
    assert not calls
    assert torch.equal(final_hidden(seen, *batch), expected)
    assert calls == [1]
    assert store_of(blocks[0]) is store_of(decoder_blocks(model)[1][0])
    with whole(blocks[0]):
        assert not next(decoder_blocks(model)[1][0].parameters()).is_meta
    assert next(blocks[0].parameters()).is_meta


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_blank_copy_has_shapes_and_no_values(
    family: str, make_model: MakeModel, dtype: torch.dtype | None
) -> None:
    model = make_model(family)
    new = blank(model, dtype)
    assert list(dict(new.named_parameters())) == list(dict(model.named_parameters()))
    for mine, own in zip(new.parameters(), model.parameters(), strict=True):
        assert mine.is_meta
        assert (mine.shape, mine.dtype) == (own.shape, dtype or own.dtype)
    assert all(mine is own for mine, own in zip(new.buffers(), model.buffers(), strict=True))
    assert not any(weight.is_meta for weight in model.parameters())
    assert not {id(one) for one in new.modules()} & {id(one) for one in model.modules()}


@torch.no_grad()
def test_a_copy_in_another_dtype_casts_a_block_when_it_comes(
    family: str, make_model: MakeModel, batch: Any
) -> None:
    expected = final_hidden(make_model(family).to(torch.bfloat16), *batch)
    model = make_model(family)
    # Buffers keep their dtype, as when a model is loaded.
    for name, buffer in make_model(family).named_buffers():
        assert recast(model, torch.bfloat16).get_buffer(name).dtype == buffer.dtype
    plain = final_hidden(recast(model, torch.bfloat16), *batch)
    for block in decoder_blocks(model)[1]:
        keep_in(block, Lent(block))
    twin = recast(view(model), torch.bfloat16)
    assert twin.dtype == torch.bfloat16
    assert torch.equal(final_hidden(twin, *batch), plain)
    assert plain.shape == expected.shape
    assert all(weight.is_meta for weight in decoder_blocks(twin)[1].parameters())
    assert original(twin) is twin
    with (
        pytest.raises(AssertionError, match="cannot be edited"),
        whole(decoder_blocks(twin)[1][0], edited=True),
    ):
        pass
