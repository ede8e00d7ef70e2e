from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from prunelit import prune, save_pretrained
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, oriented_weight
from prunelit.models.neurons import find_neurons
from prunelit.pruners import Neuron


@pytest.mark.parametrize("ratio", [0.25, 0.4])
def test_neurons_that_matter_least_go(
    family: str,
    make_model: Callable[..., PreTrainedModel],
    padded: dict[str, Tensor],
    read_stream: Callable[..., object],
    ratio: float,
) -> None:
    model = make_model(family)
    block = decoder_blocks(model)[1][0]  # whose inputs no earlier pruning changes
    (mlp,) = find_neurons(block)
    seen: list[Tensor] = []
    real = padded["attention_mask"].bool()
    handle = block.get_submodule(mlp.output).register_forward_pre_hook(
        lambda _m, args: seen.append(args[0].view(*real.shape, -1)[real])
    )
    read_stream(model, padded)
    handle.remove()
    down = oriented_weight(block.get_submodule(mlp.output)).detach().double().numpy().copy()
    scores = np.abs(down).mean(0) * (seen[0].double().numpy() ** 2).mean(0)
    gone = np.argsort(scores)[: round(ratio * len(scores))]
    prune(model, Neuron(ratio), [padded], shrink=False)
    after = oriented_weight(block.get_submodule(mlp.output)).detach().numpy()
    np.testing.assert_array_equal(np.flatnonzero(~after.any(0)), np.sort(gone))
    kept = np.delete(np.arange(len(scores)), gone)
    np.testing.assert_allclose(after[:, kept], down[:, kept], rtol=1e-6)
    for name in mlp.inputs:
        linear = block.get_submodule(name)
        rows = oriented_weight(linear).detach().numpy()
        np.testing.assert_array_equal(np.flatnonzero(~rows.any(1)), np.sort(gone))
        if getattr(linear, "bias", None) is not None:
            assert not linear.bias[torch.from_numpy(gone)].any()


@torch.no_grad()
def test_an_expert_loses_its_own_neurons(
    mixture: str, make_model: Callable[..., PreTrainedModel], padded: dict[str, Tensor]
) -> None:
    dense, pruned = make_model(mixture), make_model(mixture)
    index = 1 if mixture == "deepseek_v3" else 0  # its first block is dense
    seen: list[tuple[Tensor, ...]] = []
    # What it reads comes from a dense block, or from a pruned one before it.
    prune(pruned, Neuron(0.25), [padded], shrink=False)
    for own, other in zip(
        decoder_blocks(dense)[1][:index], decoder_blocks(pruned)[1], strict=False
    ):
        own.load_state_dict(other.state_dict())
    experts = decoder_blocks(dense)[1][index].mlp.experts
    handle = experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    dense(**padded)
    handle.remove()
    ((hidden, chosen, _),) = seen
    real = padded["attention_mask"].flatten().bool()
    after = decoder_blocks(pruned)[1][index].mlp.experts

    def weight(module: Any, tensor: str, expert: int) -> Tensor:
        own = getattr(module, tensor)[expert]
        return own.T if module.is_transposed else own

    reached = [((chosen == expert).any(1) & real) for expert in range(4)]
    between = []
    for expert in range(4):
        bias = experts.gate_up_proj_bias[expert] if experts.has_bias else 0
        x = hidden[reached[expert]]
        between.append(experts._apply_gate(x @ weight(experts, "gate_up_proj", expert).T + bias))
    assert max(map(len, between)) >= 32, "no expert has statistics of its own"
    for expert in range(4):
        read = between[expert] if len(between[expert]) >= 32 else torch.cat(between)
        down = weight(experts, "down_proj", expert).double()
        scores = down.abs().mean(0) * (read.double() ** 2).mean(0)
        gone = scores.argsort()[:8]
        assert sorted(gone.tolist()) == [
            *(~weight(after, "down_proj", expert).any(0)).nonzero().flatten().tolist()
        ]
        rows = weight(after, "gate_up_proj", expert)
        pairs = mixture == "gpt_oss"
        both = torch.cat([2 * gone, 2 * gone + 1] if pairs else [gone, gone + 24])
        assert sorted(both.tolist()) == (~rows.any(1)).nonzero().flatten().tolist()
        if experts.has_bias:
            assert not after.gate_up_proj_bias[expert, both].any()


