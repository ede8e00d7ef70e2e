from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunelit import load_pretrained, prune, save_pretrained
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.pruners import Heads, Neuron, Sequence, Wanda
from prunelit.sparsity import Unstructured

from .smaller import check_smaller

MakeModel = Callable[..., PreTrainedModel]
NO_WIDTH = ("gpt2", "opt", "gpt_neox")  # of a head


def output_map(block: Any) -> torch.nn.Linear:
    return block.self_attn.o_proj if hasattr(block.self_attn, "o_proj") else block.self_attn.dense


@torch.no_grad()
def check_exact(
    name: str, make_model: MakeModel, padded: dict[str, Tensor], tokenizer: Any, folder: Path
) -> None:
    """Compare a model with fewer heads with the one in which they are 0, and with its folder."""
    zeros, small = make_model(name), make_model(name)
    for model in (zeros, small):  # biases and sinks are drawn as 0 or 1
        generator = torch.Generator().manual_seed(2)
        for own in decoder_blocks(model)[1].parameters():
            if own.ndim < 2:
                own.add_(0.1 * torch.randn(own.shape, generator=generator))
    prune(zeros, Heads(), [padded], shrink=False)
    report = prune(small, Heads(), [padded])
    heads, groups = (3, 3) if name in ("phi", "deepseek_v3") else (2, 1)
    assert report.removed is not None
    assert report.removed["heads"] == {"num_attention_heads": heads, "num_key_value_heads": groups}
    check_smaller(zeros, small, report, padded, tokenizer, folder, atol=2e-5)


def test_what_remains_is_the_model_with_zeros(
    family: str,
    make_model: MakeModel,
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    if family in NO_WIDTH:
        with pytest.raises(InputError, match="no width of a head of its own"):
            prune(make_model(family), Heads(), [padded])
    else:
        check_exact(family, make_model, padded, tokenizer, tmp_path)


def test_what_remains_of_a_mixture(
    mixture: str,
    make_model: MakeModel,
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    check_exact(mixture, make_model, padded, tokenizer, tmp_path)


@pytest.mark.parametrize("name", ["qwen3", "phi"])
def test_heads_that_give_least_go(
    name: str, make_model: MakeModel, padded: dict[str, Tensor]
) -> None:
    model = make_model(name)
    block = decoder_blocks(model)[1][0]  # whose inputs no earlier pruning changes
    seen: list[Tensor] = []
    handle = output_map(block).register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with torch.no_grad():
        positions = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
        model(**padded, position_ids=positions)
    handle.remove()
    real = padded["attention_mask"].bool()
    norms = np.linalg.norm(seen[0][real].double().numpy().reshape(-1, 4, 8), axis=2).mean(0)
    groups = norms if name == "phi" else norms.reshape(2, 2).sum(1)
    before = output_map(block).weight.detach().clone()
    prune(model, Heads(count=1, score="activation", compensate=False), [padded], shrink=False)
    size = 32 // len(groups)
    gone = int(groups.argmin())
    before[:, gone * size : (gone + 1) * size] = 0
    assert output_map(block).weight.equal(before)


def test_the_others_make_up_for_them(make_model: MakeModel, padded: dict[str, Tensor]) -> None:
    def error(**options: Any) -> float:
        dense, pruned = make_model("phi"), make_model("phi")
        prune(pruned, Heads(count=2, **options), [padded], shrink=False)
        blocks = [decoder_blocks(model)[1][0] for model in (dense, pruned)]
        seen: list[Tensor] = []
        for block in blocks:
            block.self_attn.register_forward_hook(lambda _m, _args, out: seen.append(out[0]))
        with torch.no_grad():
            dense(**padded), pruned(**padded)
        real = padded["attention_mask"].bool()
        return float((seen[0] - seen[1])[real].square().sum())

    best = error()
    assert best < error(score="activation", compensate=True)
    assert error(score="activation", compensate=True) < error(score="activation", compensate=False)


def test_rounds_and_neurons_reach_one_smaller_model(
    make_model: MakeModel, padded: dict[str, Tensor], tokenizer: Any, tmp_path: Path
) -> None:
    model = make_model("phi")
    pruner = Heads(count=2)
    prune(model, pruner.scale(0.5), [padded], shrink=False)
    first = [~output_map(block).weight.any(0) for block in decoder_blocks(model)[1]]
    assert [int(one.sum()) for one in first] == [8, 8, 8]
    prune(model, pruner, [padded], shrink=False)
    second = [~output_map(block).weight.any(0) for block in decoder_blocks(model)[1]]
    assert [int(one.sum()) for one in second] == [16, 16, 16]
    assert all((two | ~one).all() for one, two in zip(first, second, strict=True))
    report = prune(model, Neuron(0.25), [padded])
    assert report.removed is not None
    assert report.removed["widths"] == {"48": 36}
    assert report.removed["heads"] == {"num_attention_heads": 2, "num_key_value_heads": 2}
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    again, _ = load_pretrained(str(tmp_path / "pruned"))
    with torch.no_grad():
        assert again(**padded).logits.equal(model(**padded).logits)


def test_only_the_last_round_needs_a_number_that_the_class_takes(input_ids: Tensor) -> None:
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=8,
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="does not take 6 of 8 heads"):
        prune(model, Heads(count=2), input_ids)
    for fraction in (0.5, 1):
        prune(model, Heads(count=4).scale(fraction), input_ids, shrink=False)
        gone = ~model.model.layers[0].self_attn.o_proj.weight.any(0)
        assert int(gone.sum()) == 16 * fraction


def test_weights_that_an_earlier_method_removed_stay_zero(
    make_model: MakeModel, input_ids: Tensor
) -> None:
    wanda, heads = make_model("phi"), make_model("phi")
    prune(wanda, Wanda(Unstructured(0.5)), input_ids)
    methods = Sequence([Wanda(Unstructured(0.5)), Heads(count=2)])
    report = prune(heads, methods, input_ids, shrink=False)
    for one, other in zip(decoder_blocks(wanda)[1], decoder_blocks(heads)[1], strict=True):
        assert not (output_map(other).weight[output_map(one).weight == 0]).any()
        assert not output_map(other).weight.equal(output_map(one).weight)
    report.check(heads)


def test_a_ratio_removes_at_least_one_group_and_zero_none() -> None:
    assert [Heads(ratio)._number(8) for ratio in (0, 0.01, 0.25, 0.99)] == [0, 1, 2, 7]
    assert [Heads(count=4).scale(part)._number(8) for part in (0.1, 0.5, 1)] == [0, 2, 4]


def test_options_are_checked(model: PreTrainedModel, input_ids: Tensor) -> None:
    with pytest.raises(InputError, match=r"`ratio` in \[0, 1\) but got 1\.0"):
        Heads(1.0)
    with pytest.raises(InputError, match="`count` of at least 0 but got -1"):
        Heads(count=-1)
    with pytest.raises(InputError, match="`damping` above 0 but got 0"):
        Heads(damping=0)
    with pytest.raises(InputError, match="`count` below the 2 groups of heads of the model"):
        prune(model, Heads(count=2), input_ids)


def test_heads_are_found_before_they_are_watched(model: PreTrainedModel) -> None:
    pruner, block = Heads(0.5), model.model.layers[0]
    with pytest.raises(RuntimeError, match="Expected `check` before `watch`"):
        pruner.watch(block)
    pruner.check(model)
    assert pruner.watch(block).keys() == {"self_attn.o_proj"}
