"""Speed and memory of models that are used."""

import torch
from transformers import PreTrainedModel, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from prunelit.models.fingerprint import weight_bytes
from prunelit.models.inference.speed import _Alive, compare_speed, measure_speed


def test_every_family_reads_and_writes(make_model, family: str) -> None:
    model: PreTrainedModel = make_model(family).eval()
    found = measure_speed({"dense": model, "pruned": model})
    for own in found.values():
        assert len(own["prefill"]) == len(own["decode"]) == 5
        assert min(*own["prefill"], *own["decode"]) > 0
        assert own["peak_bytes"] > weight_bytes(model)
    assert found["dense"]["peak_bytes"] == found["pruned"]["peak_bytes"]


def test_rounds_are_compared_pair_by_pair() -> None:
    found = {
        "dense": {"prefill": [100.0, 50.0, 80.0], "decode": [9.0, 9.0, 9.0]},
        "pruned": {"prefill": [120.0, 55.0, 96.0]},
    }
    assert compare_speed(found) == {
        "prefill": {
            "dense": 80.0, "pruned": 96.0, "ratio": 1.2, "low": 1.1, "high": 1.2, "rounds": 3
        }
    }  # fmt: skip


def test_the_bytes_of_tensors_count_while_they_are_alive(make_model) -> None:
    model = make_model("llama")
    weight = model.get_input_embeddings().weight
    with torch.inference_mode(), _Alive(model) as alive:
        first = torch.zeros(100)  # 400 bytes
        view = first[10:].view(9, 10)
        del first
        torch.ones(50)  # 200 bytes, for a moment
        weight.t()
        again = torch.zeros(20)
    assert alive.peak == 600
    assert len(view) + len(again) == 29


def test_positions_of_an_earlier_batch_are_left_alone() -> None:
    text = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]
        },
    }  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 24, "depth": 1, "num_heads": 2}
    vision |= {"out_hidden_size": 32, "deepstack_visual_indexes": [0]}
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision))
    model.model.rope_deltas = torch.zeros(4, 1, dtype=torch.long)  # of a batch of 4 sequences
    assert measure_speed({"dense": model.eval()})["dense"]["decode"]
