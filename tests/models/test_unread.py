"""Placed models are read block by block, with the values of `from_pretrained`."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunelit import load_pretrained
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.loading import DType, load_placed
from prunelit.models.parallel import parallelize
from prunelit.models.shards import shard_blocks
from prunelit.models.stores import bring, each_weight, store_of, whole
from prunelit.models.streaming import place_model, stream
from prunelit.models.unread import Unread
from prunelit.models.weight_files import FoundFiles, WrittenFile

from ..families.tiny import tiny_config

NARROW = torch.bfloat16
CPU = torch.device("cpu")
IDS = torch.arange(20, 36)[None]
# A list of names, a layer that is made so, buffers, and a parameter and buffers of the dtype.
KINDS = ("flint", "hunyuan_v1_moe", "falcon_h1", "apertus")
# Files hold each expert by itself; a family splits its rows and columns in another order.
MIXTURES = ("qwen3_moe", "mixtral", "deepseek_v3", "qwen2_moe")


def split(model: PreTrainedModel) -> None:
    parallelize(model, init_device_mesh("cpu", (1,)), CPU)


PLACES: dict[str, Callable[[PreTrainedModel], None]] = {
    "streamed": stream,
    "sharded": lambda model: shard_blocks(model, CPU),
    "parallel": split,
}


@pytest.fixture
def store(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Callable[..., str]:
    """`store(kind, dtype)` saves a tiny model of random weights, and gives its folder."""

    def make(kind: str, dtype: torch.dtype) -> str:
        config = tiny_config(kind)
        config.vocab_size = 300
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).to(dtype)
        for buffer in model.state_dict().values():
            buffer.copy_(torch.randn(buffer.shape) / 4)
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return str(tmp_path)

    return make


def check_equal(folder: str, place: str, dtype: DType) -> PreTrainedModel:
    """A placed model is the resident one, bit for bit."""
    resident = load_pretrained(folder, dtype=dtype)[0]
    place_model(resident, CPU)
    model = load_placed(folder, PLACES[place], dtype=dtype)[0]
    place_model(model, CPU)
    assert model.config.dtype == resident.config.dtype
    for name, weight in each_weight(model):
        own = resident.get_parameter(name)
        assert weight.dtype == own.dtype, name
        assert torch.equal(getattr(weight, "to_local", lambda w=weight: w)(), own), name
    for name, buffer in model.named_buffers():
        own = resident.get_buffer(name)
        assert buffer.dtype == own.dtype, name
        assert torch.equal(buffer, own), name
    with torch.no_grad():
        found, expected = (one(input_ids=IDS).logits for one in (model, resident))
    assert torch.equal(found, expected)
    return resident


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stored", [torch.float32, NARROW])
@pytest.mark.parametrize("kind", KINDS)
def test_a_placed_model_has_the_dtypes_of_a_resident_one(
    alone: None, kind: str, stored: torch.dtype, place: str, store: Callable[..., str]
) -> None:
    resident = check_equal(store(kind, stored), place, "bfloat16")
    dtypes = {tensor.dtype for tensor in resident.parameters()}
    assert dtypes == ({NARROW} if kind in KINDS[2:] else {NARROW, torch.float32})


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", MIXTURES)
def test_experts_that_files_hold_one_by_one_are_joined(
    alone: None, kind: str, place: str, store: Callable[..., str]
) -> None:
    folder = store(kind, NARROW)
    names = load_file(Path(folder, "model.safetensors"))
    assert any(".experts.3." in name for name in names)
    resident = check_equal(folder, place, "auto")
    assert any(name.endswith("experts.down_proj") for name, _ in resident.named_parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", MIXTURES)
def test_streamed_experts_stay_in_the_files_of_the_model(
    kind: str, store: Callable[..., str]
) -> None:
    folder = store(kind, NARROW)
    kept = {}
    for dtype in ("bfloat16", "float32"):
        model = load_placed(folder, stream, dtype=dtype)[0]
        stores = [vars(store_of(block)) for block in decoder_blocks(model)[1]]
        kept[dtype] = {type(own["_kept"]) for own in stores}
    assert kept == {"bfloat16": {FoundFiles}, "float32": {WrittenFile}}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_tensors_that_are_stored_wider_than_the_model_keep_their_bits(
    alone: None, dtype: DType, place: str, store: Callable[..., str]
) -> None:
    folder = store("deepseek_v3", NARROW)
    path = Path(folder, "model.safetensors")
    wide = (".gate.weight", "bias", "norm.weight")
    tensors = {
        name: torch.randn(value.shape) if name.endswith(wide) else value
        for name, value in load_file(path).items()
    }
    save_file(tensors, path, {"format": "pt"})
    resident = check_equal(folder, place, dtype)
    if dtype == "float32":
        name = "model.layers.1.mlp.gate.weight"
        assert torch.equal(resident.get_parameter(name), tensors[name])


@pytest.mark.parametrize(("kind", "mapped"), [("llama", True), ("mixtral", False)])
def test_one_block_is_in_memory_at_a_time(
    kind: str, mapped: bool, store: Callable[..., str]
) -> None:
    def here(model: PreTrainedModel) -> list[bool]:
        return [
            not all(weight.is_meta for weight in block.parameters())
            for block in decoder_blocks(model)[1]
        ]

    def place(model: PreTrainedModel) -> None:
        stores = [store_of(block) for block in decoder_blocks(model)[1]]
        assert not any(here(model))
        for index, (block, own) in enumerate(zip(decoder_blocks(model)[1], stores, strict=True)):
            assert isinstance(own, Unread)
            assert own.mapped == mapped
            with whole(block):
                assert here(model) == [place == index for place in range(len(stores))]
        assert not any(here(model))
        for block in decoder_blocks(model)[1]:
            bring(block)

    load_placed(store(kind, torch.float32), place)


def test_a_change_of_an_unread_block_is_kept(store: Callable[..., str]) -> None:
    def place(model: PreTrainedModel) -> None:
        block = decoder_blocks(model)[1][1]
        with whole(block, edited=True):
            block.mlp.experts.down_proj.data.zero_()
        assert store_of(block) is None
        assert not block.mlp.experts.down_proj.any()
        stream(model)

    model = load_placed(store("mixtral", torch.float32), place)[0]
    with whole(block := decoder_blocks(model)[1][1]):
        assert not block.mlp.experts.down_proj.any()


def test_a_weight_that_no_block_reads_is_named(store: Callable[..., str]) -> None:
    def place(model: PreTrainedModel) -> None:
        block = decoder_blocks(model)[1][1]
        own = store_of(block)
        assert isinstance(own, Unread)
        Unread(block, lambda: None, [], mapped=False).fetch()

    with pytest.raises(InputError, match=r"The weight 'weight' of a LlamaDecoderLayer cannot be"):
        load_placed(store("llama", torch.float32), place)
