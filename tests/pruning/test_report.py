"""The report of a pruning against the weights of the model."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import PruningReport, prune
from prunelit.models.architecture import decoder_blocks, linear_modules
from prunelit.pruners import Wanda
from prunelit.pruning.report import BlockCost, TensorSparsity, block_prefix
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
    report = prune(model, wanda, input_ids)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.fill_(1.0)
    again = report.recount(model)
    assert again.zeros == report.zeros - 48 * 32 // 2
    assert again.block_sparsity("model.layers.0") == 0.5
    zeros = {tensor.name: tensor.zeros for tensor in again.tensors}
    assert zeros["model.layers.1.mlp.up_proj.weight"] == 0
    assert (again.recipe, again.blocks) == (report.recipe, report.blocks)