@torch.no_grad()
def test_a_narrower_mixture_computes_what_the_one_with_zeros_does(
    mixture: str,
    make_model: Callable[..., PreTrainedModel],
    padded: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    zeros, small = make_model(mixture), make_model(mixture)
    # 16 of 24 neurons are left: three quarters, 18, are no multiple of 8.
    prune(zeros, Neuron(0.25), [padded], shrink=False)
    report = prune(small, Neuron(0.25), [padded])
    torch.testing.assert_close(small(**padded).logits, zeros(**padded).logits, rtol=0, atol=1e-5)
    widths = {"24": 16} | {"qwen2_moe": {"40": 30}, "deepseek_v3": {"48": 32}}.get(mixture, {})
    assert report.removed is not None
    assert report.removed["widths"] == widths
    save_pretrained(small, tokenizer, tmp_path / "pruned", report)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert stock(**padded).logits.equal(small(**padded).logits)
    assert sum(p.numel() for p in stock.parameters()) == report.stored_parameters


def test_a_ratio_that_removes_nothing_from_experts_is_told(
    make_model: Callable[..., PreTrainedModel],
) -> None:
    # 24 neurons; 22 would be left, and the next multiple of 8 is 24.
    with pytest.warns(UserWarning, match="removes nothing from MLPs of 24 neurons: .* multiple of"):
        Neuron(0.1).check(make_model("qwen3_moe"))


def test_ratio_of_all_is_refused() -> None:
    with pytest.raises(InputError, match=r"`ratio` in \[0, 1\) but got 1\.0"):
        Neuron(1.0)


@torch.no_grad()
@pytest.mark.parametrize("score", ["activation", "reconstruction"])
def test_other_scores_and_least_squares(
    score: Any, make_model: Callable[..., PreTrainedModel], input_ids: Tensor
) -> None:
    model = make_model("gpt2")  # stores its maps transposed, and has biases
    mlp = decoder_blocks(model)[1][0].mlp
    seen: list[Tensor] = []
    handle = mlp.c_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model(input_ids)
    handle.remove()
    inputs = seen[0].flatten(0, 1).double().numpy()
    weight = oriented_weight(mlp.c_proj).double().numpy().copy()
    prune(model, Neuron(0.01, score=score, compensate=True), input_ids, shrink=False)  # 1 of 128
    after = oriented_weight(mlp.c_proj).double().numpy()

    # Least squares by NumPy: damping is one more row of inputs for each neuron.
    size = np.sqrt(0.01 * (inputs**2).mean())
    rows = np.concatenate([inputs / np.sqrt(len(inputs)), size * np.eye(128)])

    def refit(gone: int) -> np.ndarray:
        kept = np.delete(np.arange(128), gone)
        new = np.zeros_like(weight)
        new[:, kept] = np.linalg.lstsq(rows[:, kept], rows @ weight.T, rcond=None)[0].T
        return new

    if score == "activation":
        gone = int(np.abs(inputs).mean(0).argmin())
    else:
        errors = [((rows @ (weight - refit(index)).T) ** 2).sum() for index in range(128)]
        gone = int(np.argmin(errors))
    assert np.flatnonzero(~after.any(0)).tolist() == [gone]
    np.testing.assert_allclose(after, refit(gone), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_moe", "gpt_oss"])
def test_experts_with_other_scores(
    name: str, make_model: Callable[..., PreTrainedModel], padded: dict[str, Tensor]
) -> None:
    zeros, small = make_model(name), make_model(name)
    options: dict[str, Any] = {"score": "reconstruction", "compensate": True}
    prune(zeros, Neuron(0.25, **options), [padded], shrink=False)
    prune(small, Neuron(0.25, **options), [padded])
    real = padded["attention_mask"].bool()
    found, expected = small(**padded).logits[real], zeros(**padded).logits[real]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    plain = make_model(name)
    prune(plain, Neuron(0.25, score="activation"), [padded])
    before = make_model(name)(**padded).logits[real]
    assert (found - before).square().mean() < (
        plain(**padded).logits[real] - before
    ).square().mean()
