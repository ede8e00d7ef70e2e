"""What a run leaves behind: a table, `results.jsonl` and TensorBoard."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from prunelit.callbacks.pruning import Pruning
from prunelit.module import PairedLM, scalar_name
from prunelit.report.figures import readings_figure, sparsity_figure
from prunelit.report.rows import write_rows
from prunelit.report.tables import markdown_table, results_table, show


class Results(Callback):
    """After a validation: prints dense, pruned and difference, and writes the same to disk.

    `results.jsonl` and the figures lie in the logger's folder, or in `trainer.default_root_dir`
    where there is no logger.
    """

    def __init__(self) -> None:
        self._written: Path | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by Lightning on every rank; only the first one writes."""
        # Lightning broadcasts the folder, so every rank has to ask for it.
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        # Validation between epochs of recovery logs its scalars; the results are those of the end.
        if trainer.state.fn != "validate" or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, PairedLM)
        rows = pl_module.results
        write_rows(rows, folder / "results.jsonl")
        report = next(
            (c.report for c in trainer.callbacks if isinstance(c, Pruning)),  # type: ignore[attr-defined]
            None,
        )
        figures = {"readings": readings_figure(rows)}
        if report is not None:
            figures["sparsity"] = sparsity_figure(report)
        (folder / "figures").mkdir(exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(folder / "figures" / f"{name}.png", dpi=150)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                tasks = trainer.datamodule.tasks  # type: ignore[attr-defined]
                texts = {name: task.texts(pl_module.tables[name]) for name, task in tasks.items()}
                self._write_tensorboard(logger, pl_module, report, figures, texts)
        self._written = folder / "results.jsonl"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by Lightning when the progress bar has left the screen: prints the table."""
        if self._written is None:
            return
        assert isinstance(pl_module, PairedLM)
        show(results_table(pl_module.results))
        rank_zero_info(f"Results: {self._written}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                rank_zero_info(f"Look at it: tensorboard --logdir {logger.save_dir}")
        self._written = None

    def _write_tensorboard(
        self,
        logger: TensorBoardLogger,
        module: PairedLM,
        report: dict[str, Any] | None,
        figures: dict[str, Any],
        texts: dict[str, list[dict[str, str]]],
    ) -> None:
        writer = logger.experiment
        for name, figure in figures.items():
            writer.add_figure(name, figure, close=False)
        for name, rows in texts.items():
            if rows:
                writer.add_text(f"val/{name}/texts", markdown_table(rows))
        parameters: dict[str, Any] = {"model": module.source}
        metrics = {scalar_name(row): row.value for row in module.results}
        if report is not None:
            pruner = report["recipe"]["pruner"]
            parameters |= {"pruner": pruner["class_path"].rpartition(".")[2]}
            parameters |= flatten(pruner["init_args"])
            metrics["sparsity"] = report["sparsity"]
        logger.log_hyperparams(parameters, metrics)
        logger.save()


def flatten(arguments: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested recipe to `sparsity.ratio: 0.5` pairs; a class is given by its name."""
    flat: dict[str, Any] = {}
    for key, value in arguments.items():
        if isinstance(value, dict) and "class_path" in value:
            flat[prefix + key] = value["class_path"].rpartition(".")[2]
            flat |= flatten(value["init_args"], f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float) else str(value)
    return flat
