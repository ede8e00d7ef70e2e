"""The Trainer with one method for each subcommand of the command line.

An interrupted run resumes in two places: `callbacks/checkpoints.py` restores a training,
`core/journals.py` an evaluation.

Internal: the public name, `PruneTrainer`, is in `prunelit`.
"""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from prunelit.core.checks import check_trainer
from prunelit.core.datamodule import PruneData
from prunelit.errors import InputError, first_line
from prunelit.pruners.base import Pruner
from prunelit.sweep import sweep


class PruneTrainer(Trainer):
    """A `lightning.Trainer` with the three runs of prunelit; its arguments are Lightning's.

    Each run checks the settings before it starts other processes.

    Example:
        >>> from prunelit import PruneTrainer
        >>> trainer = PruneTrainer(accelerator="cpu", devices=1, max_epochs=0, logger=False)
        >>> trainer.max_epochs  # 0: prune and compare, without training
        0
    """

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
            _check_checkpoint(str(ckpt_path))
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path, **kwargs)
        if self.state.finished:
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
        sweep(self, model, datamodule, variants)


def _check_checkpoint(path: str) -> None:
    if not Path(path).is_file():
        raise InputError(
            f"Expected `ckpt_path` to be a checkpoint or `last` but there is no file {path!r}."
        )
    try:
        torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:
        raise InputError(f"The checkpoint {path!r} cannot be read: {first_line(error)}") from error
