"""Refusals of a session: what the arguments of a sweep or a search must be, before any work."""

import os
import re
from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from prunelit.callbacks.overview import OVERVIEW, sweep_folder
from prunelit.callbacks.pruning import Pruning
from prunelit.callbacks.results import check_outcome
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.errors import InputError
from prunelit.files import check_names
from prunelit.pruners.base import Pruner
from prunelit.report.page.records import FIGURES
from prunelit.report.page.runs import PAGE
from prunelit.report.search import SEARCH

_RESERVED = (OVERVIEW, FIGURES, SEARCH, PAGE, "config.yaml")


def check_session(
    trainer: Trainer, module: LightningModule, data: object, pruners: Mapping[str, Pruner]
) -> tuple[PairedLM, PruneData]:
    """Refuse arguments of a sweep or a search that do not fit.

    Args:
        trainer: of the run.
        module: must be a `PairedLM`.
        data: must be a `PruneData` with a task.
        pruners: the variants by the name of their folder.

    Returns:
        The module and the data.

    Raises:
        InputError: naming what does not fit.
    """
    if not isinstance(module, PairedLM) or not isinstance(data, PruneData):
        raise InputError("Expected a `PairedLM` and a `PruneData` to sweep over.")
    if not pruners:
        raise InputError("Expected at least one pruner in `variants` but got none.")
    for name, pruner in pruners.items():
        plain = isinstance(name, str) and re.fullmatch(r"\w[\w.+=-]{0,149}", name)
        if not plain or name in _RESERVED:
            raise InputError(
                f"Expected names in `variants` of letters, digits and `_.+=-`, since each names a "
                f"folder, and other than {OVERVIEW} and {FIGURES}, but got {name!r}: put "
                "numbers in quotes."
            )
        if not isinstance(pruner, Pruner):
            raise InputError(
                f"Expected the variant {name!r} to be a Pruner but got {type(pruner).__name__}."
            )
    if not data.tasks:
        raise InputError("Expected at least one task in `data.tasks` but got none.")
    if trainer.max_epochs != 0:
        raise InputError(
            f"Expected `trainer.max_epochs` 0 but got {trainer.max_epochs}: a sweep does not train."
        )
    if any(isinstance(callback, Pruning) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise InputError(
            "Expected no `Pruning` callback in a sweep, since the sweep adds one for each variant: "
            "remove it."
        )
    for path in (sweep_folder(trainer), *(sweep_folder(trainer) / name for name in pruners)):
        if os.path.isfile(path):
            raise InputError(
                f"Expected a folder for the results at {str(path)!r} but found a file: rename or "
                "move the file."
            )
        check_outcome(path)
    check_names(sweep_folder(trainer), files=[SEARCH])
    if len(trainer.loggers) > 1 or not all(
        isinstance(logger, TensorBoardLogger) for logger in trainer.loggers
    ):
        raise InputError(
            "Expected `trainer.logger` of a sweep to be one TensorBoardLogger or false but got "
            f"{[type(logger).__name__ for logger in trainer.loggers]}."
        )
    return module, data
