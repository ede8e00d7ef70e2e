"""Blocks of which each rank keeps a share; `tests/pruning/test_sharded.py` prunes them."""

import copy
import gc
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit import prune, save_pretrained, to_semi_structured
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.models.read_checks import check_weights
from prunelit.models.shards import Shards, shard_blocks
from prunelit.models.stores import each_weight, keep_in, store_of, whole
from prunelit.pruners import BlockDrop, Magnitude
from prunelit.pruning.masks import Masks
from prunelit.sparsity import Unstructured

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture
def sharded(alone: None, make_model: MakeModel) -> PreTrainedModel:
    model = make_model("llama")
    shard_blocks(model)
    return model


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma2"])
def test_blocks_are_away_and_come_back(alone: None, kind: str, make_model: MakeModel) -> None:
    dense, model = make_model(kind), make_model(kind)
    parameters = dict(model.named_parameters())
    shard_blocks(model)
    prefix, blocks = decoder_blocks(model)
    for name, parameter in model.named_parameters():
        away = name.startswith(f"{prefix}.")
        assert parameter.is_meta == away, name
        assert (parameter is parameters[name]) != away, name
        own = dense.get_parameter(name)
        assert (parameter.shape, parameter.dtype) == (own.shape, own.dtype)
    assert not any(buffer.is_meta for buffer in model.buffers())
    for name, parameter in each_weight(model):
        assert parameter is parameters[name]
        assert parameter.data_ptr() % 64 == 0
        assert torch.equal(parameter, dense.get_parameter(name)), name
    assert all(parameter.is_meta for parameter in blocks.parameters())
    assert model.num_parameters() == dense.num_parameters()


def test_waiting_weights_take_no_memory(alone: None, make_model: MakeModel) -> None:
    model = make_model("llama")
    block = model.model.layers[0]

    def gone(storage: weakref.ref) -> bool:
        """Wait: a thread of the process group may still hold what it has sent."""
        for _ in range(100):
            gc.collect()
            if storage() is None:
                return True
            time.sleep(0.05)
        return False

    storage = weakref.ref(block.mlp.up_proj.weight.untyped_storage())
    shard_blocks(model)
    gc.collect()
    assert storage() is None
    with whole(block):
        storage = weakref.ref(block.mlp.up_proj.weight.untyped_storage())
    assert gone(storage)


def test_reading_a_waiting_weight_raises(sharded: PreTrainedModel) -> None:
    weight = sharded.model.layers[0].mlp.up_proj.weight
    with pytest.raises(RuntimeError, match="meta"):
        weight.sum().item()


@torch.no_grad()
def test_an_edit_is_kept_and_another_change_is_not(sharded: PreTrainedModel) -> None:
    block = sharded.model.layers[1]
    with whole(block, edited=True):
        block.mlp.up_proj.weight[0, 3] = 7
        block.mlp.down_proj.weight = nn.Parameter(torch.ones(32, 20))  # of another size
    with whole(block):
        assert block.mlp.up_proj.weight[0, 3] == 7
        assert block.mlp.down_proj.weight.eq(1).all()
        assert block.mlp.down_proj.weight.shape == (32, 20)
        block.mlp.up_proj.weight[0, 3] = 8
    with whole(block):
        assert block.mlp.up_proj.weight[0, 3] == 7


def test_a_forward_pass_brings_its_blocks(
    sharded: PreTrainedModel, make_model: MakeModel, input_ids: Tensor
) -> None:
    dense = make_model("llama")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found, expected = (model(input_ids=input_ids).logits for model in (sharded, dense))
        assert torch.equal(found, expected)
    assert all(parameter.is_meta for parameter in sharded.model.layers.parameters())


def test_a_block_may_be_called_for_early(sharded: PreTrainedModel, make_model: MakeModel) -> None:
    block, store = sharded.model.layers[0], store_of(sharded.model.layers[0])
    assert store is not None
    store.prefetch()
    store.prefetch()
    with whole(block):
        store.prefetch()  # it is here
        assert torch.equal(
            block.mlp.up_proj.weight, make_model("llama").model.layers[0].mlp.up_proj.weight
        )


