import copy
import importlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prunelit import PruningReport, prune, save_pretrained
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules
from prunelit.models.saving import read_report
from prunelit.pruners import Wanda
from prunelit.pruning.prune import describe_batches
from prunelit.pruning.report import BlockCost, TensorSparsity, block_prefix
from prunelit.sparsity import SemiStructured, Unstructured

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


def test_pruning_json_holds_the_report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    input_ids: Tensor,
    wanda: Wanda,
    tmp_path: Path,
) -> None:
    report = prune(model, wanda, input_ids)
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    assert read_report(tmp_path / "pruned") == report.as_dict()


def test_longer_numbers_sort_into_their_own_block() -> None:
    tensors = [
        TensorSparsity(f"h.{index}.fc.weight", [2], 2, zeros) for index, zeros in ((1, 1), (10, 2))
    ]
    blocks = [BlockCost(index, 0.1, 1) for index in range(2)]
    report = PruningReport({}, tensors, blocks, "", 4, 3)
    assert report.block_sparsity("h.1") == 0.5
    assert [block["name"] for block in report.as_dict()["blocks"]] == ["h.1", "h.10"]
    assert block_prefix("model.decoder.layers.10.fc1.weight") == "model.decoder.layers.10"


def test_recipe_says_what_decides_the_masks(
    make_model: MakeModel, input_ids: Tensor, padded: dict[str, Tensor]
) -> None:
    wanda = Wanda(SemiStructured(2, 4))
    recipe = prune(make_model(), wanda, [padded]).recipe
    assert recipe["pruner"]["class_path"] == "prunelit.pruners.Wanda"
    assert recipe["pruner"]["init_args"]["sparsity"]["init_args"] == {"keep": 2, "group": 4}
    calibration = recipe["calibration"]
    assert calibration == describe_batches([padded])
    assert (calibration["sequences"], calibration["tokens"], calibration["batches"]) == (6, 111, 1)
    plain = prune(make_model(), wanda, input_ids, batch_size=4).recipe["calibration"]
    assert (plain["sequences"], plain["tokens"], plain["batches"]) == (6, 120, 2)
    assert plain["sha256"] != calibration["sha256"]


def test_calibration_hash_depends_on_ids_mask_and_batches(input_ids: Tensor) -> None:
    def digest(*batches: Tensor, mask: Tensor | None = None) -> str:
        masks = [torch.ones_like(ids) if mask is None else mask for ids in batches]
        pairs = zip(batches, masks, strict=True)
        return describe_batches([{"input_ids": i, "attention_mask": m} for i, m in pairs])["sha256"]

    base = digest(input_ids)
    assert digest(input_ids.int()) == base
    hidden = torch.ones_like(input_ids)
    hidden[0, 0] = 0
    others = [
        digest(input_ids + 1),
        digest(input_ids, mask=hidden),
        digest(*input_ids.split(3)),
        digest(input_ids.view(12, 10)),
    ]
    assert len({base, *others}) == 5


def test_tensor_and_its_batches_give_the_same_masks(
    make_model: MakeModel, input_ids: Tensor, wanda: Wanda
) -> None:
    one, other = make_model(), make_model()
    first = prune(one, wanda, input_ids, batch_size=4)
    batches = ({"input_ids": piece} for piece in input_ids.split(4))
    second = prune(other, wanda, batches)
    assert first.recipe == second.recipe
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_pruned_weights_can_still_be_trained(
    model: PreTrainedModel, input_ids: Tensor, wanda: Wanda, context: Callable
) -> None:
    with context():
        prune(model, wanda, input_ids)
    assert not any(parameter.is_inference() for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.detach().clone()
    model(input_ids, labels=input_ids).loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(weight, before)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_pruning_and_the_mode_is_restored(
    make_model: MakeModel, input_ids: Tensor, wanda: Wanda, training: bool
) -> None:
    model, expected = make_model("gpt2").train(training), make_model("gpt2")
    assert model.config.resid_pdrop > 0
    prune(model, wanda, input_ids)
    prune(expected, wanda, input_ids)
    assert model.training is training
    for a, b in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_before_anything_changes(
    model: PreTrainedModel, input_ids: Tensor, wanda: Wanda, value: float
) -> None:
    model.model.layers[2].mlp.up_proj.weight.data[3, 4] = value
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        InputError, match=r"'model\.layers\.2\.mlp\.up_proj\.weight' of 'LlamaForCausalLM' .* NaN"
    ):
        prune(model, wanda, input_ids)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())


def test_pruner_that_refuses_a_block_changes_nothing(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    before = copy.deepcopy(model.state_dict())
    # 48 inputs of the last MLP matrix are divisible by 48, 32 are not.
    with pytest.raises(InputError, match="`group` 48 but got 32"):
        prune(model, Wanda(SemiStructured(1, 48)), input_ids)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_mode_is_restored_after_an_error(model: PreTrainedModel, input_ids: Tensor) -> None:
    model.train()
    with pytest.raises(InputError):
        prune(model, Wanda(SemiStructured(1, 5)), input_ids)
    assert model.training


def test_no_calibration_tokens(model: PreTrainedModel, wanda: Wanda) -> None:
    with pytest.raises(InputError, match="at least one token"):
        prune(model, wanda, [])


def test_sequence_of_padding_alone_counts_for_nothing(
    make_model: MakeModel, input_ids: Tensor, wanda: Wanda
) -> None:
    mask = torch.ones_like(input_ids)
    mask[0] = 0
    one, other = make_model(), make_model()
    prune(one, wanda, [{"input_ids": input_ids, "attention_mask": mask}])
    prune(other, wanda, input_ids[1:])
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_progress_over_the_blocks(
    model: PreTrainedModel, input_ids: Tensor, wanda: Wanda, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("prunelit.pruning.prune")  # the package's name is a function

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def written(stream: io.StringIO, **options: bool) -> str:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setattr(
            module, "_stderr_console", lambda: Console(file=stream, force_terminal=True, width=80)
        )
        prune(model, wanda, input_ids, **options)
        return stream.getvalue()

    shown = written(Terminal())
    assert "Pruning with Wanda" in shown
    assert "3/3" in shown
    assert "blocks/s" in shown
    assert written(Terminal(), progress=False) == ""
    assert written(io.StringIO()) == ""


def test_sequences_longer_than_the_positions_are_refused(
    model: PreTrainedModel, wanda: Wanda
) -> None:
    with pytest.raises(InputError, match=r"at most 128 tokens.*calibration sequence has 129"):
        prune(model, wanda, torch.ones(2, 129, dtype=torch.int64))


def test_the_report_prints_as_a_table(
    model: PreTrainedModel, input_ids: Tensor, wanda: Wanda
) -> None:
    text = str(prune(model, wanda, input_ids))
    assert "model.layers.2" in text
    assert "0.5000" in text
