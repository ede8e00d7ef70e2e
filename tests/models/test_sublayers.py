"""The sublayers of a block, run one by one, give the block's output."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.replay import capture
from prunelit.models.sublayers import block_steps, counterfactual, find_layout
from prunelit.models.without_sublayers import Absent

MakeModel = Callable[..., PreTrainedModel]


def test_layout_of_every_family(family: str, make_model: MakeModel) -> None:
    found = find_layout(make_model(family))
    assert [own.parallel for own in found.blocks] == [family in ("phi", "gpt_neox")] * 3
    assert [list(own.sublayers) for own in found.blocks] == [["mixer", "mlp"]] * 3
    assert found.names == {"mixer": "attention", "mlp": "mlp"}
    assert found.width == 32


def test_decoding_positions_hold_what_cached_decoding_computes(
    family: str, make_model: MakeModel, input_ids: Tensor
) -> None:
    """One pass over prompt and rollout equals the cached decoding of `generate` in every layer."""
    model = make_model(family)
    ids = input_ids[:2]
    found = find_layout(model)
    blocks = decoder_blocks(model)[1]
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    outputs: list[list[Tensor]] = [[] for _ in blocks]
    with torch.no_grad():
        stream = capture(model, blocks, batch, found.form)
        handles = [
            block.register_forward_hook(
                lambda _m, _a, out, i=i: outputs[i].append(
                    out if isinstance(out, Tensor) else out[0]
                )
            )
            for i, block in enumerate(blocks)
        ]
        cache = None
        for step in range(ids.shape[1]):
            cache = model(
                input_ids=ids[:, step : step + 1], past_key_values=cache, use_cache=True
            ).past_key_values
        for handle in handles:
            handle.remove()
        for index, block in enumerate(blocks):
            steps = block_steps(stream, block, index, stream.hidden, found.blocks[index])
            stream.hidden = steps.output
            torch.testing.assert_close(
                stream.hidden, torch.cat(outputs[index], 1), rtol=1e-4, atol=1e-5
            )


@torch.no_grad()
def test_the_counterfactual_of_a_copy_is_what_the_model_computes(
    family: str, make_model: MakeModel, padded: dict[str, Tensor]
) -> None:
    model, copy = make_model(family), make_model(family)
    found, blocks = find_layout(model), decoder_blocks(model)[1]
    stream = capture(model, blocks, padded, found.form)
    other = capture(copy, decoder_blocks(copy)[1], padded, found.form)
    for index, block in enumerate(blocks):
        structure = found.blocks[index]
        steps = block_steps(stream, block, index, stream.hidden, structure)
        made = counterfactual(other, decoder_blocks(copy)[1][index], index, steps, structure)
        for kind in ("mixer", "mlp"):
            assert made[kind][stream.tokens].equal(steps.sublayers[kind][1][stream.tokens])
        stream.hidden = steps.output


def test_a_block_that_is_more_than_its_sublayers(model: PreTrainedModel) -> None:
    block = decoder_blocks(model)[1][1]
    mlp = block.mlp
    assert isinstance(mlp, nn.Module)

    class Scaled(type(block)):  # type: ignore[misc]
        def forward(self, *args: object, **kwargs: object) -> Tensor:
            output = super().forward(*args, **kwargs)
            silent = isinstance(self.mlp, Absent) or isinstance(self.self_attn, Absent)
            whole = all(
                bool(part.weight.any()) for part in self.modules() if hasattr(part, "weight")
            )
            return output if silent or not whole else output * 1.1

    block.__class__ = Scaled
    with pytest.raises(InputError, match="run one by one, do not give its output"):
        find_layout(model)
