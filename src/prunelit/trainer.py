"""The Trainer with one method for each subcommand of the command line.

An interrupted run resumes in two places: `callbacks/checkpoints.py` restores a training,
`core/resume.py` an evaluation.

Internal: the public name, `PruneTrainer`, is in `prunelit`.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from prunelit.arguments import checked
from prunelit.callbacks.baselines import check_baselines, measure_baselines, refuse_baselines
from prunelit.callbacks.checkpoints import (
    checkpoint_folders,
    last_callbacks,
    last_checkpoints,
    read_checkpoint,
)
from prunelit.callbacks.overview import sweep_folder
from prunelit.callbacks.pruning import Pruning
from prunelit.callbacks.results import RESULTS, Results, check_outcome
from prunelit.core.checks import check_trainer
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.core.private_api import (
    ResumingTrainer,
    child_processes,
    claim_version,
    leave_signals,
    restores_checkpoint,
    writes_folders,
)
from prunelit.core.processes import without_gradients
from prunelit.core.signals import Stopped, launching, stop_on_signals
from prunelit.errors import InputError, first_line
from prunelit.files import (
    UNFINISHED,
    check_folder,
    check_names,
    explain_full,
    is_full,
    make_folder,
    only_writer,
    put_back,
    replace_folder,
)
from prunelit.pruners.base import Pruner
from prunelit.sweep import search, sweep

_SAME_COMMAND = (
    "The same command continues: pruned models that are written, and measured batches of "
    "generation tasks, are used again."
)

_EVENTS_HEADER = 88  # bytes of a file of TensorBoard without an event
_VALIDATE = "The pruned model is written: `prunelit validate` with the same options compares it."


class PruneTrainer(ResumingTrainer):
    """A `lightning.Trainer` with the five runs of prunelit; its arguments are Lightning's.

    Each run checks the settings before it starts other processes.

    A signal (SIGTERM, SIGINT, SIGHUP, SIGUSR1) ends a run with the status 128 plus its number and a
    sentence that says how to go on. A training with `LastCheckpoint` writes a checkpoint first. A
    second signal ends it at once.

    Example:
        >>> from prunelit import PruneTrainer
        >>> trainer = PruneTrainer(accelerator="cpu", devices=1, max_epochs=0, logger=False)
        >>> trainer.max_epochs  # 0: prune and compare, without training
        0
    """

    _inside = False  # True while a run of this Trainer goes on

    @checked
    def fit(  # type: ignore[override]
        self,
        model: LightningModule,
        datamodule: PruneData | None = None,
        ckpt_path: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Prune the model, train it on, write it, and compare it with the dense one.

        Args:
            model: a `PairedLM`.
            datamodule: text to calibrate and train on, and the tasks.
            ckpt_path: a checkpoint of this run to resume from. `last` is the newest one; without
                any checkpoint it starts from the beginning.
            **kwargs: as in Lightning.

        Raises:
            InputError: if there is no such checkpoint, or it is broken; or naming a setting that
                does not fit.
        """
        check_trainer(self)
        _check_prunes(model)
        self._tell_unpruned(model)
        measures = not isinstance(datamodule, PruneData) or bool(datamodule.tasks)
        if not measures:
            rank_zero_info("Nothing is measured, since `data.tasks` is not given.")
        for callback in last_callbacks(self):
            callback.starts_anew = ckpt_path is None
            if self.is_global_zero:
                put_back(callback.path)
        if ckpt_path not in (None, "last"):
            read_checkpoint(ckpt_path, checksums=True)
            self._check_kind(Path(ckpt_path), "choose another one")
        elif ckpt_path == "last" and self.is_global_zero:
            for path in last_checkpoints(self):
                read_checkpoint(path, checksums=True)
        own = [callback.path for callback in last_callbacks(self) if self.max_epochs != 0]
        finished = False
        with self._one_run(lambda: _VALIDATE if finished else self._after_fit(), datamodule, *own):
            if self.is_global_zero:
                check_baselines(self, model, datamodule)
            with _restoring(ckpt_path), without_gradients(self):
                super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path, **kwargs)
            finished = self.state.finished
            if finished and measures:
                self.validate(model, datamodule=datamodule)

    @checked
    def validate(  # type: ignore[override]
        self,
        model: LightningModule,
        datamodule: PruneData | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Compare the pruned model that `fit` wrote with the dense one.

        Raises:
            InputError: naming a setting that does not fit.
        """
        check_trainer(self)
        begins = not self._inside
        if begins:
            if isinstance(datamodule, PruneData) and not datamodule.tasks:
                raise InputError("Expected at least one task in `data.tasks` but got none.")
            self._tell_unpruned(model)
        with self._one_run(lambda: _SAME_COMMAND, datamodule):
            if begins and self.is_global_zero:
                check_baselines(self, model, datamodule)
            found = super().validate(model, datamodule=datamodule, verbose=verbose, **kwargs)
            measure_baselines(self, model, datamodule)
            return list(found)

    @checked
    def compare(self, model: LightningModule, datamodule: PruneData | None = None) -> list[Any]:
        """Compare a candidate, a model of any origin, with the dense one.

        It is `validate` with the candidate in the place of the pruned model.

        Args:
            model: a `PairedLM` with a `candidate`.
            datamodule: the tasks.

        Raises:
            InputError: without a candidate or a task, or naming what does not fit.
        """
        if not isinstance(model, PairedLM) or model.weights.candidate is None:
            raise InputError(
                "Expected `model.candidate`, the model to compare with `model.source`: give a "
                "folder, a GGUF file or a name on the hub."
            )
        if datamodule is None or not datamodule.tasks:
            raise InputError(
                "Expected at least one task to compare the two models on: give `data.tasks`, or "
                "leave `--config` out for the default ones."
            )
        return self.validate(model, datamodule=datamodule)

    @checked
    def sweep(
        self,
        model: LightningModule,
        datamodule: PruneData | None = None,
        *,
        variants: dict[str, Pruner],
        grid: dict[str, list[float]] | str | None = None,
        knobs: dict[str, str] | None = None,
    ) -> None:
        """Prune one model in several ways, write each, compare all with the dense one.

        Args:
            model: a `PairedLM`.
            datamodule: text to calibrate on, and the tasks.
            variants: the pruner of each variant, by the name of its folder.
            grid: settings of one numeric option of a variant, in ascending order, by its name. Each
                setting takes the place of the variant. As a text: `wanda=0.2,0.3;drop=1,2`.
            knobs: path of that option by the name of a variant, such as `sparsity.ratio`; without a
                path it is the option `ratio` or `count`.

        Raises:
            InputError: naming the variant or the setting that does not fit.
        """
        check_trainer(self)
        _check_prunes(model)
        refuse_baselines(self)
        with self._one_run(lambda: _SAME_COMMAND, datamodule, *self._folders(), logs=False):
            sweep(self, model, datamodule, variants, grid, knobs)

    @checked
    def search(
        self,
        model: LightningModule,
        datamodule: PruneData | None = None,
        *,
        variants: dict[str, Pruner],
        grid: dict[str, list[float]] | str,
        knobs: dict[str, str] | None = None,
        uses: list[str] | None = None,
        seeds: int = 1,
    ) -> None:
        """Find the strongest setting of each method that still keeps each use, by bisection.

        The answer is the strongest measured setting such that it and every weaker measured one keep
        the use. Each setting is measured as a variant of a sweep.

        Args:
            model: a `PairedLM`.
            datamodule: text to calibrate on, and the tasks.
            variants: the pruner of each method by its name.
            grid: settings of one numeric option of a method, in ascending order, by its name. As a
                text: `wanda=0.2,0.3;drop=1,2`. Methods without settings are not searched.
            knobs: path of that option by the name of a method, such as `sparsity.ratio`; without a
                path it is the option `ratio` or `count`.
            uses: of the model that are searched; None is all that the tasks measure.
            seeds: number of calibration texts with which the settings around the answers are
                measured, to see the spread.

        Raises:
            InputError: naming the variant or the setting that does not fit.
        """
        check_trainer(self)
        _check_prunes(model)
        refuse_baselines(self)
        with self._one_run(lambda: _SAME_COMMAND, datamodule, *self._folders(), logs=False):
            search(self, model, datamodule, variants, grid, knobs, uses, seeds)

    def save_checkpoint(
        self, filepath: Any, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """Write a checkpoint as Lightning does; a kill leaves the last one, file or folder."""
        with ExitStack() as stack:
            if writes_folders(self.strategy) and self.is_global_zero:  # whose path is that of all
                filepath = stack.enter_context(replace_folder(filepath))
            super().save_checkpoint(filepath, weights_only, storage_options)
        self.strategy.barrier("prunelit-checkpoint")

    def _folders(self) -> set[Path]:
        """Return what a sweep or a search locks."""
        return {Path(self.default_root_dir) / "sweep", sweep_folder(self) / "sweep"}

    def _tell_unpruned(self, model: LightningModule) -> None:
        """Say that both models are the dense one."""
        prunes = any(isinstance(callback, Pruning) for callback in self.callbacks)  # type: ignore[attr-defined]
        if isinstance(model, PairedLM) and model.weights.candidate is None and not prunes:
            rank_zero_info(
                "Nothing is pruned, since `pruning` is not given (in Python the callback "
                "`Pruning`): the model is measured as it is."
            )

    @contextmanager
    def _one_run(
        self,
        how_to_go_on: Callable[[], str],
        data: PruneData | None,
        *paths: Path,
        logs: bool = True,
    ) -> Iterator[None]:
        """Give a run folders of its own; a signal or a full disk ends it with a sentence.

        A run inside another one, such as the validation of `fit`, is a part of it.

        Args:
            how_to_go_on: gives the sentence after a signal.
            data: is read before the folders are claimed, so that a mistake in it shows first.
            paths: of files and folders that only one run may write.
            logs: give the loggers folders that no other run writes.
        """
        if self._inside:
            yield
            return
        leave_signals(self)
        with ExitStack() as stack:
            stack.enter_context(stop_on_signals())
            stack.enter_context(explain_full(self.default_root_dir))
            self._inside = True
            stack.callback(setattr, self, "_inside", False)
            try:
                if self.local_rank == 0:
                    stack.enter_context(launching())
                if self.is_global_zero:
                    self._check_folders()
                    if isinstance(data, PruneData):
                        data.read()
                    self._claim(stack, paths, logs)
                yield
            except Stopped as stop:
                for child in child_processes(self):
                    child.kill()
                if self.is_global_zero:
                    stop.tell(how_to_go_on())
                stop.pass_on()
                stop.told = True  # the first process tells
                raise

    def _claim(self, stack: ExitStack, paths: Iterable[Path], logs: bool) -> None:
        """Make the next `version_N` of each logger; refuse paths that another run is writing."""
        for path in paths:
            stack.enter_context(only_writer(path))
        for logger in self.loggers if logs else ():
            if (claimed := claim_version(logger)) is not None:
                stack.push(partial(_remove_unused, logger, claimed))
            elif logger.log_dir:
                stack.enter_context(only_writer(logger.log_dir))
        results = [c for c in self.callbacks if isinstance(c, Results)]  # type: ignore[attr-defined]
        if logs and results:
            if not self.loggers:
                stack.enter_context(only_writer(Path(self.default_root_dir) / RESULTS))
            logged = [logger.log_dir for logger in self.loggers[:1] if logger.log_dir]
            check_outcome(results[0].folder or next(iter(logged), self.default_root_dir))

    def _check_folders(self) -> None:
        """Refuse folders that cannot be written, and give links that lead nowhere their folder."""
        logged = [logger.save_dir for logger in self.loggers if logger.save_dir]
        for folder in (self.default_root_dir, *logged, *checkpoint_folders(self)):
            for path in (Path(folder), *Path(folder).parents):
                if os.path.islink(path) and not os.path.exists(path):
                    check_folder(path)
                    make_folder(path)
            check_folder(folder)
        check_names(self.default_root_dir, folders=[UNFINISHED])
        for callback in last_callbacks(self):
            self._check_kind(callback.path, "move it away")

    def _check_kind(self, path: Path, then: str) -> None:
        """Refuse a checkpoint of another strategy: a folder holds shards, a file whole weights."""
        folder = writes_folders(self.strategy)
        if path.exists() and path.is_dir() != folder:
            wanted, found = ("folder", "file") if folder else ("file", "folder")
            raise InputError(
                f"Expected a checkpoint at {str(path)!r} but found a {found}, and "
                f"{type(self.strategy).__name__} writes a {wanted}: {then}, or use the strategy of "
                "that run."
            )

    def _after_fit(self) -> str:
        if written := last_checkpoints(self):
            return f"Continue from {written[0]} with `--ckpt_path last`."
        return "No checkpoint is written yet: start the same command again."


def _check_prunes(model: LightningModule) -> None:
    if isinstance(model, PairedLM):
        model.check_prunes()


def _remove_unused(logger: Logger, folder: Path, _: Any, error: Any, __: Any) -> None:
    """Remove an empty folder of a run, and that of a refused run with no more than a header.

    Lightning opens TensorBoard's file before the checks of a run.
    """
    if not folder.is_dir():
        return
    if isinstance(error, InputError) and isinstance(logger, TensorBoardLogger):
        logger.experiment.close()  # a later run of this logger opens another file
        for file in folder.glob("events.out.tfevents.*"):
            if file.stat().st_size <= _EVENTS_HEADER:
                file.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def _restoring(ckpt_path: str | None) -> Iterator[None]:
    """Name the checkpoint in an error of restoring it, whose content can be of any form."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if ckpt_path is None or not restores_checkpoint(error) or is_full(error):
            raise
        raise InputError(
            f"The checkpoint {ckpt_path!r} cannot be restored ({type(error).__name__}: "
            f"{first_line(error)}): continue from another one, or remove it and start without "
            "`ckpt_path`."
        ) from error
