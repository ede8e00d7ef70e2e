"""Write the results of a run: tables, `results.jsonl`, figures with numbers, TensorBoard.

`tensorboard.py` decides the layout of the TensorBoard page.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from rich.table import Table

from prunelit.callbacks.gains import measure_gains
from prunelit.callbacks.overlap import find_overlaps
from prunelit.callbacks.pruning import Pruning
from prunelit.callbacks.tensorboard import (
    write_curves,
    write_hyperparameters,
    write_pictures,
    write_texts,
)
from prunelit.core.datamodule import PruneData
from prunelit.core.environment import describe_environment
from prunelit.core.module import PairedLM
from prunelit.errors import InputError, first_line, visible
from prunelit.files import check_names, keep_earlier, write_text
from prunelit.recipe import recipe_id
from prunelit.report.curves import Curve, Picture, as_csv, curve_numbers, write_picture
from prunelit.report.figures import scores_figure, sparsity_figure
from prunelit.report.items import write_items
from prunelit.report.main_scores import scores_numbers, sparsity_numbers
from prunelit.report.options import list_options
from prunelit.report.page.baselines import baseline_sentences
from prunelit.report.page.gains import gain_sentence
from prunelit.report.page.outcome import write_outcome
from prunelit.report.page.reasons import overlap_sentences
from prunelit.report.page.record_file import RESULTS, SCORES
from prunelit.report.page.records import RECORD
from prunelit.report.page.runs import (
    BASELINES,
    ENVIRONMENT,
    GAINS,
    OVERLAP,
    PAGE,
    VERDICTS,
    Run,
    decide_run,
    read_run,
)
from prunelit.report.results import Result, format_results, scalar_name, write_results
from prunelit.report.retained import headline_picture, headline_table, verdict_cells
from prunelit.report.tables import (
    brief_lines,
    class_rows,
    class_tables,
    results_table,
    show,
    wrap,
)
from prunelit.report.task_report import TaskReport
from prunelit.report.verdicts import (
    KEEP,
    Margins,
    Verdict,
    Word,
    decide,
    score_rows,
    use_sentences,
    use_words,
)

# Files of a run, and the folders of its items and figures. TensorBoard adds files of its own.
OUTCOME_FILES = (RESULTS, SCORES, VERDICTS, GAINS, OVERLAP, ENVIRONMENT, PAGE, RECORD)
OUTCOME_FILES += ("hparams.yaml",)
OUTCOME_FOLDERS = ("items", "figures", BASELINES)
Bits = Literal[8, 4]
BITS: dict[str, Bits] = {"8bit": 8, "4bit": 4}  # words for baselines
OUTCOME = (*OUTCOME_FILES, *OUTCOME_FOLDERS)


class Results(Callback):
    """Print and save the results of a validation: dense, pruned and their difference.

    The last printed lines are the verdicts: for each use of the model, whether the pruned model
    keeps enough of it. Before them is the main score of each task; `verbose` prints the tables of
    all metrics. The command line adds this callback to every run.

    `results.jsonl` is in the logger's folder, or in `trainer.default_root_dir` if there is no
    logger. Other results that are there are moved to `earlier_N` with their items, figures and
    `hparams.yaml`. The folder `figures/` beside it
    has each figure as PNG and its numbers as CSV; the curves of a task are in `<task>_curves.csv`.
    `verdicts.json` has the verdicts, `scores.parquet` the main score of each item, from which they
    follow. `gains.json` has sizes, memory and speed of both models, which are measured in turns
    when the tasks are done; a sweep leaves this out. `report.html` is the page of the run: its path
    is the last line that is printed. A pruned model that is on disk gets a model card, `README.md`,
    and its scores on data sets of the hub in `.eval_results`.

    Args:
        keep: share of the dense model's lead over chance that must remain, for all tasks or by the
            name of a task or use, see `prunelit.report.verdicts.Margins`.
        margin: highest loss of a score in its own unit, for all tasks or by the name of a task or
            use.
        speed: measure speed and memory of both models; False leaves out the few seconds.
        verbose: print the tables of all metrics and verdicts.
        baselines: models to measure beside the pruned one, by the same tasks: `8bit` and `4bit` are
            the dense model rounded by `prunelit.pruners.Quantize`, another text is the source of a
            model. They stand on the page and in `verdicts.json`, and have their own files in
            `baselines/<name>/`.

    Example:
        >>> from prunelit import PruneTrainer
        >>> from prunelit.callbacks import Results
        >>> results = Results()
        >>> trainer = PruneTrainer(accelerator="cpu", callbacks=[results], logger=False)
        >>> results.curves  # filled by `trainer.validate`
        {}
    """

    def __init__(
        self,
        keep: float | dict[str, float] | str = KEEP,
        margin: float | dict[str, float] | str | None = None,
        speed: bool = True,
        verbose: bool = False,
        baselines: Sequence[str] = (),
    ) -> None:
        texts = isinstance(baselines, list | tuple) and all(isinstance(b, str) for b in baselines)
        if not texts:
            raise InputError(f"Expected `baselines` as a list of texts but got {baselines!r}.")
        for text in baselines:
            if text not in BITS and re.fullmatch(r"\W*(int)?\d+[\W_]*(bits?)?\W*", text, re.I):
                raise InputError(
                    f"Expected a baseline `8bit`, `4bit` or the source of a model but got {text!r}."
                )
        self.margins = Margins(keep, margin)
        self.speed = speed
        self.verbose = verbose
        self.baselines = [*dict.fromkeys(baselines)]
        self.gains: dict[str, Any] | None = None  # of the last validation, on rank 0
        self.verdicts: list[Verdict] = []  # of the last validation; empty on other ranks than 0
        self.words: list[Word] = []  # of each use, of all validations
        self.folder: Path | None = None  # for the files; None is the folder in the docstring
        self.brief = False  # True prints only the verdicts, as a sweep needs
        self.silent = False  # True prints nothing, as a search needs
        self.beside = False  # True for a baseline: the run that asks for it checks the margins
        self.kept: Path | None = None  # folder `earlier_N` of other results, of the last validation
        self.curves: dict[str, list[Curve]] = {}  # by the task's name; empty on other ranks than 0
        self._tables: list[Table] = []  # to print
        self.into = Path()  # folder of the last validation
        self._written: Path | None = None
        self._pruned: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse margins of tasks that the run does not have."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, PruneData) and not self.beside:
            self.check(data)

    def check(self, data: PruneData) -> None:
        """Refuse margins of tasks and uses that the data does not have.

        Args:
            data: of the run.

        Raises:
            InputError: naming the option and similar names.
        """
        self.margins.check([*data.tasks, *data.uses()])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the folder; on every rank, as Lightning shares the logger's folder between them."""
        self.kept = None
        self.into = self.folder or Path(trainer.log_dir or trainer.default_root_dir)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write results, items, figures and TensorBoard; on the first rank only."""
        # A validation during training logs its scalars, and writes no files.
        if trainer.state.fn != "validate" or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, PairedLM)
        evaluation = pl_module.evaluation
        assert evaluation is not None
        for name, error in evaluation.failed.items():
            rank_zero_info(f"The task {name!r} has no results: {first_line(error)}")
        reports, folder = evaluation.reports, self.into
        if not reports:
            return
        callback = next((c for c in trainer.callbacks if isinstance(c, Pruning)), None)  # type: ignore[attr-defined]
        pruning = callback.report if callback else None
        scored = [
            (result, report.scores)
            for report in reports.values()
            for result in report.results
            if report.scores is not None and result.metric == "retained"
        ]
        self.verdicts = decide(scored, self.margins)
        self.words += use_words(self.verdicts).values()
        if not self.beside:
            for sentence in self.margins.without_verdict(list(reports), self.verdicts):
                rank_zero_info(sentence)
        self._write_results(pl_module, callback)
        around = json.dumps(describe_environment(trainer), indent=2)
        write_text(folder / ENVIRONMENT, f"{around}\n")
        if scored:
            write_items(score_rows(scored), folder / SCORES)
        if evaluation.failed:
            rank_zero_info(f"Results of the other tasks: {folder / RESULTS}")
        for name, report in reports.items():
            write_items(report.items, folder / "items" / f"{name}.parquet")
        self.curves = {name: list(report.curves) for name, report in reports.items()}
        pictures = self._pictures(pl_module.results, reports, pruning)
        for name, picture in pictures.items():
            write_picture(picture, folder / "figures", name)
        for name, curves in self.curves.items():
            if curves:
                text = as_csv(curve_numbers(curves))
                write_text(folder / "figures" / f"{name}_curves.csv", text)
        texts = {name: list(report.texts) for name, report in reports.items()}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                write_pictures(logger.experiment, pictures)
                write_texts(logger.experiment, texts)
                write_texts(logger.experiment, class_rows(pl_module.results), "classes")
                write_curves(logger.experiment, self.curves)
                self._log_hyperparameters(logger, pl_module, pruning)
        self._tell_overlaps(trainer.datamodule, pl_module)  # type: ignore[attr-defined]
        self._measure_gains(pl_module, callback)
        self._tables = printed_tables(reports.values())
        self._pruned = None if callback is None else callback.written
        self._write_outcome()
        self._written = folder / RESULTS

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the tables, after the progress bar has left the screen."""
        if self._written is None:
            return
        if self.silent:
            self._written = None
            return
        assert isinstance(pl_module, PairedLM)
        if self.verbose and not self.brief:
            for table in self._tables:
                show(table)
        elif not self.brief:
            print(*brief_lines(pl_module.results), sep="\n")
        rank_zero_info(f"Results: {self._written}")
        for logger in () if self.brief else trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                rank_zero_info(f"To see the figures: tensorboard --logdir {logger.save_dir}")
        if self.gains is not None:
            print(wrap(gain_sentence(self.gains)))
        if self.verbose and self.verdicts:
            show(headline_table(verdict_cells(self.verdicts)))
        self._written = None
        if not self.baselines:
            self._tell_verdicts([])

    def close(self) -> None:
        """Write again what follows from the results, now with their baselines; print the end."""
        run = self._write_outcome()
        if self.silent:
            return
        self._tell_verdicts(baseline_sentences(run))

    def _tell_verdicts(self, baselines: Sequence[str]) -> None:
        for sentence in (*use_sentences(self.verdicts), *baselines):
            print(wrap(visible(sentence)))
        print(f"Page: {self.into / PAGE}", flush=True)

    def _write_outcome(self) -> Run:
        run = read_run(self.into)
        decide_run(run, self.margins)
        run.written = self._pruned
        if (sentence := write_outcome(run)) is not None:
            rank_zero_info(sentence)
        return run

    def _write_results(self, module: PairedLM, callback: Pruning | None) -> None:
        """Write the results with the origin of the models; other results there are kept."""
        origin: dict[str, Any] = {}
        if callback is not None and callback.report is not None:
            origin = {
                "recipe": recipe_id(callback.report["recipe"]),
                "pruned": str(callback.written) if callback.written else None,
            }
        elif module.weights.candidate is not None:
            origin = {
                "pruned": module.weights.candidate.source,
                "models": module.weights.identities(),
            }
        results = [replace(result, **origin) for result in module.results]
        path, text = self.into / RESULTS, format_results(results)
        if path.is_file() and path.read_bytes() != text.encode():
            self.kept = keep_earlier(self.into, OUTCOME)
            rank_zero_info(f"Other results were here; they are now in {self.kept}.")
        write_results(results, path)

    def _tell_overlaps(self, data: PruneData, module: PairedLM) -> None:
        """Write and tell which items are in the calibration text; no file if none is."""
        path = self.into / OVERLAP
        path.unlink(missing_ok=True)
        if found := find_overlaps(data, module.tokenizer, self.into / "items"):
            write_text(path, json.dumps(found, ensure_ascii=False, indent=2) + "\n")
        for sentence in overlap_sentences(found):
            rank_zero_info(visible(sentence))

    def _measure_gains(self, module: PairedLM, callback: Pruning | None) -> None:
        """Measure and write the gains; those of an earlier run of these results are not kept."""
        self.gains, path = None, self.into / GAINS
        path.unlink(missing_ok=True)
        pruned = module.weights.candidate is not None or (callback and callback.report)
        if self.speed and pruned and not self.brief and module.pair.dense is not None:
            report, written = (callback.report, callback.written) if callback else (None, None)
            self.gains = measure_gains(module.weights, report, written)
            write_text(path, json.dumps(self.gains, indent=2) + "\n")

    def _pictures(
        self,
        results: Sequence[Result],
        reports: Mapping[str, TaskReport],
        pruning: dict[str, Any] | None,
    ) -> dict[str, Picture]:
        pictures = {"scores": Picture(scores_figure(results), scores_numbers(results))}
        if self.verdicts:
            pictures["retained"] = headline_picture(verdict_cells(self.verdicts))
        if pruning is not None:
            pictures["sparsity"] = Picture(sparsity_figure(pruning), sparsity_numbers(pruning))
        for task, report in reports.items():
            for name, picture in report.pictures:
                own = name == task or name.startswith(f"{task}_")
                pictures[name if own else f"{task}_{name}"] = picture
        return pictures

    def _log_hyperparameters(
        self, logger: TensorBoardLogger, module: PairedLM, pruning: dict[str, Any] | None
    ) -> None:
        parameters: dict[str, Any] = {"model": module.source}
        if module.weights.candidate is not None:
            parameters["candidate"] = module.weights.candidate.source
        metrics = {scalar_name(result): result.value for result in module.results}
        if pruning is not None:
            pruner = pruning["recipe"]["pruner"]
            parameters |= {"pruner": pruner["class_path"].rpartition(".")[2]}
            parameters |= {
                key: value if isinstance(value, bool | int | float) else str(value)
                for key, value in list_options(pruner["init_args"])
            }
            metrics["sparsity"] = pruning["sparsity"]
            metrics |= {name: pruning[name] for name in ("stored_parameters", "stored_bytes")}
        logger.log_metrics(metrics)
        write_hyperparameters(logger.experiment, parameters)
        logger.experiment.flush()
        # Lightning writes this file at the start, before the options are known.
        save_hparams_to_yaml(Path(logger.log_dir) / "hparams.yaml", parameters)


def check_outcome(folder: str | Path) -> None:
    """Refuse a folder in which the results of a run cannot have their names.

    Args:
        folder: of the results; it need not exist.

    Raises:
        InputError: naming the file or folder that is in the way.
    """
    check_names(folder, files=(*OUTCOME_FILES, "config.yaml"), folders=OUTCOME_FOLDERS)


def printed_tables(reports: Iterable[TaskReport]) -> list[Table]:
    """Build one table of all tasks that have no table of their own, then add those own tables.

    Tasks with fixed answers have one more, a line for each answer.
    """
    reports = list(reports)
    results = [result for report in reports if report.table is None for result in report.results]
    own = [report.table for report in reports if report.table is not None]
    return [*([results_table(results)] if results else []), *class_tables(results), *own]
