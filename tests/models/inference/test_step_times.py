"""Time of a step of writing, with a clock that knows what each part takes."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from prunelit import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.inference import step_times
from prunelit.models.inference.step_times import time_blocks

MakeModel = Callable[..., PreTrainedModel]


def test_times_of_parts_are_differences_of_models(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = make_model("llama").eval(), []
    head = model.get_output_embeddings().weight

    def run(own: PreTrainedModel, prompt: int, batch_size: int) -> dict[str, float]:
        """Take 1 s outside of the blocks, and a second for each thousand parameters inside."""
        blocks = own.model.layers
        assert own.get_output_embeddings().weight is head
        output = own(torch.ones(2, 5, dtype=torch.long))
        assert output.logits.isfinite().all()
        asked.append((prompt, batch_size, len(blocks)))
        seconds = 1 + sum(weight.numel() for weight in blocks.parameters()) / 1000
        return {"prefill": 1.0, "decode": batch_size / seconds}

    monkeypatch.setattr(step_times, "read_and_write", run)
    outside, block, narrow = time_blocks(model, [{"intermediate_size": 24}], 16, 2)
    size = sum(weight.numel() for weight in decoder_blocks(model)[1][0].parameters())
    gone = 3 * model.config.hidden_size * (model.config.intermediate_size - 24)
    assert outside == pytest.approx(1)
    assert block == pytest.approx(size / 1000)
    assert narrow == pytest.approx((size - gone) / 1000)
    assert asked == [(16, 2, count) for _ in range(8) for count in (2, 1, 1)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "mixtral"])
def test_times_are_measured_and_no_weight_changes(make_model: MakeModel, name: str) -> None:
    model = make_model(name).eval()
    before = [weight.clone() for weight in model.parameters()]
    found = time_blocks(model, [{}], 16, 1)
    assert len(found) == 3
    assert min(found) >= 0
    assert max(found) > 0
    assert all(map(torch.equal, before, model.parameters()))


def test_a_model_of_one_block_is_refused(make_model: MakeModel) -> None:
    model = make_model("llama")
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    with pytest.raises(InputError, match="at least two blocks"):
        time_blocks(model, [], 16, 1)
