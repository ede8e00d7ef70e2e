"""The report of a pruning against the weights of the model."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import PruningReport, prune
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules
from prunelit.pruners import BlockDrop, Neuron, Pruner, Quantize, SublayerDrop, Wanda
from prunelit.pruning.report import BlockCost, TensorSparsity, block_prefix, find_missing
from prunelit.sparsity import Unstructured

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture
def wanda() -> Wanda:
    return Wanda(Unstructured(0.5))


def test_report_counts_the_zeros_that_are_there(
    make_model: MakeModel, family: str, input_ids: Tensor
) -> None:
    model = make_model(family)
    report = prune(model, Wanda(Unstructured(0.4)), input_ids)
    prefix, blocks = decoder_blocks(model)
    parameters = dict(model.named_parameters())
    matrices = {f"{prefix}.{i}.{n}.weight" for i, b in enumerate(blocks) for n in linear_modules(b)}
    assert {tensor.name for tensor in report.tensors} == matrices
    for tensor in report.tensors:
        weight = parameters[tensor.name]
        assert tensor.shape == list(weight.shape)
        assert tensor.size == weight.numel()
        assert tensor.zeros == (weight == 0).sum()
        assert tensor.sparsity == pytest.approx((weight == 0).double().mean().item())
    zeros = sum(int((parameters[name] == 0).sum()) for name in matrices)
    size = sum(parameters[name].numel() for name in matrices)
    assert report.sparsity == pytest.approx(zeros / size)
    # The requested sparsity, to the nearest weight of every matrix.
    assert abs(report.sparsity - 0.4) * size <= 0.5 * len(matrices)


@pytest.mark.parametrize(
    ("method", "share"),
    [
        # In a block, attention has 2 * 32 * 32 + 2 * 16 * 32 weights, the MLP 3 * 48 * 32.
        (lambda: SublayerDrop(1), 3072 / 3 / 7680),
        (lambda: SublayerDrop(2, "mlp"), 2 * 4608 / 3 / 7680),
        (lambda: BlockDrop(1), 1 / 3),
        (lambda: BlockDrop(2), 2 / 3),
        (lambda: Neuron(0.25), 0.25 * 4608 / 7680),
    ],
)
@pytest.mark.parametrize("shrink", [True, False])
def test_sparsity_of_dropped_parts_is_the_share_of_their_weights(
    method: Callable[[], Pruner],
    share: float,
    shrink: bool,
    model: PreTrainedModel,
    input_ids: Tensor,
) -> None:
    report = prune(model, method(), input_ids, shrink=shrink)
    assert report.sparsity == pytest.approx(share)
    assert report.as_dict()["sparsity"] == report.sparsity
    blocks = report.as_dict()["blocks"]
    assert sum(block["sparsity"] for block in blocks) / 3 == pytest.approx(share)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == (report.stored_parameters if shrink else report.parameters)
    if shrink:
        norms = 64 * sum(t.sparsity == 1 for t in report.tensors if "q_proj" in t.name)
        norms = norms if isinstance(method(), BlockDrop) else 0  # norms go with a whole block
        weights = round(share * 3 * 7680)
        assert report.parameters - report.stored_parameters == weights + norms
        assert report.bytes - report.stored_bytes == 4 * (weights + norms)


def test_sparsity_of_every_tensor_of_a_dropped_sublayer_is_1(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    report = prune(model, SublayerDrop(1), input_ids)
    assert report.removed is not None
    (index,) = report.removed["attention"]
    for tensor in report.tensors:
        gone = tensor.name.startswith(f"model.layers.{index}.self_attn.")
        assert tensor.sparsity == float(gone), tensor


@pytest.mark.parametrize(
    "method", [lambda: Wanda(Unstructured(0.5)), lambda: SublayerDrop(1), lambda: Neuron(0.25)]
)
def test_zeros_of_the_dense_model_are_not_removed(
    method: Callable[[], Pruner], model: PreTrainedModel, input_ids: Tensor
) -> None:
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.q_proj.weight[:8] = 0  # a quarter of it
            block.mlp.up_proj.weight[:, :16] = 0  # half of it
    report = prune(model, method(), input_ids)
    of = {tensor.name: tensor.sparsity for tensor in report.tensors}
    if isinstance(method(), SublayerDrop):
        assert report.removed is not None
        (index,) = report.removed["attention"]
        assert of[f"model.layers.{index}.self_attn.q_proj.weight"] == 1  # all of it is gone
        assert of[f"model.layers.{index}.self_attn.k_proj.weight"] == 1
        assert of[f"model.layers.{index}.mlp.up_proj.weight"] == 0
        assert report.sparsity == pytest.approx(3072 / 3 / 7680)
    elif isinstance(method(), Neuron):
        assert of["model.layers.1.self_attn.q_proj.weight"] == 0
        assert of["model.layers.1.mlp.up_proj.weight"] == 0.25
        assert of["model.layers.1.mlp.down_proj.weight"] == 0.25
    else:
        # Wanda compares within a row, so a row of zeros loses nothing.
        assert of["model.layers.1.self_attn.q_proj.weight"] == 0.375
        assert of["model.layers.1.mlp.up_proj.weight"] == 0
        assert of["model.layers.1.mlp.down_proj.weight"] == 0.5


@pytest.mark.parametrize(
    ("method", "share"),
    [
        (lambda: SublayerDrop(2, "mlp"), 2 * 4608 / 3 / 7680),
        (lambda: BlockDrop(2, consecutive=True), 2 / 3),
        # Ten neurons of which six had no output: they did nothing.
        (lambda: Neuron(10 / 48), 4 / 48 * 4608 / 7680),
    ],
)
def test_neurons_that_had_no_output_count_in_a_dropped_part_only(
    method: Callable[[], Pruner], share: float, model: PreTrainedModel, input_ids: Tensor
) -> None:
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.down_proj.weight[:, ::8] = 0
    assert prune(model, method(), input_ids).sparsity == pytest.approx(share)


def test_rounding_removes_nothing(model: PreTrainedModel, input_ids: Tensor) -> None:
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.up_proj.weight.abs_()[:, 0] = 0  # the lowest level of its group
    zeros = 3 * 48
    report = prune(model, Quantize(2), input_ids)
    assert report.zeros > zeros
    assert report.sparsity == 0


def test_a_later_round_adds_to_the_earlier_ones(model: PreTrainedModel, input_ids: Tensor) -> None:
    dense = find_missing(model, shrinks=True)
    first = prune(model, SublayerDrop(1), input_ids, shrink=False)
    second = prune(model, SublayerDrop(2), input_ids, shrink=False)
    assert second.sparsity == first.sparsity
    both = PruningReport.from_dict(second.as_dict()).recount(model, dense).shrink(model)
    assert both.sparsity == pytest.approx(2 * 3072 / 3 / 7680)
    assert both.recount(model, dense) == both


def test_report_tells_pruned_from_excluded(model: PreTrainedModel, input_ids: Tensor) -> None:
    report = prune(model, Wanda(Unstructured(0.5), exclude=["mlp.*"]), input_ids)
    of = {tensor.name: tensor.sparsity for tensor in report.tensors}
    assert of["model.layers.1.self_attn.q_proj.weight"] == 0.5
    assert of["model.layers.1.mlp.up_proj.weight"] == 0
    # q and o are 32 x 32, k and v 16 x 32, three MLP matrices 48 x 32.
    share = 0.5 * 3072 / (3072 + 3 * 1536)
    assert report.sparsity == pytest.approx(share)
    assert report.block_sparsity("model.layers.1") == pytest.approx(share)


def test_parameters_of_tied_embeddings_count_once(
    model: PreTrainedModel, input_ids: Tensor, wanda: Wanda
) -> None:
    assert model.lm_head.weight is model.model.embed_tokens.weight
    report = prune(model, wanda, input_ids)
    blocks = 3 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 2 * 32)
    assert report.parameters == 300 * 32 + blocks + 32
    # The row of the padding token is drawn like the others, so only pruned weights are 0.
    assert report.zeros == sum(tensor.zeros for tensor in report.tensors)


def test_report_as_json(model: PreTrainedModel, input_ids: Tensor, wanda: Wanda) -> None:
    report = prune(model, wanda, input_ids)
    data = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert data == report.as_dict()
    assert data["sparsity"] == report.sparsity
    assert [block["name"] for block in data["blocks"]] == [f"model.layers.{i}" for i in range(3)]
    assert [block["sparsity"] for block in data["blocks"]] == [0.5] * 3
    assert [block["index"] for block in data["blocks"]] == [0, 1, 2]
    assert all(block["seconds"] > 0 for block in data["blocks"])
    assert all(block["peak_bytes"] > 10_000_000 for block in data["blocks"])
    assert "process" in data["peak_memory"]
    assert all(tensor["sparsity"] == 0.5 for tensor in data["tensors"])
    assert data["versions"]["torch"] == torch.__version__
    assert set(data["versions"]) == {"prunelit", "torch", "transformers", "python"}


def test_longer_numbers_sort_into_their_own_block() -> None:
    tensors = [
        TensorSparsity(f"h.{index}.fc.weight", [2], 2, zeros) for index, zeros in ((1, 1), (10, 2))
    ]
    blocks = [BlockCost(index, 0.1, 1) for index in range(2)]
    report = PruningReport({}, tensors, blocks, "", 4, 3)
    assert report.block_sparsity("h.1") == 0.5
    assert [block["name"] for block in report.as_dict()["blocks"]] == ["h.1", "h.10"]
    assert block_prefix("model.decoder.layers.10.fc1.weight") == "model.decoder.layers.10"


def test_the_report_prints_as_a_table(
    model: PreTrainedModel, input_ids: Tensor, wanda: Wanda
) -> None:
    text = str(prune(model, wanda, input_ids))
    assert "model.layers.2" in text
    assert "0.5000" in text


def test_a_report_is_restored_from_its_plain_data(
    model: PreTrainedModel, input_ids: Tensor, wanda: Wanda
) -> None:
    report = prune(model, wanda, input_ids)
    assert PruningReport.from_dict(report.as_dict()) == report


def test_zeros_are_counted_again_after_training(
    model: PreTrainedModel, input_ids: Tensor, wanda: Wanda
) -> None:
    dense = find_missing(model, shrinks=False)
    report = prune(model, wanda, input_ids)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.fill_(1.0)
    again = report.recount(model, dense)
    assert again.zeros == report.zeros - 48 * 32 // 2
    assert again.block_sparsity("model.layers.0") == 0.5
    zeros = {tensor.name: tensor.zeros for tensor in again.tensors}
    assert zeros["model.layers.1.mlp.up_proj.weight"] == 0
    assert (again.recipe, again.blocks) == (report.recipe, report.blocks)


DROPPED = [
    lambda: SublayerDrop(1),
    lambda: SublayerDrop(1, "mlp"),
    lambda: BlockDrop(1),
    lambda: Neuron(0.25),
]


@pytest.mark.parametrize(
    "method", [*DROPPED, lambda: Wanda(Unstructured(0.5)), lambda: Quantize(4)]
)
@pytest.mark.parametrize("shrink", [True, False])
def test_a_report_knows_its_model_and_its_copy_in_another_dtype(
    method: Callable[[], Pruner], shrink: bool, model: PreTrainedModel, input_ids: Tensor
) -> None:
    report = prune(model, method(), input_ids, shrink=shrink)
    report.check(model)
    report.check(model.to(torch.bfloat16))


def test_a_report_knows_a_model_that_was_trained_under_its_masks(
    model: PreTrainedModel, input_ids: Tensor, wanda: Wanda
) -> None:
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, :3] = 0
    report = prune(model, wanda, input_ids)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3)
    report.masks.apply_(model)
    report.check(model)


@pytest.mark.parametrize("method", DROPPED)
def test_a_report_of_a_smaller_model_refuses_a_model_with_other_parts(
    method: Callable[[], Pruner], make_model: MakeModel, input_ids: Tensor
) -> None:
    model = make_model("llama")
    report = prune(model, method(), input_ids)
    for other in DROPPED:
        wrong = make_model("llama")
        theirs = prune(wrong, other(), input_ids)
        if theirs.removed != report.removed:
            with pytest.raises(InputError, match="it has other parts than those that were left"):
                report.check(wrong)
    for wrong in (make_model("llama"), make_model("gpt2")):
        with pytest.raises(InputError, match="it has other parts than those that were left"):
            report.check(wrong)


def test_an_older_report_is_refused(
    model: PreTrainedModel, input_ids: Tensor, wanda: Wanda
) -> None:
    first = prune(model, wanda, input_ids)
    second = prune(model, Wanda(Unstructured(0.75)), input_ids)
    second.check(model)
    with pytest.raises(InputError, match=r"'model\.layers\.0.*' has \d+ zeros, not \d+\. Give the"):
        first.check(model)
    third = prune(model, BlockDrop(1), input_ids)
    third.check(model)
    with pytest.raises(InputError, match=r"only the report has 'model\.layers\.2"):
        second.check(model)


@pytest.mark.parametrize("plain", [{}, {"tensors": 1}, {"tensors": [], "blocks": [{}]}, None])
def test_other_data_is_no_report(plain: Any) -> None:
    with pytest.raises(InputError, match=r"the data of a pruning report, .* other data \(\S"):
        PruningReport.from_dict(plain)
