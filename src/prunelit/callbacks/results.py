"""What a run leaves behind: a table, `results.jsonl`, figures with their numbers, TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from rich.table import Table

from prunelit.callbacks.pruning import Pruning
from prunelit.core.module import PairedLM
from prunelit.errors import first_line
from prunelit.report.curves import Curve, Picture, as_csv, curve_numbers
from prunelit.report.figures import readings_figure, sparsity_figure
from prunelit.report.files import write_picture, write_whole
from prunelit.report.items import write_items
from prunelit.report.readings import readings_numbers, sparsity_numbers
from prunelit.report.results import Result, scalar_name, write_results
from prunelit.report.retained import headline_picture, headline_table, retained_cells
from prunelit.report.tables import results_table, show
from prunelit.report.tensorboard import write_curves, write_pictures, write_texts
from prunelit.tasks.base import Task


class Results(Callback):
    """After a validation: prints dense, pruned and difference, and writes the same to disk.

    The last thing that it prints is how much of each score is left, see `prunelit.report.retained`.

    `results.jsonl` lies in the logger's folder, or in `trainer.default_root_dir` where there is no
    logger; in `figures/` beside it every figure as PNG and the numbers behind it as CSV, those of
    all curves of a task in `<task>_curves.csv`.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None  # where to write; None is as above
        self.curves: dict[str, list[Curve]] = {}  # of each task, on the process that writes
        self._tables: list[Table] = []  # to print
        self._into = Path()
        self._written: Path | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by Lightning on every rank, all of which it asks for the logger's folder."""
        self._into = self.folder or Path(trainer.log_dir or trainer.default_root_dir)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by Lightning on every rank; only the first one writes."""
        # Validation between epochs of recovery logs its scalars; the results are those of the end.
        if trainer.state.fn != "validate" or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, PairedLM)
        tasks: dict[str, Task] = {
            name: task
            for name, task in trainer.datamodule.tasks.items()  # type: ignore[attr-defined]
            if name not in pl_module.failed
        }
        for name, error in pl_module.failed.items():
            rank_zero_info(f"The task {name!r} has no results: {first_line(error)}")
        if not tasks:
            return
        folder = self._into
        write_results(pl_module.results, folder / "results.jsonl")
        if pl_module.failed:
            rank_zero_info(f"Results of the other tasks: {folder / 'results.jsonl'}")
        report = next(
            (c.report for c in trainer.callbacks if isinstance(c, Pruning)),  # type: ignore[attr-defined]
            None,
        )
        tables = pl_module.tables
        for name, task in tasks.items():
            write_items(task.items(tables[name]), folder / "items" / f"{name}.parquet")
        self.curves = {name: task.curves(tables[name]) for name, task in tasks.items()}
        pictures = self._pictures(pl_module, tasks, report)
        for name, picture in pictures.items():
            write_picture(picture, folder / "figures", name)
        for name, curves in self.curves.items():
            if curves:
                text = as_csv(curve_numbers(curves))
                write_whole(text, folder / "figures" / f"{name}_curves.csv")
        texts = {name: task.texts(tables[name]) for name, task in tasks.items()}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                write_pictures(logger.experiment, pictures)
                write_texts(logger.experiment, texts)
                write_curves(logger.experiment, self.curves)
                self._log_hyperparameters(logger, pl_module, report)
        self._tables = printed_tables(tasks, pl_module.results)
        self._written = folder / "results.jsonl"

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Called by Lightning when the progress bar has left the screen: prints the tables."""
        if self._written is None:
            return
        for table in self._tables:
            show(table)
        rank_zero_info(f"Results: {self._written}")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                rank_zero_info(f"Look at it: tensorboard --logdir {logger.save_dir}")
        assert isinstance(pl_module, PairedLM)
        if cells := retained_cells(pl_module.results):
            show(headline_table(cells))
        self._written = None

    def _pictures(
        self, module: PairedLM, tasks: Mapping[str, Task], report: dict[str, Any] | None
    ) -> dict[str, Picture]:
        rows = module.results
        pictures = {"readings": Picture(readings_figure(rows), readings_numbers(rows))}
        if cells := retained_cells(rows):
            pictures["retained"] = headline_picture(cells)
        if report is not None:
            pictures["sparsity"] = Picture(sparsity_figure(report), sparsity_numbers(report))
        for task_name, task in tasks.items():
            for name, picture in task.pictures(module.tables[task_name]).items():
                own = name == task_name or name.startswith(f"{task_name}_")
                pictures[name if own else f"{task_name}_{name}"] = picture
        return pictures

    def _log_hyperparameters(
        self, logger: TensorBoardLogger, module: PairedLM, report: dict[str, Any] | None
    ) -> None:
        parameters: dict[str, Any] = {"model": module.source}
        metrics = {scalar_name(row): row.value for row in module.results}
        if report is not None:
            pruner = report["recipe"]["pruner"]
            parameters |= {"pruner": pruner["class_path"].rpartition(".")[2]}
            parameters |= flatten(pruner["init_args"])
            metrics["sparsity"] = report["sparsity"]
        logger.log_hyperparams(parameters, metrics)
        logger.save()


def printed_tables(tasks: Mapping[str, Task], rows: Sequence[Result]) -> list[Table]:
    """One table of all results, but for the tasks that have their own, which come after it."""
    own = {
        name: table
        for name, task in tasks.items()
        if (table := task.printed([row for row in rows if row.task == name])) is not None
    }
    rest = [row for row in rows if row.task not in own]
    return [*([results_table(rest)] if rest else []), *own.values()]


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
