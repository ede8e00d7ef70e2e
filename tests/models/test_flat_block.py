"""Runs of bytes; `tests/models/test_shards.py` and `test_streaming.py` let blocks wait as such."""

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.flat_block import FlatBlock, check_flat, new_run


@pytest.fixture
def block() -> nn.Module:
    """Two numbers of 2 bytes, and 20 of 4 bytes that two places share, with rows that are columns.

    They begin at bytes 0 and 64.
    """
    block = nn.Module()
    block.scale = nn.Parameter(torch.tensor([1.5, 2.5], dtype=torch.bfloat16))
    block.one = nn.Linear(5, 4, bias=False)
    block.one.weight = nn.Parameter(torch.arange(20.0).view(4, 5).T)
    block.two = nn.Linear(5, 4, bias=False)
    block.two.weight = block.one.weight
    return block


def test_a_part_of_the_bytes_is_copied(block: nn.Module) -> None:
    flat = FlatBlock(block.modules())
    assert (flat.size, flat.itemsize) == (64 + 128, 2)
    assert flat.layout == [((2,), torch.bfloat16), ((5, 4), torch.float32)]
    run = torch.zeros(flat.size, dtype=torch.uint8)
    flat.copy_into(run)
    assert run[:4].view(torch.bfloat16).tolist() == [1.5, 2.5]
    assert torch.equal(run[64:144].view(torch.float32).view(5, 4), block.one.weight)
    for low in (0, 64, 128):
        part = torch.zeros(64, dtype=torch.uint8)
        flat.copy_into(part, low)
        assert torch.equal(part, run[low : low + 64])


def test_a_block_goes_and_comes(block: nn.Module) -> None:
    before, values = block.one.weight, block.one.weight.detach().clone()
    flat = FlatBlock(block.modules())
    run = new_run(flat.size).zero_()
    flat.copy_into(run)
    flat.hide()
    assert block.one.weight is block.two.weight
    assert block.one.weight.is_meta
    assert block.one.weight.shape == (5, 4)
    block.one.weight.requires_grad_(False)
    flat.show(run)
    assert block.one.weight is block.two.weight is before
    assert not before.requires_grad
    assert torch.equal(before, values)
    assert before.data_ptr() % 64 == 0


@pytest.mark.parametrize("size", [0, 1, 3 * 2**20])
def test_new_memory_is_aligned_and_can_be_written(size: int) -> None:
    run = new_run(size).fill_(7)
    assert run.shape == (size,)
    assert run.data_ptr() % 64 == 0
    assert run.eq(7).all()


class Packed(Tensor):
    """A tensor of another class, as a quantised one."""


def test_a_quantised_weight_is_refused_by_name(model: PreTrainedModel) -> None:
    check_flat(model)
    up = model.model.layers[1].mlp.up_proj
    up.weight = nn.Parameter(up.weight.detach().as_subclass(Packed))
    name = r"'model.layers.1.mlp.up_proj.weight' is a Packed"
    with pytest.raises(InputError, match=name):
        check_flat(model)
