"""Weight methods inside fused experts against a plain loop over the experts."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit import PruningReport, prune
from prunelit.allocation import OWL, LinearDepth
from prunelit.models.architecture import decoder_blocks
from prunelit.models.stores import each_whole
from prunelit.models.streaming import stream
from prunelit.pruners import (
    ADMM,
    RIA,
    DSnoT,
    LinearPruner,
    Magnitude,
    OBSUpdate,
    Quantize,
    Random,
    SparseFW,
    SparseGPT,
    Wanda,
    WandaPlus,
)
from prunelit.report.tables import sparsity_sentence
from prunelit.sparsity import SemiStructured, Unstructured

MakeModel = Callable[..., PreTrainedModel]
Batch = dict[str, Tensor]
TENSORS = ("gate_up_proj", "down_proj")


def experts_of(block: nn.Module) -> Any:
    return getattr(block.mlp, "experts", None)


def oriented(experts: Any, tensor: str, index: int) -> Tensor:
    """(O, I)."""
    weight = getattr(experts, tensor).detach()[index]
    return weight.T if experts.is_transposed else weight


@torch.no_grad()
def inputs_of(model: PreTrainedModel, index: int, batch: Batch) -> dict[str, list[Tensor]]:
    """What each expert of a block reads, without padding: (N, I) by tensor and expert."""
    seen: list[tuple[Tensor, ...]] = []
    block = decoder_blocks(model)[1][index]
    handle = block.mlp.experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    model(**batch)
    handle.remove()
    ((hidden, chosen, _),) = seen
    experts, real = block.mlp.experts, batch["attention_mask"].flatten().bool()
    found: dict[str, list[Tensor]] = {tensor: [] for tensor in TENSORS}
    for expert in range(4):
        reached = (chosen == expert).any(1) & real
        x = hidden[reached]
        bias = experts.gate_up_proj_bias[expert] if experts.has_bias else 0
        between = experts._apply_gate(x @ oriented(experts, "gate_up_proj", expert).T + bias)
        found["gate_up_proj"].append(x)
        found["down_proj"].append(between)
    return found


def half_pruned(dense: PreTrainedModel, pruned: PreTrainedModel, index: int) -> PreTrainedModel:
    """The dense model with the pruned blocks before one."""
    model = copy.deepcopy(dense)
    for mine, theirs in zip(
        decoder_blocks(model)[1][:index], decoder_blocks(pruned)[1], strict=False
    ):
        mine.load_state_dict(theirs.state_dict())
    return model


def pooled(inputs: list[Tensor], least: int) -> list[np.ndarray]:
    """Inputs of each expert in float64; of all experts where an expert has few."""
    everything = torch.cat(inputs)
    return [(x if len(x) >= least else everything).double().numpy() for x in inputs]


@pytest.mark.parametrize("least", [1, 50])
def test_masks_of_wanda_are_those_of_a_loop_over_the_experts(
    mixture: str, least: int, make_model: MakeModel, padded: Batch
) -> None:
    dense, pruned = make_model(mixture), make_model(mixture)
    report = prune(pruned, Wanda(Unstructured(0.5), expert_tokens=least), [padded])
    short = compared = 0
    for index, block in enumerate(decoder_blocks(pruned)[1]):
        if experts_of(block) is None:
            continue
        before = half_pruned(dense, pruned, index)
        inputs = inputs_of(before, index, padded)
        short += sum(len(x) < least for x in inputs["down_proj"])
        for tensor in TENSORS:
            for expert, x in enumerate(pooled(inputs[tensor], least)):
                own = experts_of(decoder_blocks(before)[1][index])
                weight = oriented(own, tensor, expert).double().numpy()
                scores = np.abs(weight) * np.sqrt((x**2).mean(0))
                lowest = np.argsort(scores, axis=1)[:, : weight.shape[1] // 2]
                expected = weight.copy()
                np.put_along_axis(expected, lowest, 0, axis=1)
                found = oriented(experts_of(block), tensor, expert).numpy()
                assert np.array_equal(found, expected.astype(np.float32)), (index, tensor, expert)
                compared += 1
    blocks = 2 if mixture == "deepseek_v3" else 3
    assert compared == blocks * 4 * 2
    assert report.experts is not None
    assert report.experts["experts"] == blocks * 4
    assert report.experts["pooled"] == short
    assert (short > 0) == (least == 50)


@pytest.mark.parametrize(
    "method",
    [
        lambda: SparseGPT(Unstructured(0.5), expert_tokens=1),
        lambda: SparseGPT(SemiStructured(2, 4), expert_tokens=1),
        lambda: RIA(Unstructured(0.4), expert_tokens=1),
        lambda: OBSUpdate(Wanda(Unstructured(0.5), expert_tokens=1)),
        lambda: Wanda(Unstructured(0.5), variant=True, expert_tokens=1),
        # Few iterations: more of them amplify the rounding of the Gram matrix where weights tie.
        lambda: ADMM(Unstructured(0.5), iterations=10, expert_tokens=1),
        lambda: SparseFW(Unstructured(0.5), expert_tokens=1),
        lambda: DSnoT(Unstructured(0.5), expert_tokens=1),
    ],
    ids=["sparsegpt", "sparsegpt-2:4", "ria", "obs", "variant", "admm", "sparse-fw", "dsnot"],
)
def test_each_expert_is_pruned_as_a_matrix_of_its_own(
    mixture: str, method: Callable[[], LinearPruner], make_model: MakeModel, padded: Batch
) -> None:
    dense, pruned = make_model(mixture), make_model(mixture)
    prune(pruned, method(), [padded])
    inputs = inputs_of(half_pruned(dense, pruned, 2), 2, padded)
    own, found = (experts_of(decoder_blocks(model)[1][2]) for model in (dense, pruned))
    pruner = method()
    pruner.sparsity = pruner.sparsity.with_default(pruner.within)
    for tensor in TENSORS:
        for expert, x in enumerate(inputs[tensor]):
            weight = oriented(own, tensor, expert)
            statistic = pruner.statistic(nn.Linear(*weight.T.shape))
            assert statistic is not None
            statistic.update(x)
            expected = pruner.prune_weight(weight, statistic)
            torch.testing.assert_close(oriented(found, tensor, expert), expected)
            assert torch.equal(oriented(found, tensor, expert) == 0, expected == 0)


def test_each_expert_has_the_gradients_of_its_own_tokens(
    mixture: str, make_model: MakeModel, padded: Batch
) -> None:
    dense, pruned = make_model(mixture), make_model(mixture)
    prune(pruned, WandaPlus(Unstructured(0.5), repeats=0, expert_tokens=1), [padded])
    model = half_pruned(dense, pruned, 2)
    inputs, own = inputs_of(model, 2, padded), experts_of(decoder_blocks(model)[1][2])
    outputs: list[Any] = []
    decoder_blocks(model)[1][2].register_forward_hook(lambda _m, _a, out: outputs.append(out))
    squares = dict.fromkeys(TENSORS, 0.0)
    for ids, mask in zip(*padded.values(), strict=True):
        model(input_ids=ids[mask.bool()][None])
        output = outputs[-1] if isinstance(outputs[-1], Tensor) else outputs[-1][0]
        model.zero_grad()
        output.square().sum().sqrt().backward()
        squares = {name: sum_ + getattr(own, name).grad ** 2 for name, sum_ in squares.items()}
    for tensor in TENSORS:
        setattr(own, tensor, nn.Parameter(squares[tensor]))
    before = experts_of(decoder_blocks(half_pruned(dense, pruned, 2))[1][2])
    found = experts_of(decoder_blocks(pruned)[1][2])
    for tensor in TENSORS:
        for expert, x in enumerate(inputs[tensor]):
            gradient = oriented(own, tensor, expert).sqrt()  # against the sum over the same tokens
            weight = oriented(before, tensor, expert)
            scores = weight.abs() * (100 * gradient + x.square().sum(0).sqrt())
            half = scores.shape[1] // 2
            lowest = scores.argsort(dim=1)[:, :half].sort(dim=1).values
            gone = oriented(found, tensor, expert) == 0
            assert torch.equal(gone.nonzero()[:, 1].view(-1, half), lowest), (tensor, expert)


def every_matrix(model: PreTrainedModel) -> dict[tuple[int, str, int], Tensor]:
    """(O, I) by block, tensor and expert."""
    return {
        (index, tensor, expert): oriented(experts, tensor, expert).clone()
        for index, block in enumerate(each_whole(decoder_blocks(model)[1]))
        if (experts := experts_of(block)) is not None
        for tensor in TENSORS
        for expert in range(4)
    }


@pytest.mark.parametrize("method", [Magnitude, Random])
def test_methods_without_data_prune_each_expert(
    mixture: str, method: type[LinearPruner], make_model: MakeModel
) -> None:
    model = make_model(mixture)
    before = every_matrix(model)
    report = prune(model, method(Unstructured(0.25)))
    for key, weight in every_matrix(model).items():
        gone = weight == 0
        assert gone.sum() == weight.numel() // 4
        assert torch.equal(weight[~gone], before[key][~gone])
        if method is Magnitude:
            assert before[key][gone].abs().max() < weight[~gone].abs().min()
    assert report.experts is None


def test_each_expert_is_rounded_as_a_matrix(mixture: str, make_model: MakeModel) -> None:
    model = make_model(mixture)
    before = every_matrix(model)
    pruner = Quantize(bits=2, group=5)
    prune(model, pruner)
    for key, weight in every_matrix(model).items():
        assert torch.equal(weight, pruner.prune_weight(before[key], None))  # type: ignore[arg-type]


def test_one_threshold_over_experts_and_other_matrices(make_model: MakeModel) -> None:
    model = make_model("qwen2_moe")
    before = {name: value.clone() for name, value in model.named_parameters()}
    report = prune(model, Magnitude(Unstructured(0.3, within="model")))
    weights = {t.name: model.get_parameter(t.name) for t in report.tensors if t.kind == "linear"}
    gone = torch.cat([(weight == 0).flatten() for weight in weights.values()])
    size = torch.cat([before[name].flatten().abs() for name in weights])
    assert gone.sum() == round(0.3 * len(gone))
    assert size[gone].max() < size[~gone].min()


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"mlp.experts.*": 0.25}, lambda tensor, expert: 0.25),
        ({"mlp.experts.down_proj": 0.25}, lambda tensor, expert: 0.5 - 0.25 * (tensor[0] == "d")),
        ({"*.2": 0.25, "mlp.*": 0.75}, lambda tensor, expert: 0.25 if expert == 2 else 0.75),
    ],
)
def test_patterns_give_ratios_to_tensors_and_to_experts(
    patterns: dict[str, float],
    expected: Callable[[str, int], float],
    make_model: MakeModel,
) -> None:
    model = make_model("gpt_oss")
    prune(model, Magnitude(Unstructured(0.5), ratios=patterns))
    for (_, tensor, expert), weight in every_matrix(model).items():
        assert (weight == 0).double().mean() == pytest.approx(expected(tensor, expert), abs=1e-3)
    assert (decoder_blocks(model)[1][0].self_attn.o_proj.weight == 0).double().mean() == 0.5


@pytest.mark.parametrize("allocation", [lambda: OWL(outlier=3.0), lambda: LinearDepth(0.1)])
def test_an_allocation_keeps_the_total(
    allocation: Callable[[], Any], make_model: MakeModel, padded: Batch
) -> None:
    model = make_model("mixtral")
    pruner = Wanda(Unstructured(0.5), allocation=allocation())
    report = prune(model, pruner, [padded])
    linear = [tensor for tensor in report.tensors if tensor.kind == "linear"]
    assert sum(t.zeros for t in linear) == round(0.5 * sum(t.size for t in linear))
    assert len({round(report.block_sparsity(f"model.layers.{i}"), 2) for i in range(3)}) > 1


def test_a_pattern_may_match_in_some_blocks_only(make_model: MakeModel, padded: Batch) -> None:
    model = make_model("deepseek_v3")
    dense = copy.deepcopy(model)
    report = prune(model, Wanda(Unstructured(0.5), include=["mlp.experts.*"]), [padded])
    changed = {t.name for t in report.tensors if t.zeros}
    assert changed == {
        f"model.layers.{i}.mlp.experts.{tensor}" for i in (1, 2) for tensor in TENSORS
    }
    first = decoder_blocks(dense)[1][0].state_dict()
    for name, value in decoder_blocks(model)[1][0].state_dict().items():
        assert torch.equal(value, first[name])
    # An allocation of blocks that have nothing to prune.
    owl = Wanda(Unstructured(0.5), include=["mlp.experts.*"], allocation=OWL(outlier=3.0))
    report = prune(dense, owl, [padded])
    sizes = [(t.zeros, t.size) for t in report.tensors if ".experts." in t.name]
    assert sum(zeros for zeros, _ in sizes) == round(0.5 * sum(size for _, size in sizes))


def test_a_router_is_pruned_if_a_pattern_names_nothing_else(
    make_model: MakeModel, padded: Batch
) -> None:
    model = make_model("qwen2_moe")
    report = prune(model, Wanda(Unstructured(0.5), include=["*", "mlp.gate"]), [padded])
    of = {t.name: t.sparsity for t in report.tensors}
    assert of["model.layers.1.mlp.gate.weight"] == 0.5
    assert of["model.layers.1.mlp.shared_expert_gate.weight"] == 0
    assert of["model.layers.1.mlp.experts.down_proj"] == 0.5
    assert report.left_out.keys() == {"gate"}
    model = make_model("qwen2_moe")
    report = prune(model, Wanda(Unstructured(0.5), include=["mlp.*gate"]), [padded])
    changed = {t.name for t in report.tensors if t.zeros}
    assert {name.partition("mlp.")[2] for name in changed} == {
        "gate.weight", "shared_expert_gate.weight",
    }  # fmt: skip


def test_the_number_of_batches_changes_nothing(make_model: MakeModel, input_ids: Tensor) -> None:
    one, six = make_model("gpt_oss"), make_model("gpt_oss")
    reports = [
        prune(m, Wanda(Unstructured(0.5)), input_ids, batch_size=b) for m, b in ((one, 6), (six, 1))
    ]
    assert reports[0].experts == reports[1].experts
    for key, weight in every_matrix(one).items():
        assert torch.equal(weight, every_matrix(six)[key])


def test_rounds_only_add(make_model: MakeModel, padded: Batch) -> None:
    model = make_model("qwen3_moe")
    pruner = Wanda(Unstructured(0.5))
    first = prune(model, pruner.scale(0.5), [padded])
    masks = copy.deepcopy(first.masks)
    second = prune(model, pruner, [padded])
    masks.merge(second.masks)
    for (index, tensor, expert), weight in every_matrix(model).items():
        assert (weight == 0).double().mean() == 0.5
        kept = masks[f"model.layers.{index}.mlp.experts.{tensor}"][expert]
        assert torch.equal(kept, weight != 0)


@pytest.mark.parametrize("train", ["eager", "grouped_mm"])
def test_masks_hold_fused_tensors_in_training(
    mixture: str, train: str, make_model: MakeModel, input_ids: Tensor
) -> None:
    model = make_model(mixture)
    model.set_experts_implementation(train)
    report = prune(model, Wanda(Unstructured(0.5)), input_ids)
    before = every_matrix(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    report.masks.hold(model, [optimizer])
    for _ in range(2):
        model(input_ids, labels=input_ids).loss.backward()
        optimizer.step()
    report.masks.check(model)
    moved = 0
    for key, weight in every_matrix(model).items():
        assert torch.equal(weight == 0, before[key] == 0)
        moved += not torch.equal(weight, before[key])
    assert moved > len(before) / 2


def test_blocks_that_wait_in_files(make_model: MakeModel, padded: Batch) -> None:
    here, away = make_model("deepseek_v3"), make_model("deepseek_v3")
    stream(away)
    pruner = Wanda(Unstructured(0.5), allocation=OWL(outlier=3.0))
    reports = [prune(model, pruner, [padded]) for model in (here, away)]
    assert reports[0].tensors == reports[1].tensors
    for key, weight in every_matrix(here).items():
        assert torch.equal(weight, every_matrix(away)[key])


def test_a_block_of_another_dtype(make_model: MakeModel, padded: Batch) -> None:
    model = make_model("gpt_oss").bfloat16()
    report = prune(model, Wanda(Unstructured(0.5)), [padded])
    assert all(t.sparsity == 0.5 for t in report.tensors if t.kind == "linear")


def test_the_report_knows_fused_tensors_and_what_was_left(
    mixture: str, make_model: MakeModel, padded: Batch
) -> None:
    model = make_model(mixture)
    report = prune(model, Wanda(Unstructured(0.5)), [padded])
    parameters = dict(model.named_parameters())
    names = {t.name for t in report.tensors}
    assert {f"model.layers.2.mlp.experts.{tensor}" for tensor in TENSORS} <= names
    for tensor in report.tensors:
        weight = parameters[tensor.name]
        assert (tensor.shape, tensor.zeros) == (list(weight.shape), int((weight == 0).sum()))
    blocks = [value for name, value in parameters.items() if name in names]
    size = sum(value.numel() for value in blocks)
    routers = sum(
        v.numel() for n, v in parameters.items() if n.endswith(("gate.weight", "router.weight"))
    )
    assert report.sparsity == pytest.approx(0.5 * (size - routers) / size)
    assert sum(report.left_out.values()) == pytest.approx(routers / size)
    assert sparsity_sentence(report.as_dict()).startswith(
        f"Achieved sparsity {report.sparsity:.4f} of the weights in all blocks; left dense: routers"
    )
    report.check(model)
    assert PruningReport.from_dict(report.as_dict()) == report
