"""The pruned model beside its frozen dense reference."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule

from prunelit import InputError
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.models.fingerprint import fingerprint_files
from prunelit.report.results import scalar_name
from prunelit.tasks import Deviation, Perplexity, Transitions
from prunelit.trainer import PruneTrainer


def test_no_weights_are_read_before_a_run(tmp_path: Path) -> None:
    module = PairedLM(str(tmp_path / "nowhere"))
    assert module.model is None
    with pytest.raises(RuntimeError, match="Expected `load` to be called"):
        _ = module.pair


def test_the_reference_is_no_part_of_the_module(module: PairedLM) -> None:
    module.load()
    dense = module.pair.dense
    assert dense is not None
    mine = {id(tensor) for tensor in [*module.parameters(), *module.buffers()]}
    assert mine
    assert not mine & {id(tensor) for tensor in [*dense.parameters(), *dense.buffers()]}
    assert all(submodule is not dense for submodule in module.modules())
    assert {name.split(".")[0] for name in module.state_dict()} == {"model"}
    assert len(module.state_dict()) == len(module.pair.pruned.state_dict())


def test_the_reference_stays_in_evaluation_mode(module: PairedLM) -> None:
    module.load()
    module.train()
    assert module.pair.pruned.training
    assert module.pair.dense is not None
    assert not any(submodule.training for submodule in module.pair.dense.modules())


def test_a_checkpoint_holds_the_pruned_model_alone(
    module: PairedLM, data: PruneData, make_trainer: Callable[..., PruneTrainer], tmp_path: Path
) -> None:
    trainer = make_trainer()
    trainer.validate(module, datamodule=data)
    path = tmp_path / "saved.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    saved = torch.load(path, weights_only=True)
    assert saved["state_dict"].keys() == module.state_dict().keys()
    # Tied weights are stored once, so one copy of the model is all that the file can hold.
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    assert size < path.stat().st_size < 1.6 * size


def test_without_a_reference_there_is_one_model(
    material: Path, data: PruneData, make_trainer: Callable[..., PruneTrainer]
) -> None:
    module = PairedLM(str(material / "dense"), reference=False)
    make_trainer().validate(module, datamodule=data)
    assert module.pair.dense is None
    assert list(module.pair.models()) == ["pruned"]
    assert {row.model for row in module.results} == {"pruned"}
    assert {row.metric for row in module.results} == {
        *("nll", "perplexity", "acc", "acc_norm", "acc_token_norm", "brier"),
        *("calibration_error", "calibration_noise"),
    }


def test_a_task_that_needs_the_reference_is_refused_without_one(
    material: Path, make_trainer: Callable[..., PruneTrainer]
) -> None:
    module = PairedLM(str(material / "dense"), reference=False)
    data = PruneData(None, [Deviation(str(material / "text.jsonl"), length=12)])
    with pytest.raises(InputError, match=r"\['deviation'\] .*model\.reference: true"):
        make_trainer().validate(module, datamodule=data)
    assert module.model is None


def test_a_part_of_the_items_is_refused(
    module: PairedLM, data: PruneData, make_trainer: Callable[..., PruneTrainer]
) -> None:
    with pytest.raises(InputError, match=r"`trainer\.limit_val_batches` 1\.0 but got 1"):
        make_trainer(limit_val_batches=1).validate(module, datamodule=data)
    assert module.model is None


def test_training_is_refused(
    material: Path, module: PairedLM, make_trainer: Callable[..., PruneTrainer]
) -> None:
    with pytest.raises(InputError, match=r"`trainer\.max_epochs` 0, or text to train on"):
        make_trainer(max_epochs=2).fit(module, datamodule=PruneData())
    assert module.model is None


@pytest.mark.filterwarnings("ignore:.*configure_optimizers", "ignore:Total length of")
def test_without_a_task_nothing_is_compared(
    module: PairedLM, make_trainer: Callable[..., PruneTrainer], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match=r"at least one task in `data\.tasks`"):
        make_trainer().validate(module, datamodule=PruneData())
    assert module.model is None
    with caplog.at_level("INFO"):
        make_trainer().fit(module, datamodule=PruneData())
    assert "Nothing is measured, since `data.tasks` is not given." in caplog.text


def test_other_data_is_refused(module: PairedLM, make_trainer: Callable[..., PruneTrainer]) -> None:
    class Nothing(LightningDataModule):
        def val_dataloader(self) -> list:
            return []

    with pytest.raises(InputError, match="to be a `PruneData`"):
        make_trainer().validate(module, datamodule=Nothing())  # type: ignore[arg-type]


def test_every_result_is_logged_under_its_task(
    module: PairedLM, data: PruneData, make_trainer: Callable[..., PruneTrainer]
) -> None:
    trainer = make_trainer()
    trainer.validate(module, datamodule=data)
    assert len(module.results) == 7 * 3 + 2 + 5  # the noise has no difference, five are of the pair
    expected = {scalar_name(row): row.value for row in module.results}
    assert len(expected) == len(module.results)
    logged = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert logged == pytest.approx(expected)
    # Nothing was pruned, so the two models are equal.
    assert {row.value for row in module.results if row.model == "difference"} == {0}


def test_the_recipe_names_the_dense_model(
    material: Path, data: PruneData, make_trainer: Callable[..., PruneTrainer]
) -> None:
    source = str(material / "dense")
    module = PairedLM(source, dtype="bfloat16")
    make_trainer().validate(module, datamodule=data)
    recipe = module.recipe()
    assert recipe.pop("version") == fingerprint_files(source)
    assert recipe.pop("full") is None
    assert recipe == {
        "source": source,
        "dtype": "bfloat16",
        "attn_implementation": None,
        "precision": "32-true",
    }


def test_a_precision_that_casts_one_model_alone_is_refused(
    module: PairedLM, data: PruneData, make_trainer: Callable[..., PruneTrainer]
) -> None:
    with pytest.raises(InputError, match=r"'bf16-true'.*set `model.dtype`"):
        make_trainer(precision="bf16-true").validate(module, datamodule=data)
    assert module.model is None


def test_texts_longer_than_the_positions_are_refused_before_weights_are_read(
    module: PairedLM, material: Path, make_trainer: Callable[..., PruneTrainer]
) -> None:
    tasks = [Perplexity(str(material / "text.jsonl"), length=129)]
    with pytest.raises(InputError, match=r"at most 128 tokens.*task 'perplexity' has 129"):
        make_trainer().validate(module, datamodule=PruneData(None, tasks))
    assert module.model is None


def test_tasks_of_other_data_are_checked_too(
    module: PairedLM, material: Path, make_trainer: Callable[..., PruneTrainer]
) -> None:
    text, questions = str(material / "text.jsonl"), str(material / "questions.jsonl")
    first = PruneData(tasks=[Perplexity(text, length=20, limit=2)])
    second = PruneData(tasks=[Transitions(questions, chat=False, max_new_tokens=2, limit=2)])
    for data in (first, second):
        make_trainer().validate(module, datamodule=data, verbose=False)
    assert {row.task for row in module.results} == {"transitions"}


def test_a_source_is_a_path_or_a_name(
    material: Path, model: torch.nn.Module, make_trainer: Callable[..., PruneTrainer]
) -> None:
    assert PairedLM(material / "dense").source == str(material / "dense")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="on the hub but got a LlamaForCausalLM: save it and"):
        PairedLM(model)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["shape", "name"])
def test_a_checkpoint_of_another_model_is_refused(module: PairedLM, change: str) -> None:
    module.load()
    trainer = SimpleNamespace(ckpt_path="last.ckpt")
    module._trainer = trainer  # type: ignore[assignment]
    state = dict(module.state_dict())
    module.on_load_checkpoint({"state_dict": state})
    name = "model.model.layers.1.mlp.up_proj.weight"
    weight = state.pop(name)
    if change == "shape":
        state[name] = weight[1:]
    there = {"shape": r"\[47, 32\]", "name": "absent"}[change]
    with pytest.raises(InputError, match=rf"{name}' is \[48, 32\] here and {there} there"):
        module.on_load_checkpoint({"state_dict": state})
