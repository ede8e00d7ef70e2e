"""The Trainer whose methods are the subcommands."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from prunelit.callbacks import Pruning, Results
from prunelit.core.calibration_text import CalibrationText
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.errors import InputError
from prunelit.files import only_writer
from prunelit.pruners import Wanda
from prunelit.sparsity import Unstructured
from prunelit.tasks import Perplexity
from prunelit.trainer import PruneTrainer


class Events(Pruning):
    """Record the stages that were set up."""

    def __init__(self) -> None:
        super().__init__(Wanda(Unstructured(0.5)))
        self.stages: list[str] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.stages.append(stage)
        super().setup(trainer, pl_module, stage)


@pytest.fixture
def run(tmp_path: Path, material: Path) -> tuple[PruneTrainer, PairedLM, PruneData]:
    path = str(material / "text.jsonl")
    trainer = PruneTrainer(
        accelerator="cpu",
        callbacks=[Events()],
        default_root_dir=tmp_path,
        enable_model_summary=False,
        enable_progress_bar=False,
        logger=False,
        max_epochs=0,
    )
    data = PruneData(CalibrationText(path, sequences=5, length=16), [Perplexity(path, length=20)])
    return trainer, PairedLM(str(material / "dense")), data


def value(metrics: Any, name: str) -> float:
    return float(metrics[f"val/perplexity/{name}"])


# The command line hides it.
@pytest.mark.filterwarnings("ignore:.*configure_optimizers` returned `None`:UserWarning")
def test_fit_prunes_once_and_then_measures(
    run: tuple[PruneTrainer, PairedLM, PruneData], tmp_path: Path
) -> None:
    trainer, module, data = run
    trainer.fit(module, datamodule=data)
    (events,) = (c for c in trainer.callbacks if isinstance(c, Events))  # type: ignore[attr-defined]
    assert events.stages == ["fit", "validate"]
    assert (tmp_path / "pruned" / "pruning.json").is_file()
    assert value(trainer.callback_metrics, "nll") != value(trainer.callback_metrics, "nll_dense")
    # If weights were pruned twice, the second time would have other inputs.
    assert module.model is not None
    weight = module.model.model.layers[0].mlp.up_proj.weight
    assert float((weight == 0).float().mean()) == 0.5


def test_validate_returns_the_metrics_and_writes_no_model(
    run: tuple[PruneTrainer, PairedLM, PruneData], tmp_path: Path
) -> None:
    trainer, module, data = run
    (metrics,) = trainer.validate(module, datamodule=data)
    assert value(metrics, "nll") > 0
    assert value(metrics, "nll_difference") == pytest.approx(
        value(metrics, "nll") - value(metrics, "nll_dense"), abs=1e-5
    )
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize("method", ["fit", "validate"])
def test_the_first_line_of_a_docstring_is_the_help(method: str) -> None:
    text = getattr(PruneTrainer, method).__doc__
    assert text != getattr(Trainer, method).__doc__
    assert text.splitlines()[0].endswith(".")


def test_a_refused_run_leaves_no_folder_of_its_logger(
    run: tuple[PruneTrainer, PairedLM, PruneData], tmp_path: Path
) -> None:
    _, module, data = run
    logger = TensorBoardLogger(tmp_path / "board", name="only")
    quiet = {"enable_model_summary": False, "enable_progress_bar": False}
    trainer = PruneTrainer(
        accelerator="cpu", default_root_dir=tmp_path, logger=logger, max_epochs=0, **quiet
    )
    with pytest.raises(InputError, match="does not exist"):
        trainer.validate(PairedLM("./nowhere"), data)
    assert not [path for path in (tmp_path / "board").rglob("*") if path.is_file()]
    trainer.validate(module, data)
    (events,) = (tmp_path / "board").rglob("events.out.*")
    assert events.stat().st_size > 88
    with pytest.raises(InputError, match="does not exist"):
        trainer.validate(PairedLM("./nowhere"), data)
    assert events.is_file()


def test_a_mistake_in_the_data_shows_before_another_run(
    run: tuple[PruneTrainer, PairedLM, PruneData], tmp_path: Path
) -> None:
    trainer, module, _ = run
    data = PruneData(tasks=[Perplexity("prunelit:facts.jsonl", column="contxt", length=8)])
    with (
        only_writer(tmp_path / "results.jsonl"),
        only_writer(tmp_path / "sweep"),
    ):
        for start in (trainer.fit, trainer.validate):
            with pytest.raises(InputError, match=r"has no column 'contxt' .similar: 'context'"):
                start(module, datamodule=data)
        with pytest.raises(InputError, match=r"has no column 'contxt' .similar: 'context'"):
            trainer.sweep(module, data, variants={"a": Wanda(Unstructured(0.5))})


def test_what_another_run_writes_is_refused_before_any_work(
    run: tuple[PruneTrainer, PairedLM, PruneData], tmp_path: Path
) -> None:
    trainer, module, data = run
    # A lock holds between processes and between files that one process has opened.
    with (
        only_writer(tmp_path / "pruned"),
        pytest.raises(InputError, match=r"Another run is writing .* `--trainer.default_root_dir`"),
    ):
        trainer.fit(module, datamodule=data)
    assert module.model is None
    with (
        only_writer(tmp_path / "sweep"),
        pytest.raises(InputError, match=r"Another run is writing '.*sweep'"),
    ):
        trainer.sweep(module, data, variants={"a": Wanda(Unstructured(0.5))})


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *("results.jsonl/", "scores.parquet/", "verdicts.json/", "config.yaml/", "hparams.yaml/"),
        "report.html/",
        *("figures/scores.png/", "items/task.parquet/", "figures", "items", "unfinished"),
    ],
)
def test_a_name_of_the_results_that_is_taken_is_refused_before_any_work(
    run: tuple[PruneTrainer, PairedLM, PruneData], tmp_path: Path, name: str, logged: bool
) -> None:
    trainer, module, data = run
    trainer.callbacks.append(Results())  # type: ignore[attr-defined]
    folder = tmp_path
    if logged and name != "unfinished":
        folder = tmp_path / "board" / "mine"
        trainer.loggers = [TensorBoardLogger(tmp_path, "board", "mine")]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if name.endswith("/") else path.touch()
    with pytest.raises(InputError, match=f"at '{path}', where results are written") as caught:
        trainer.validate(module, datamodule=data)
    assert "partial" not in str(caught.value)
    assert module.model is None


def test_a_sweep_refuses_a_taken_name_before_any_work(
    run: tuple[PruneTrainer, PairedLM, PruneData], tmp_path: Path
) -> None:
    trainer, module, data = run
    trainer.callbacks = []  # type: ignore[attr-defined]
    for path in (tmp_path / "figures" / "variants.json", tmp_path / "b" / "results.jsonl"):
        path.mkdir(parents=True)
        with pytest.raises(InputError, match=f"at '{path}', where results are written"):
            trainer.sweep(
                module, data, variants={name: Wanda(Unstructured(0.5)) for name in ("a", "b")}
            )
        path.rmdir()
