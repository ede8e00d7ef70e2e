"""The time at which weights are removed, and the pruned model that a validation measures."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import Strategy

from prunelit import InputError, load_pretrained, prune
from prunelit.callbacks import Pruning
from prunelit.core.calibration_text import CalibrationText
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.pruners import BlockDrop, Neuron, Pruner, SublayerDrop, Wanda
from prunelit.recipe import describe
from prunelit.sparsity import Unstructured
from prunelit.tasks import Perplexity
from prunelit.trainer import PruneTrainer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*configure_optimizers` returned `None`:UserWarning"
)

Run = Callable[..., tuple[Pruning, PairedLM]]


@pytest.fixture
def run(tmp_path: Path, material: Path) -> Run:
    """`run("fit")` or `run("validate", ratio=0.3)`, each with new objects, as in a new process."""

    def start(
        stage: str,
        ratio: float = 0.5,
        callback: type[Pruning] = Pruning,
        pruner: Pruner | None = None,
        **arguments: Any,
    ) -> tuple[Pruning, PairedLM]:
        text = str(material / "text.jsonl")
        pruning = callback(pruner or Wanda(Unstructured(ratio)), **arguments)
        module = PairedLM(str(material / "dense"))
        calibration = CalibrationText(text, sequences=5, length=16, batch_size=2)
        data = PruneData(calibration, [Perplexity(text, length=20, limit=3)])
        trainer = PruneTrainer(
            accelerator="cpu",
            callbacks=[pruning],
            default_root_dir=tmp_path,
            enable_model_summary=False,
            enable_progress_bar=False,
            logger=False,
            max_epochs=0,
        )
        getattr(trainer, stage)(module, datamodule=data)
        return pruning, module

    return start


def weights(module: PairedLM) -> dict[str, torch.Tensor]:
    assert module.model is not None
    return module.model.state_dict()


def same(one: PairedLM, other: PairedLM) -> bool:
    return all(weight.equal(weights(other)[name]) for name, weight in weights(one).items())


def test_fit_prunes_as_the_library_does(run: Run, material: Path) -> None:
    pruning, module = run("fit")
    alone, tokenizer = load_pretrained(str(material / "dense"))
    data = PruneData(CalibrationText(str(material / "text.jsonl"), sequences=5, length=16))
    data.prepare(tokenizer)
    assert data.calibration_tokens is not None
    report = prune(alone, Wanda(Unstructured(0.5)), data.calibration_tokens, batch_size=2)
    assert all(w.equal(alone.state_dict()[name]) for name, w in weights(module).items())
    assert pruning.report is not None
    assert pruning.report["tensors"] == report.as_dict()["tensors"]
    # The reference is untouched.
    assert module.pair.dense is not None
    dense, _ = load_pretrained(str(material / "dense"))
    for name, weight in module.pair.dense.state_dict().items():
        assert weight.equal(dense.state_dict()[name])


def test_fit_writes_what_it_pruned(run: Run, tmp_path: Path, material: Path) -> None:
    pruning, module = run("fit")
    written, _ = load_pretrained(str(tmp_path / "pruned"))
    assert all(w.equal(written.state_dict()[name]) for name, w in weights(module).items())
    report = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    assert report == pruning.report
    recipe = report["recipe"]
    assert recipe["callback"] == {
        "class_path": "prunelit.callbacks.Pruning",
        "init_args": {"schedule": None},
    }
    assert recipe["model"] == module.recipe()
    assert recipe["model"]["source"] == str(material / "dense")
    assert recipe["pruner"] == describe(Wanda(Unstructured(0.5)))
    assert {key: recipe["calibration"][key] for key in ("sequences", "tokens", "batches")} == {
        "sequences": 5,
        "tokens": 80,
        "batches": 3,
    }
    assert len(recipe["calibration"]["sha256"]) == 64


@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize("pruner", [BlockDrop(1), SublayerDrop(1), Neuron(0.25)])
def test_the_measured_model_is_the_one_that_is_written(
    run: Run, stage: str, pruner: Pruner, tmp_path: Path
) -> None:
    first, module = run(stage, pruner=pruner)  # `validate` prunes in memory
    assert module.pair.dense is not None
    assert first.report is not None
    if stage == "validate":
        run("fit", pruner=pruner)
    second, again = run("validate", pruner=pruner)
    assert second.report is not None
    assert weights(module).keys() == weights(again).keys()
    assert same(module, again)
    assert module.pair.removed_blocks == again.pair.removed_blocks
    assert str(module.results) == str(again.results)
    sizes = [sum(p.numel() for p in m.parameters()) for m in module.pair.models().values()]
    assert sizes == [first.report["parameters"], first.report["stored_parameters"]]
    assert sizes[1] < sizes[0]
    for key in ("sparsity", "removed", "stored_parameters", "stored_bytes"):
        assert first.report[key] == second.report[key], key


def test_validate_takes_the_written_model_where_the_recipe_is_the_same(
    run: Run, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _, fitted = run("fit")
    capfd.readouterr()
    caplog.clear()
    pruning, module = run("validate")
    assert "Using the pruned model in" in caplog.text
    assert "Achieved sparsity" not in capfd.readouterr().out
    assert same(module, fitted)
    assert [row.value for row in module.results] == [row.value for row in fitted.results]
    assert pruning.report is not None
    assert pruning.report["sparsity"] == 0.5


def test_validate_prunes_in_memory_where_the_recipe_is_another(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("fit")
    before = {path: path.read_bytes() for path in (tmp_path / "pruned").iterdir()}
    caplog.clear()
    pruning, module = run("validate", ratio=0.25)
    assert "Pruning in memory, since" in caplog.text
    assert "was pruned by another recipe" in caplog.text
    assert pruning.report is not None
    assert pruning.report["sparsity"] == 0.25
    assert float((weights(module)["model.layers.0.mlp.up_proj.weight"] == 0).float().mean()) == 0.25
    assert {path: path.read_bytes() for path in (tmp_path / "pruned").iterdir()} == before


def test_validate_prunes_in_memory_where_nothing_was_written(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pruning, _ = run("validate")
    assert "holds no pruned model; `fit` would write it" in caplog.text
    assert pruning.report is not None
    assert not (tmp_path / "pruned").exists()


def test_a_folder_without_a_recipe_is_not_taken(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "pruning.json").write_text("{}")
    run("validate")
    assert "was pruned by another recipe" in caplog.text


def test_fit_replaces_an_older_pruned_model(run: Run, tmp_path: Path) -> None:
    run("fit")
    run("fit", ratio=0.25)
    report = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    assert report["sparsity"] == 0.25
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pruned"]


def test_the_output_folder_can_be_chosen(run: Run, tmp_path: Path) -> None:
    run("fit", output=str(tmp_path / "elsewhere" / "model"))
    assert (tmp_path / "elsewhere" / "model" / "pruning.json").is_file()
    assert not (tmp_path / "pruned").exists()


def test_a_foreign_folder_is_refused_before_weights_are_read(run: Run, tmp_path: Path) -> None:
    class Watching(Pruning):
        def apply(self, *arguments: Any) -> Any:
            raise AssertionError("pruning started")

    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"exists and holds no pruning\.json"):
        run("fit", callback=Watching)
    assert [path.name for path in (tmp_path / "pruned").iterdir()] == ["thesis.txt"]


class Twice(Pruning):
    """A schedule of a user: half of the ratio in the first round."""

    def __init__(self, pruner: Wanda, output: str | None = None, first: float = 0.25) -> None:
        super().__init__(pruner, output)
        self.first = first

    def apply(self, trainer: Trainer, module: PairedLM, data: PruneData) -> Any:
        pruner, self.pruner = self.pruner, Wanda(Unstructured(self.first))
        super().apply(trainer, module, data)
        self.pruner = pruner
        return super().apply(trainer, module, data)


def test_a_callback_of_ones_own_prunes_differently_and_says_so(run: Run) -> None:
    _, once = run("validate")
    pruning, twice = run("validate", callback=Twice)
    assert pruning.report is not None
    assert pruning.report["sparsity"] == 0.5
    assert pruning.report["recipe"]["callback"]["class_path"].endswith(".Twice")
    assert not same(once, twice)


def test_a_strategy_that_shards_weights_is_refused(run: Run) -> None:
    class Sharding(Strategy): ...

    class Disguised(Pruning):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            own = trainer.strategy
            Sharding.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
            trainer._accelerator_connector.strategy = Sharding()  # type: ignore[abstract]
            try:
                super().setup(trainer, pl_module, stage)
            finally:
                trainer._accelerator_connector.strategy = own

    with pytest.raises(InputError, match="got Sharding, which shards the weights"):
        run("fit", callback=Disguised)


def test_other_arguments_of_a_callback_are_another_recipe(run: Run, tmp_path: Path) -> None:
    pruning, _ = run("fit", callback=Twice, first=0.25)
    again, _ = run("validate", callback=Twice, first=0.25)
    assert again.report == pruning.report
    other, _ = run("validate", callback=Twice, first=0.4)
    assert other.report is not None
    assert pruning.report is not None
    assert other.report["recipe"]["callback"]["init_args"] == {"first": 0.4}
    assert other.report["recipe"] != pruning.report["recipe"]


def test_other_dense_weights_at_the_same_path_are_another_recipe(
    run: Run, material: Path, tmp_path: Path
) -> None:
    written, _ = run("fit")
    weights_file = material / "dense" / "model.safetensors"
    status = weights_file.stat()
    try:
        os.utime(weights_file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        again, _ = run("validate")
    finally:
        os.utime(weights_file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert written.report is not None
    assert again.report is not None
    assert again.report["recipe"] != written.report["recipe"]
