"""The Trainer with one method for each subcommand of the command line.

An interrupted run resumes in two places: `callbacks/checkpoints.py` restores a training,
`resume.py` an evaluation.

Internal: the public name, `PruneTrainer`, is in `prunelit`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from prunelit.callbacks.checkpoints import (
    check_checkpoint,
    checkpoint_folders,
    last_callbacks,
    last_checkpoints,
)
from prunelit.callbacks.pruning import Pruning
from prunelit.core.checks import check_trainer
from prunelit.core.datamodule import PruneData
from prunelit.core.private_api import child_processes, claim_version, leave_signals
from prunelit.core.signals import Stopped, stop_on_signals
from prunelit.files import check_folder, explain_full, make_folder, only_writer
from prunelit.pruners.base import Pruner
from prunelit.sweep import sweep, sweep_folder

_SAME_COMMAND = (
    "The same command continues: pruned models that are written, and measured batches of "
    "generation tasks, are used again."
)

_VALIDATE = "The pruned model is written: `prunelit validate` with the same options compares it."


class PruneTrainer(Trainer):
    """A `lightning.Trainer` with the three runs of prunelit; its arguments are Lightning's.

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

    _within, _nested = False, False  # True inside `_alone` and inside `_stoppable`

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
        if ckpt_path not in (None, "last"):
            check_checkpoint(ckpt_path)
        elif ckpt_path == "last" and self.is_global_zero:
            for path in last_checkpoints(self):
                check_checkpoint(path)
        for callback in last_callbacks(self):
            callback.starts_anew = ckpt_path is None
        outputs = [c.folder(self) for c in self.callbacks if isinstance(c, Pruning)]  # type: ignore[attr-defined]
        with self._alone(*outputs, *self._checkpoints()):
            with self._stoppable(self._after_fit):
                super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path, **kwargs)
            if self.state.finished:
                with self._stoppable(lambda: _VALIDATE):
                    self.validate(model, datamodule=datamodule)

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
        with self._alone(), self._stoppable(lambda: _SAME_COMMAND):
            return list(super().validate(model, datamodule=datamodule, verbose=verbose, **kwargs))

    def sweep(
        self,
        model: LightningModule,
        datamodule: PruneData | None = None,
        *,
        variants: dict[str, Pruner],
    ) -> None:
        """Prune one model in several ways, write each, compare all with the dense one.

        Args:
            model: a `PairedLM`.
            datamodule: text to calibrate on, and the tasks.
            variants: the pruner of each variant, by the name of its folder.

        Raises:
            InputError: naming the variant or the setting that does not fit.
        """
        check_trainer(self)
        folders = {Path(self.default_root_dir) / "sweep", sweep_folder(self) / "sweep"}
        with self._alone(*folders, logs=False), self._stoppable(lambda: _SAME_COMMAND):
            sweep(self, model, datamodule, variants)

    @contextmanager
    def _alone(self, *paths: Path, logs: bool = True) -> Iterator[None]:
        """Give this run a `version_N` of its own; refuse paths that another run is writing."""
        if self._within or not self.is_global_zero:
            yield
            return
        self._check_folders()
        with ExitStack() as stack:
            for path in paths:
                stack.enter_context(only_writer(path))
            for logger in self.loggers if logs else ():
                if (claimed := claim_version(logger)) is not None:
                    stack.callback(_remove_if_empty, claimed)
                elif logger.log_dir:
                    stack.enter_context(only_writer(logger.log_dir))
            self._within = True
            stack.callback(setattr, self, "_within", False)
            yield

    def _checkpoints(self) -> list[Path]:
        return [callback.path for callback in last_callbacks(self) if self.max_epochs != 0]

    @contextmanager
    def _stoppable(self, how_to_go_on: Callable[[], str]) -> Iterator[None]:
        """End a run that a signal or a full disk stops with a sentence.

        A nested one only lets errors through.
        """
        leave_signals(self)
        nested, self._nested = self._nested, True
        with stop_on_signals(), explain_full(self.default_root_dir):
            try:
                yield
            except Stopped as stop:
                if not nested:
                    for child in child_processes(self):
                        child.kill()
                    if self.is_global_zero:
                        stop.tell(how_to_go_on())
                    stop.told = True  # the first process tells
                raise
            finally:
                self._nested = nested

    def _check_folders(self) -> None:
        """Refuse folders that cannot be written, and give links that lead nowhere their folder."""
        logged = [logger.save_dir for logger in self.loggers if logger.save_dir]
        for folder in (self.default_root_dir, *logged, *checkpoint_folders(self)):
            for path in (Path(folder), *Path(folder).parents):
                if path.is_symlink() and not path.exists():
                    check_folder(path)
                    make_folder(path)
            check_folder(folder)

    def _after_fit(self) -> str:
        if written := last_checkpoints(self):
            return f"Continue from {written[0]} with `--ckpt_path last`."
        return "No checkpoint is written yet: start the same command again."


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