class Tied(nn.Module):
    """Two layers with one weight, a scalar of another dtype and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.two.weight = self.one.weight
        self.scale = nn.Parameter(torch.tensor(2.5, dtype=torch.bfloat16), requires_grad=False)
        self.register_buffer("seen", torch.arange(3))


def test_tied_weights_of_one_block_stay_tied(alone: None) -> None:
    block = Tied()
    weight, bias = block.one.weight.clone(), block.one.bias.clone()
    store = Shards(block)
    keep_in(block, store)
    assert store.nbytes == 3 * 64  # each is aligned
    assert block.one.weight is block.two.weight
    assert block.one.weight.is_meta
    assert block.seen.tolist() == [0, 1, 2]
    with torch.no_grad(), whole(block, edited=True):
        assert block.one.weight is block.two.weight
        assert torch.equal(block.one.weight, weight)
        assert torch.equal(block.one.bias, bias)
        assert block.scale == 2.5
        assert not block.scale.requires_grad
        block.two.weight[1] = 4
    with whole(block):
        assert block.one.weight[1].tolist() == [4, 4, 4]


def test_one_process_has_nobody_to_share_with(model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match="several processes"):
        shard_blocks(model)


@pytest.mark.parametrize("other", ["model.layers.2.mlp.up_proj", "lm_head"])
def test_parameters_of_two_blocks_are_refused_by_name(
    alone: None, make_model: MakeModel, other: str
) -> None:
    model = make_model("llama")
    own = model.model.layers[0].mlp.up_proj
    model.get_submodule(other).weight = own.weight
    before = dict(model.named_parameters())
    names = rf"'model.layers.0.mlp.up_proj.weight' and '{other}.weight' are one parameter"
    with pytest.raises(InputError, match=names):
        shard_blocks(model)
    assert dict(model.named_parameters()) == before


def test_a_dtype_cannot_change_while_blocks_wait(sharded: PreTrainedModel) -> None:
    sharded.bfloat16()
    with (
        pytest.raises(RuntimeError, match="dtype of a model was changed"),
        whole(sharded.model.layers[0]),
    ):
        pass


def test_weights_that_are_not_finite_are_found(sharded: PreTrainedModel) -> None:
    check_weights(sharded, "tiny")
    with torch.no_grad(), whole(sharded.model.layers[2], edited=True):
        sharded.model.layers[2].mlp.up_proj.weight[3, 3] = torch.nan
    with pytest.raises(InputError, match=r"'model.layers.2.mlp.up_proj.weight' of 'tiny' holds"):
        check_weights(sharded, "tiny")
    with pytest.raises(InputError, match=r"'model.layers.2.mlp.up_proj.weight'"):
        prune(sharded, Magnitude(Unstructured(0.5)))


def test_what_needs_the_whole_model_is_refused(
    sharded: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"`to_semi_structured` needs all .* wait in Shards"):
        to_semi_structured(sharded)
    with pytest.raises(InputError, match=r"^Training needs all weights .* wait in Shards"):
        Masks().hold(sharded, [])
    with pytest.raises(InputError, match=r"^`offload_to` needs all weights .* wait in Shards"):
        prune(sharded, Magnitude(Unstructured(0.5)), offload_to=torch.device("cpu"))
    ids = torch.ones(1, 4, dtype=torch.int64)
    report = prune(sharded, BlockDrop(1), ids, shrink=False)
    with pytest.raises(InputError, match=r"^Writing a model with dropped parts .* in Shards"):
        save_pretrained(sharded, tokenizer, tmp_path / "pruned", report)
    assert not (tmp_path / "pruned").exists()
    with pytest.raises(RuntimeError, match="cannot be copied"):
        copy.deepcopy(sharded)
