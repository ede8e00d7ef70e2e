"""Weights and buffers have the dtypes that `from_pretrained` gives them, wherever they wait."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunelit import load_pretrained
from prunelit.models.dtypes import take_dtype
from prunelit.models.loading import load_placed
from prunelit.models.parallel import parallelize
from prunelit.models.shards import shard_blocks
from prunelit.models.stores import each_weight
from prunelit.models.streaming import place_model, stream

from ..families.tiny import tiny_config, tiny_model

NARROW = torch.bfloat16
CPU = torch.device("cpu")
IDS = torch.arange(20, 36)[None]
# A list of names, a layer that is made so, buffers, and a parameter and buffers of the dtype.
KINDS = ("flint", "hunyuan_v1_moe", "falcon_h1", "apertus")


def split(model: PreTrainedModel) -> None:
    parallelize(model, init_device_mesh("cpu", (1,)), CPU, NARROW)


PLACES: dict[str, Callable[[PreTrainedModel], None]] = {
    "streamed": lambda model: stream(model, NARROW),
    "sharded": lambda model: shard_blocks(model, NARROW, CPU),
    "parallel": split,
}


@pytest.mark.parametrize("stored", [torch.float32, NARROW])
@pytest.mark.parametrize("kind", KINDS)
def test_a_placed_model_has_the_dtypes_of_a_resident_one(
    alone: None, kind: str, stored: torch.dtype, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = tiny_config(kind)
    config.vocab_size = 300
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(stored).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    resident = load_pretrained(str(tmp_path), dtype="bfloat16")[0]
    dtypes = {tensor.dtype for tensor in resident.parameters()}
    assert dtypes == ({NARROW} if kind in KINDS[2:] else {NARROW, torch.float32})
    place_model(resident, CPU)
    for place, placing in PLACES.items():
        model = load_placed(str(tmp_path), placing)[0]
        place_model(model, CPU)
        for name, weight in each_weight(model):
            own = resident.get_parameter(name)
            assert weight.dtype == own.dtype, (place, name)
            assert torch.equal(getattr(weight, "to_local", lambda w=weight: w)(), own)
        for name, buffer in model.named_buffers():
            own = resident.get_buffer(name)
            assert buffer.dtype == own.dtype, (place, name)
            assert torch.equal(buffer, own), (place, name)
        with torch.no_grad():
            found, expected = (one(input_ids=IDS).logits for one in (model, resident))
        assert torch.equal(found, expected), place


def test_the_parts_of_a_multimodal_model_follow() -> None:
    model = tiny_model("qwen3_vl")
    find = take_dtype(model, NARROW)
    assert {find(weight) for weight in model.parameters()} == {NARROW}
    assert {model.config.dtype, model.config.vision_config.dtype} == {NARROW}
