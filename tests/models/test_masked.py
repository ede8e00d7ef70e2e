"""Pruned blocks that are kept as the dense ones and a mask."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import prunelit
from prunelit.core.weights import Weights
from prunelit.models.architecture import decoder_blocks
from prunelit.models.flat_block import FlatBlock
from prunelit.models.loading import load_placed
from prunelit.models.masked import apply_mask_, pack_mask
from prunelit.models.shards import Shards, shard_blocks
from prunelit.models.stores import each_weight, store_of, whole
from prunelit.models.streaming import stream
from prunelit.models.weight_files import MaskedFile, WrittenFile
from prunelit.pruners import Neuron, Pruner, SparseGPT, Wanda
from prunelit.sparsity import Unstructured

MakeModel = Callable[..., PreTrainedModel]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn]
)
def test_a_mask_is_one_bit_a_weight(dtype: torch.dtype) -> None:
    dense = torch.randn(5 * 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    dense[3], dense[4] = torch.nan, -0.0
    keep = torch.rand(5 * 64, generator=torch.Generator().manual_seed(1)) < 0.5
    keep[2:6] = True
    words = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    pruned = torch.where(keep, dense.view(words), 0).view(dtype)
    size = dtype.itemsize
    bits = pack_mask(pruned.view(torch.uint8), dense.view(torch.uint8), size)
    assert bits is not None
    assert bits.tolist() == np.packbits(keep.numpy(), bitorder="little").tolist()
    run = dense.clone().view(torch.uint8)
    apply_mask_(run, bits)
    assert torch.equal(run, pruned.view(torch.uint8))
    for value in (-0.0, 2.0**-6, torch.nan):
        other = pruned.clone()
        other.view(words)[200] = torch.tensor(value).to(dtype).view(words)
        assert pack_mask(other.view(torch.uint8), dense.view(torch.uint8), size) is None


def test_a_block_of_several_dtypes() -> None:
    block = nn.Module()
    block.one = nn.Parameter(torch.randn(40))
    block.two = nn.Parameter(torch.randn(40).bfloat16())
    runs = []
    for edit in (None, 0.0, 1.0):
        with torch.no_grad():
            if edit is not None:
                block.one[::3] = block.two[::2] = edit
        flat = FlatBlock([block])
        runs.append(torch.zeros(flat.size, dtype=torch.uint8))
        flat.copy_into(runs[-1])
    bits = pack_mask(runs[1], runs[0], flat.itemsize)
    assert bits is not None
    assert bits.nbytes == flat.size / 16
    run = runs[0].clone()
    apply_mask_(run, bits)
    assert torch.equal(run, runs[1])
    assert pack_mask(runs[2], runs[0], flat.itemsize) is None


def stored(*models: PreTrainedModel) -> int:
    """Bytes that models in shards take together."""
    stores = [store_of(block) for model in models for block in decoder_blocks(model)[1]]
    outside = [weight for model in models for weight in model.parameters() if not weight.is_meta]
    kept = sum(store.nbytes for store in stores if isinstance(store, Shards))
    return kept + sum({weight.data_ptr(): weight.nbytes for weight in outside}.values())


def kept_of(model: PreTrainedModel) -> list[Any]:
    """What the stores of a streamed model keep."""
    return [vars(store_of(block))["_kept"] for block in decoder_blocks(model)[1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "pruner", "masked"),
    [
        ("llama", Wanda(Unstructured(0.5)), True),
        ("gpt2", Wanda(Unstructured(0.5)), True),
        ("llama", SparseGPT(Unstructured(0.5)), False),
        ("llama", Neuron(0.25), False),
    ],
)
def test_a_sharded_pair_takes_little_more_than_one_model(
    alone: None,
    kind: str,
    pruner: Pruner,
    masked: bool,
    dtype: torch.dtype,
    make_model: MakeModel,
    input_ids: Tensor,
) -> None:
    resident, dense, model = (make_model(kind).to(dtype) for _ in range(3))  # type: ignore[arg-type]
    shard_blocks(dense)
    alone_takes = stored(dense)
    shard_blocks(model, dense=dense)
    assert stored(dense, model) < 1.1 * alone_takes
    for one in (resident, model):
        prunelit.prune(one, pruner, input_ids)
    assert (stored(dense, model) < 1.1 * alone_takes) == masked
    for name, weight in each_weight(model):
        assert torch.equal(weight, resident.get_parameter(name)), name
    for name, weight in each_weight(dense):
        assert torch.equal(weight, make_model(kind).get_parameter(name).to(dtype)), name


@torch.no_grad()
def test_edits_of_both_models_are_kept(alone: None, make_model: MakeModel) -> None:
    dense, model = make_model("llama"), make_model("llama")
    shard_blocks(dense)
    shard_blocks(model, dense=dense)
    little = stored(dense, model)
    block, other = (decoder_blocks(one)[1][1] for one in (model, dense))

    def set_one(block: Any, value: float) -> None:
        with whole(block, edited=True):
            block.mlp.up_proj.weight[0, 3] = value

    def one_of(block: Any) -> Tensor:
        with whole(block):
            return block.mlp.up_proj.weight[0, 3].clone()

    set_one(block, -0.0)
    assert stored(dense, model) > little
    assert one_of(block).signbit()
    set_one(block, 0.0)
    assert stored(dense, model) == little
    set_one(other, 7)  # the block rests on what it was
    assert (one_of(block), one_of(other)) == (0, 7)
    set_one(block, 7)
    assert (one_of(block), one_of(other)) == (7, 7)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_edited_block_of_a_streamed_model_is_a_mask_on_the_disk(
    dtype: str,
    material: Path,
    input_ids: Tensor,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    def read(folder: Path, dense: PreTrainedModel | None = None) -> PreTrainedModel:
        def place(model: PreTrainedModel) -> None:
            stream(model, dense=dense)

        return load_placed(str(folder), place, dtype=dtype)[0]  # type: ignore[arg-type]

    resident = prunelit.load_pretrained(str(material / "dense"), dtype=dtype)[0]  # type: ignore[arg-type]
    dense = read(material / "dense")
    model = read(material / "dense", dense)
    wanda = Wanda(Unstructured(0.5))
    prunelit.prune(resident, wanda, input_ids)
    report = prunelit.prune(model, wanda, input_ids)
    prunelit.save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    assert not any(isinstance(kept, MaskedFile) for kept in kept_of(read(tmp_path / "pruned")))
    again = read(tmp_path / "pruned", dense)
    for one in (model, again):
        for block, kept in zip(decoder_blocks(one)[1], kept_of(one), strict=True):
            assert isinstance(kept, MaskedFile)
            item = getattr(torch, dtype).itemsize
            assert kept.bits.nbytes == FlatBlock(block.modules()).size / item / 8
        for name, weight in each_weight(one):
            assert torch.equal(weight, resident.get_parameter(name)), name
    prunelit.prune(model, SparseGPT(Unstructured(0.6)), input_ids)
    assert all(isinstance(kept, WrittenFile) for kept in kept_of(model))
    prunelit.prune(again, Neuron(0.25), input_ids)
    assert all(isinstance(kept, WrittenFile) for kept in kept_of(again))


def test_models_of_other_shapes_stay_as_they_are(
    alone: None, make_model: MakeModel, input_ids: Tensor
) -> None:
    dense, narrow, short, same = (make_model("llama") for _ in range(4))
    prunelit.prune(narrow, Neuron(0.25), input_ids)
    del short.model.layers[2]
    short.config.num_hidden_layers = 2
    shard_blocks(dense)
    for model in (narrow, short):
        expected = {name: weight.clone() for name, weight in model.named_parameters()}
        sizes = [FlatBlock(block.modules()).size for block in decoder_blocks(model)[1]]
        shard_blocks(model, dense=dense)
        kept = [store_of(block) for block in decoder_blocks(model)[1]]
        assert [store.nbytes for store in kept if isinstance(store, Shards)] == sizes
        for name, weight in each_weight(model):
            assert torch.equal(weight, expected[name]), name
    shard_blocks(same, dense=make_model("llama"))  # its blocks are here
    assert stored(same) == stored(dense)


def test_a_run_keeps_its_sharded_pair_masked(alone: None, material: Path) -> None:
    weights = Weights(str(material / "dense"))
    weights.placement = "sharded"
    weights.load()
    dense, pruned = weights.pair.dense, weights.pair.pruned
    assert dense is not None
    assert stored(dense, pruned) < 1.1 * stored(dense)
    again = Weights(str(material / "dense"), reference=False)
    again.placement = "sharded"
    again.load()
    assert stored(again.pair.pruned) == stored(dense)
