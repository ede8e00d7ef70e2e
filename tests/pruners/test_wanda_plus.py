import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules
from prunelit.models.replay import Stream
from prunelit.pruners import OBSUpdate, Wanda, WandaPlus
from prunelit.sparsity import SemiStructured, Sparsity, Unstructured

HALF = Unstructured(0.5)
Arrays = dict[str, np.ndarray]


class Oracle:
    """One block in float64, with the whole model around it, a gradient at a time.

    Args:
        model: its blocks before this one are pruned.
        index: of the block.
        batch: sequences.
    """

    def __init__(self, model: PreTrainedModel, index: int, batch: dict[str, Tensor]) -> None:
        self.model = copy.deepcopy(model).double()
        self.block = decoder_blocks(self.model)[1][index]
        self.maps = linear_modules(self.block)
        self.calls: list[Any] = []
        handle = self.block.register_forward_pre_hook(
            lambda _m, args, kwargs: self.calls.append((args, kwargs)), with_kwargs=True
        )
        self.model.requires_grad_(False)
        for ids, mask in zip(*batch.values(), strict=True):
            self.model(input_ids=ids[mask.bool()][None], use_cache=False)
        handle.remove()

    def output(self, sequence: int, weights: dict[str, Tensor]) -> Tensor:
        args, kwargs = self.calls[sequence]
        output = functional_call(self.block, weights, args, kwargs)
        return output if isinstance(output, Tensor) else output[0]

    def gradient(self, weights: Arrays, loss: Callable[[Tensor], Tensor], sequence: int) -> Arrays:
        """Of a function of the output for a sequence; weights are as the model stores them."""

        def value(own: dict[str, Tensor]) -> Tensor:
            return loss(self.output(sequence, own))

        return numbers(torch.func.grad(value)(tensors(weights)))

    def inputs(self) -> Arrays:
        """Mean squared input of each map."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.maps}
        handles = [
            module.register_forward_pre_hook(lambda _m, args, n=name: found[n].append(args[0][0]))
            for name, module in self.maps.items()
        ]
        for args, kwargs in self.calls:
            self.block(*args, **kwargs)
        for handle in handles:
            handle.remove()
        return {name: torch.cat(x).square().mean(0).detach().numpy() for name, x in found.items()}


def tensors(values: Arrays) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.from_numpy(value) for name, value in values.items()}


def numbers(values: dict[str, Tensor]) -> Arrays:
    return {name.removesuffix(".weight"): value.numpy() for name, value in values.items()}


def removed(scores: np.ndarray, sparsity: Sparsity) -> np.ndarray:
    """True for the half of each row, or of each group of a row, with the lowest scores."""
    group = sparsity.group if isinstance(sparsity, SemiStructured) else scores.shape[1]
    grouped = scores.reshape(len(scores), -1, group)
    rank = grouped.argsort(axis=2).argsort(axis=2)
    return (rank < group // 2).reshape(scores.shape)


def expected_weights(oracle: Oracle, pruner: WandaPlus, transposed: bool) -> Arrays:
    """The method in NumPy; only gradients are those of torch."""
    dense = {name: linear.weight.detach().numpy() for name, linear in oracle.maps.items()}  # type: ignore[union-attr]
    norms, count = oracle.inputs(), len(oracle.calls)
    tokens = sum(args[0].shape[1] for args, _ in oracle.calls)
    squares = [oracle.gradient(dense, lambda y: y.norm(), n) for n in range(count)]
    outputs = [oracle.output(n, tensors(dense)).detach() for n in range(count)]
    weights = {name: weight.copy() for name, weight in dense.items()}
    velocity = {name: np.zeros_like(weight) for name, weight in dense.items()}

    def cut() -> None:
        for name, weight in weights.items():
            gradient = np.sqrt(np.mean([own[name] ** 2 for own in squares], axis=0))
            # Norms over the tokens of a sequence, as those of the gradients.
            norm = np.sqrt(norms[name] * tokens / count)
            norm = norm[:, None] if transposed else norm[None]
            scores = np.abs(weight) * (pruner.alpha * gradient + norm)
            gone = removed(scores.T, pruner.sparsity).T if transposed else None
            weight[removed(scores, pruner.sparsity) if gone is None else gone] = 0

    place = 0
    for _ in range(pruner.repeats):
        cut()
        for _ in range(pruner.samples):
            sequence = place % count
            gradients = oracle.gradient(
                weights, lambda y, n=sequence: ((y - outputs[n]) ** 2).sum(), sequence
            )
            for name, gradient in gradients.items():
                velocity[name] = 0.99 * velocity[name] + 0.01 * gradient**2
                weights[name] -= pruner.learning_rate * gradient / (np.sqrt(velocity[name]) + 1e-8)
            place += 1
    cut()
    return weights


@pytest.mark.parametrize("sparsity", [HALF, SemiStructured(2, 4)], ids=["half", "2:4"])
@pytest.mark.parametrize(("kind", "repeats"), [("llama", 0), ("llama", 2), ("gpt2", 2)])
def test_weights_are_those_of_plain_code(
    kind: str,
    repeats: int,
    sparsity: Sparsity,
    make_model: Callable[..., PreTrainedModel],
    padded: dict[str, Tensor],
) -> None:
    pruner = WandaPlus(sparsity, repeats=repeats, samples=4, learning_rate=1e-3)
    model, dense = make_model(kind), make_model(kind)
    prune(model, pruner, [padded])
    state = model.state_dict()
    prefix, blocks = decoder_blocks(model)
    moved = []
    for index, block in enumerate(blocks):
        oracle = Oracle(dense, index, padded)
        for name, weight in expected_weights(oracle, pruner, kind == "gpt2").items():
            found = state[f"{prefix}.{index}.{name}.weight"].numpy()
            np.testing.assert_array_equal(found == 0, weight == 0, err_msg=f"{index} {name}")
            np.testing.assert_allclose(found, weight, rtol=0, atol=2e-4)
            before = dense.state_dict()[f"{prefix}.{index}.{name}.weight"].numpy()
            moved.append(np.abs(found - before)[found != 0].max())
        decoder_blocks(dense)[1][index].load_state_dict(block.state_dict())
    assert all(size == 0 for size in moved) if repeats == 0 else min(moved) > 1e-3


def test_steps_bring_the_output_nearer(
    make_model: Callable[..., PreTrainedModel], input_ids: Tensor
) -> None:
    def distance(**settings: Any) -> float:
        model = make_model("llama")
        with torch.no_grad():
            expected = model.model(input_ids=input_ids).last_hidden_state
            report = prune(model, WandaPlus(HALF, **settings), input_ids)
            found = model.model(input_ids=input_ids).last_hidden_state
        assert report.sparsity == 0.5
        return float((found - expected).square().mean())

    assert distance(repeats=5, learning_rate=1e-3) < 0.8 * distance(repeats=0)


def test_without_gradients_it_is_wanda(
    make_model: Callable[..., PreTrainedModel], padded: dict[str, Tensor]
) -> None:
    own, other, far = (make_model("llama") for _ in range(3))
    prune(own, WandaPlus(HALF, alpha=0, repeats=0), [padded])
    prune(other, Wanda(HALF), [padded], batch_size=1)
    prune(far, WandaPlus(HALF, repeats=0), [padded])
    for name, weight in own.state_dict().items():
        assert weight.equal(other.state_dict()[name]), name
    weights = far.state_dict()
    assert any(not weight.equal(weights[name]) for name, weight in own.state_dict().items())


def test_what_is_left_out_keeps_its_bits(
    make_model: Callable[..., PreTrainedModel], input_ids: Tensor
) -> None:
    model, dense = make_model("qwen2_moe"), make_model("qwen2_moe")
    exclude = ["self_attn.*", "mlp.experts.down_proj.1"]
    pruner = WandaPlus(HALF, exclude=exclude, repeats=1, samples=2, learning_rate=1e-3)
    prune(model, pruner, input_ids)
    for own, other in zip(*(decoder_blocks(one)[1] for one in (model, dense)), strict=True):
        for name, weight in own.named_parameters():
            same = (
                weight.flatten(1) == other.get_parameter(name).flatten(1)
                if weight.ndim > 1
                else weight == other.get_parameter(name)
            )
            if name == "mlp.experts.down_proj":
                assert same.all(1).tolist() == [False, True, False, False]
            elif name == "mlp.experts.gate_up_proj" or "shared_expert." in name:
                assert not same.any(-1).all()
            else:
                assert same.all(), name


def test_a_narrow_model_is_fitted_in_float32(
    family: str, make_model: Callable[..., PreTrainedModel], padded: dict[str, Tensor]
) -> None:
    model = make_model(family).bfloat16()
    seen: set[torch.dtype] = set()
    block = decoder_blocks(model)[1][0]
    next(iter(linear_modules(block).values())).register_forward_pre_hook(
        lambda _m, args: seen.add(args[0].dtype)
    )
    pruner = WandaPlus(HALF, repeats=1, samples=2, learning_rate=1e-2)
    with torch.inference_mode():
        report = prune(model, pruner, [padded])
    assert seen == {torch.bfloat16, torch.float32}
    for tensor in report.tensors:
        assert tensor.zeros == math.ceil(0.5 * tensor.size - 0.5) or tensor.kind != "linear"
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in block.parameters() if weight.grad is not None)


def test_it_has_no_update_of_another_method() -> None:
    with pytest.raises(InputError, match="use it alone"):
        OBSUpdate(WandaPlus(HALF))


@pytest.mark.parametrize(
    "settings",
    [{"alpha": -1}, {"alpha": float("nan")}, {"repeats": -1}, {"samples": 0}, {"learning_rate": 0}],
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=f"`{name}`"):
        WandaPlus(HALF, **settings)


def test_the_passes_that_a_dry_run_counts(
    make_model: Callable[..., PreTrainedModel], input_ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, runs = make_model("llama"), 0
    run = Stream.run_in_float32

    def count(stream: Stream, block: nn.Module, index: int) -> Tensor:
        nonlocal runs
        runs += 1
        return run(stream, block, index)

    monkeypatch.setattr(Stream, "run_in_float32", count)
    pruner = WandaPlus(Unstructured(0.5), repeats=2, samples=3)
    prune(model, pruner, input_ids)
    assert 3 * runs == pruner.replayed(len(input_ids)) * len(model.model.layers)


def test_steps_that_diverge_are_refused(
    make_model: Callable[..., PreTrainedModel], input_ids: Tensor
) -> None:
    pruner = WandaPlus(Unstructured(0.5), samples=4, learning_rate=1e18)
    with pytest.raises(InputError, match=r"`learning_rate` 1e\+18 do not: make it smaller"):
        prune(make_model("llama"), pruner, input_ids)
