"""Modules in the place of sublayers that were left out."""

import torch
from torch import Tensor, nn
from transformers import DynamicCache, FalconH1Config, PreTrainedModel

from prunelit.models.absent import filled, find_returns, zeroed
from prunelit.models.architecture import decoder_blocks
from prunelit.models.without_sublayers import Absent


class Adds(nn.Module):
    """A sublayer that adds the residual itself, as in Bloom."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, hidden: Tensor, residual: Tensor, scale: float = 1.0) -> tuple:
        return self.map(hidden) * scale + residual, None, "weights"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.adds, self.plain, self.wide = Adds(), nn.Linear(4, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.adds(x / 2, residual=x)[0]) + self.wide(x).sum(-1, keepdim=True)


@torch.no_grad()
def test_it_returns_what_the_module_returned_without_weights() -> None:
    block, x = Block(), torch.randn(2, 3, 4)
    parts = ("adds", "plain", "wide")
    with zeroed(block, parts), find_returns(block, parts) as found:
        expected = block(x)
    assert found == {"adds": "residual, None, None", "plain": "zeros", "wide": "zeros 6"}
    for name in parts:
        own = block.get_submodule(name)
        setattr(block, name, Absent("mlp", found[name], own))
    assert block(x).equal(expected)
    assert block.adds(x, x + 1)[0].equal(x + 1)  # the argument by its place
    assert block.wide(x).equal(torch.zeros(2, 3, 6))
    assert list(block.parameters()) == []


def test_one_value_in_a_tuple() -> None:
    absent = Absent("mlp", "zeros,", nn.Linear(2, 2))
    (only,) = absent(torch.ones(1, 2))
    assert only.equal(torch.zeros(1, 2))


@torch.no_grad()
def test_weights_come_back(model: PreTrainedModel) -> None:
    block = decoder_blocks(model)[1][0]
    before = {name: value.clone() for name, value in block.state_dict().items()}
    with filled(block, ("mlp",), 2.0):
        assert block.mlp.up_proj.weight.unique().tolist() == [2.0]
        assert block.self_attn.q_proj.weight.equal(before["self_attn.q_proj.weight"])
    assert all(value.equal(before[name]) for name, value in block.state_dict().items())


def test_a_cache_counts_the_tokens_and_keeps_nothing_else() -> None:
    config = FalconH1Config(num_hidden_layers=2, hidden_size=32, num_attention_heads=4)
    for cache in (DynamicCache(), DynamicCache(config=config)):
        original = nn.Linear(4, 4)
        absent = Absent("mixer", "zeros", original, 0)
        for length in (3, 1):
            absent(torch.ones(2, length, 4), past_key_values=cache)
        assert cache.get_seq_length() == 4
        layer = cache.layers[0]
        assert layer.keys.shape == layer.values.shape == (2, 1, 4, 1)
        if hasattr(layer, "conv_states"):
            assert cache.has_previous_state(0)
            assert layer.conv_states[0].numel() == 2
    silent = Absent("mixer", "zeros", original)
    silent(torch.ones(2, 3, 4), past_key_values=cache)
    assert cache.get_seq_length() == 4
