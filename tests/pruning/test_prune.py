import copy
import importlib
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.utils.parametrizations
import torch.nn.utils.prune
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prunelit import prune, save_pretrained
from prunelit.errors import InputError
from prunelit.models.report_file import read_report
from prunelit.models.stores import Store, keep_in
from prunelit.pruners import Wanda
from prunelit.pruning.prune import describe_batches
from prunelit.sparsity import SemiStructured, Unstructured

MakeModel = Callable[..., PreTrainedModel]


@pytest.fixture
def wanda() -> Wanda:
    return Wanda(Unstructured(0.5))


def test_pruning_json_holds_the_report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    input_ids: Tensor,
    wanda: Wanda,
    tmp_path: Path,
) -> None:
    report = prune(model, wanda, input_ids)
    save_pretrained(model, tokenizer, tmp_path / "pruned", report)
    stored = read_report(tmp_path / "pruned")
    assert "model.safetensors" in stored.pop("content")  # hashes of the files beside it
    assert stored == report.as_dict()


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
    said: list[str] = []
    monkeypatch.setattr(module, "rank_zero_info", said.append)
    monkeypatch.setattr(module, "_A_MINUTE", 0.0)
    assert written(io.StringIO()) == ""
    assert [line.partition(",")[0] for line in said] == [
        f"Pruning with Wanda: {done} of 3 blocks" for done in (1, 2, 3)
    ]


def test_sequences_longer_than_the_positions_are_refused(
    model: PreTrainedModel, wanda: Wanda
) -> None:
    with pytest.raises(InputError, match=r"at most 128 tokens.*calibration sequence has 129"):
        prune(model, wanda, torch.ones(2, 129, dtype=torch.int64))


def quantised(model: PreTrainedModel) -> None:
    linear = torch.nn.Linear
    torch.ao.quantization.quantize_dynamic(model, {linear}, torch.qint8, inplace=True)


def one_of_bytes(model: PreTrainedModel) -> None:
    linear = model.model.layers[0].mlp.up_proj
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)


def marked(model: PreTrainedModel) -> None:
    model.is_quantized = True  # as the quantisers of transformers do


def with_a_tensor_of_its_own(model: PreTrainedModel) -> None:
    class Packed(torch.Tensor): ...

    linear = model.model.layers[0].mlp.up_proj
    linear.weight = torch.nn.Parameter(linear.weight.detach().as_subclass(Packed), False)


def masked(model: PreTrainedModel) -> None:
    torch.nn.utils.prune.l1_unstructured(model.model.layers[0].mlp.up_proj, "weight", 0.5)


def parametrised(model: PreTrainedModel) -> None:
    torch.nn.utils.parametrizations.orthogonal(model.model.layers[0].mlp.up_proj)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (quantised, r"'model\.layers\.0\.self_attn\.q_proj' is quantised or sharded"),
        (one_of_bytes, r"'model\.layers\.0\.mlp\.up_proj' is quantised or sharded \(Linear\)"),
        (marked, r"is quantised or sharded"),
        (with_a_tensor_of_its_own, r"up_proj' is quantised or sharded"),
        (masked, r"the weight of 'model\.layers\.0\.mlp\.up_proj' as a parameter but it is comp"),
        (parametrised, r"the weight of 'model\.layers\.0\.mlp\.up_proj' as a parameter but it is"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused_before_any_work(
    change: Callable[[PreTrainedModel], None],
    named: str,
    model: PreTrainedModel,
    input_ids: Tensor,
    wanda: Wanda,
) -> None:
    change(model)
    before = model.model.layers[1].input_layernorm.weight.clone()
    with pytest.raises(InputError, match=named):
        prune(model, wanda, input_ids)
    assert before.equal(model.model.layers[1].input_layernorm.weight)


def test_a_block_that_waits_is_brought_a_few_times(
    make_model: Callable[..., PreTrainedModel], input_ids: Tensor
) -> None:
    class Counted(Store):
        fetched = 0
        kept = 0

        def fetch(self) -> None:
            self.fetched += 1

        def leave(self, edited: bool) -> None:
            self.kept += edited

    here, model = make_model("llama"), make_model("llama")
    stores = [Counted() for _ in model.model.layers]
    for block, store in zip(model.model.layers, stores, strict=True):
        keep_in(block, store)
    found, expected = (prune(each, Wanda(Unstructured(0.5)), input_ids) for each in (model, here))
    # Checked, counted, run by the model and alone, pruned, counted.
    assert [(store.fetched, store.kept) for store in stores] == [(6, 1)] * 3
    assert list(found.masks) == list(expected.masks)
    assert all(torch.equal(found.masks[name], expected.masks[name]) for name in expected.masks)
