"""Prune one model in several ways, and compare the variants in shared figures.

Internal: the public name is `PruneTrainer.sweep` in `prunelit`.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from prunelit.callbacks.pruned_folder import check_output
from prunelit.callbacks.pruning import Pruning
from prunelit.callbacks.results import Results, check_outcome
from prunelit.callbacks.rounds import require_prunelit
from prunelit.callbacks.tensorboard import write_pictures
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.errors import InputError
from prunelit.files import keep_earlier, write_text
from prunelit.pruners import BlockDrop, SublayerDrop
from prunelit.pruners.base import Pruner
from prunelit.pruning.blockwise import check_text
from prunelit.report.curves import Curve, as_csv, write_picture
from prunelit.report.overview import ALL_FIGURES, overview
from prunelit.report.page.runs import PAGE
from prunelit.report.results import Result
from prunelit.report.tables import markdown_table, show
from prunelit.report.variants import (
    Variant,
    format_variants,
    read_variants,
    same_dense,
    variants_cells,
    variants_numbers,
    variants_table,
)

OVERVIEW, FIGURES, VARIANTS = "overview", "figures", "variants.json"

_KINDS = {
    "attention": "attention sublayers",
    "mlp": "MLP sublayers",
    "both": "sublayers of both kinds",
}


def sweep(
    trainer: Trainer, model: LightningModule, data: PruneData | None, pruners: Mapping[str, Pruner]
) -> None:
    """Prune, write and measure one variant after the other, then draw figures of all variants.

    The dense weights are read once. Each variant is pruned from them as if it were the only one. It
    leaves the same files as `fit`. The model is in `<default_root_dir>/<variant>/pruned`; a later
    sweep uses it again if its recipe is the same. The results are in a folder of the logger with
    the variant's name as version, or in `<default_root_dir>/<variant>` without a logger.

    Args:
        trainer: gets its own callbacks and loggers back at the end.
        model: a `PairedLM`.
        data: a `PruneData` with at least one task.
        pruners: the variants, by the name of their folder.

    Raises:
        InputError: before any weight is pruned, if a variant or a setting does not fit. Later, if
            pruning or a task fails; the earlier variants are then written and in the figures.
    """
    module, data = _check(trainer, model, data, pruners)
    callbacks, loggers = list(trainer.callbacks), list(trainer.loggers)  # type: ignore[attr-defined]
    logger = loggers[0] if loggers else None
    assert logger is None or isinstance(logger, TensorBoardLogger)
    results = next((c for c in callbacks if isinstance(c, Results)), None) or Results()
    results.brief = True
    others = [callback for callback in callbacks if callback is not results]
    prunings = {name: _pruning(trainer, name, pruner) for name, pruner in pruners.items()}
    start = _Start(prunings)
    variants: list[Variant] = []
    try:
        for place, name in enumerate(pruners):
            rank_zero_info(f"Variant {place + 1} of {len(pruners)}: {name}.")
            pruning = prunings.pop(name)  # frees its masks after the variant
            trainer.callbacks = [start, pruning, *others, results]  # type: ignore[attr-defined]
            trainer.loggers = [_version(logger, name)] if logger else []
            results.folder = None if logger else sweep_folder(trainer) / name
            module.discard_pruned()
            reset_seed()  # so that no variant depends on those before it
            with _events_of_one(trainer, results):
                trainer.validate(module, datamodule=data, verbose=False)
            variants.append(_variant(name, module.results, results.curves, pruning))
    finally:
        trainer.callbacks, trainer.loggers = callbacks, loggers  # type: ignore[attr-defined]
        results.folder, results.brief = None, False
        # Also after a later variant has failed.
        if trainer.is_global_zero and variants:
            _write(variants, sweep_folder(trainer), logger)
            if missing := [name for name in pruners if name not in {v.name for v in variants}]:
                rank_zero_info(f"Not in the figures: {', '.join(missing)} (failed or not started).")


def sweep_folder(trainer: Trainer) -> Path:
    """Return the folder of all variants: `<save_dir>/<name>` of a logger or `default_root_dir`."""
    logger = trainer.logger
    return Path(
        logger.root_dir if isinstance(logger, TensorBoardLogger) else trainer.default_root_dir
    )


class _Start(Callback):
    """Check all variants before the first one is pruned."""

    def __init__(self, prunings: Mapping[str, Pruning]) -> None:
        self._left = dict(prunings)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the variants when the data is ready, once."""
        if not self._left:
            return
        _, module = require_prunelit(trainer, pl_module)
        module.check_run()
        data: PruneData = trainer.datamodule  # type: ignore[attr-defined]
        for pruning in self._left.values():
            recipe = pruning.recipe(data, module)
            check_output(pruning.find_folder(trainer, module, recipe), recipe)
        module.load()
        assert module.model is not None
        module.check_tasks()
        for name, pruning in self._left.items():
            try:
                pruning.pruner.check(module.model)
                if data.calibration is None:
                    check_text(pruning.pruner, module.model)
            except InputError as error:
                raise InputError(f"Variant {name!r} cannot be pruned. {error}") from error
        self._left.clear()
        module.discard_pruned()


def _check(
    trainer: Trainer, module: LightningModule, data: object, pruners: Mapping[str, Pruner]
) -> tuple[PairedLM, PruneData]:
    if not isinstance(module, PairedLM) or not isinstance(data, PruneData):
        raise InputError("Expected a `PairedLM` and a `PruneData` to sweep over.")
    if not pruners:
        raise InputError("Expected at least one pruner in `variants` but got none.")
    for name, pruner in pruners.items():
        plain = isinstance(name, str) and re.fullmatch(r"\w[\w.+=-]{0,149}", name)
        if not plain or name in (OVERVIEW, FIGURES):
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
    if len(trainer.loggers) > 1 or not all(
        isinstance(logger, TensorBoardLogger) for logger in trainer.loggers
    ):
        raise InputError(
            "Expected `trainer.logger` of a sweep to be one TensorBoardLogger or false but got "
            f"{[type(logger).__name__ for logger in trainer.loggers]}."
        )
    return module, data


def _pruning(trainer: Trainer, name: str, pruner: Pruner) -> Pruning:
    pruning = Pruning(pruner, output=str(Path(trainer.default_root_dir) / name / "pruned"))
    pruning.always_writes = True
    return pruning


def _version(logger: TensorBoardLogger, version: str) -> TensorBoardLogger:
    return TensorBoardLogger(
        logger.save_dir, logger.name, version, default_hp_metric=False, sub_dir=logger.sub_dir
    )


@contextmanager
def _events_of_one(trainer: Trainer, results: Results) -> Iterator[None]:
    """Let the folder of a variant have the curves of one sweep: others would be drawn over them."""
    earlier = [path for logger in trainer.loggers for path in _events(logger)]
    yield
    if trainer.is_global_zero:
        _clear(earlier, results.kept)


def _events(logger: Logger) -> list[Path]:
    return sorted(Path(logger.log_dir or "").glob("events.out.tfevents.*"))


def _clear(events: Sequence[Path], kept: Path | None) -> None:
    """Move events to the folder that has the results of their sweep; delete those of the same."""
    for path in events:
        path.unlink() if kept is None else path.rename(kept / path.name)


def _variant(
    name: str,
    results: Sequence[Result],
    curves: Mapping[str, Sequence[Curve]],
    pruning: Pruning,
) -> Variant:
    report = pruning.report
    assert report is not None
    sizes = [(report[f"{m}parameters"], report[f"{m}bytes"]) for m in ("", "stored_")]
    return Variant(name, results, curves, report["sparsity"], _dropped(pruning.pruner), *sizes)


def _dropped(pruner: Pruner) -> tuple[str, int] | None:
    if isinstance(pruner, BlockDrop):
        return "neighbouring blocks" if pruner.consecutive else "blocks", pruner.count
    if isinstance(pruner, SublayerDrop):
        return _KINDS[pruner.target] + (", scored anew" if pruner.rescore else ""), pruner.count
    return None


def _with_earlier(variants: Sequence[Variant], folder: Path) -> tuple[list[Variant], str]:
    """Add the variants of earlier sweeps, if they can be compared.

    Args:
        variants: of this sweep.
        folder: of all variants.

    Returns:
        All variants, and words for what the figures there have and the new ones will not.
    """
    path = folder / FIGURES / VARIANTS
    if not path.is_file():
        return list(variants), ""
    earlier = read_variants(path)
    if not earlier or not same_dense(variants[0], earlier[0]):
        return list(variants), "another model or other tasks"
    new = {variant.name: variant for variant in variants}
    merged = {variant.name: new.get(variant.name, variant) for variant in earlier} | new
    if added := [name for name in merged if name not in new]:
        rank_zero_info(f"Also in the figures, from earlier sweeps: {', '.join(added)}.")
    replaced = [
        old.name for old in earlier if format_variants([old]) != format_variants([merged[old.name]])
    ]
    return list(merged.values()), f"other results of {', '.join(replaced)}" if replaced else ""


def _keep_figures(folder: Path, lost: str, pictures: Iterable[str]) -> Path | None:
    """Keep the figures of earlier sweeps aside, if the new ones do not show all that they show."""
    drawn = {f"{name}{suffix}" for name in pictures for suffix in (".png", ".csv")}
    figures = [path for name in ALL_FIGURES for path in (folder / FIGURES).glob(f"{name}*")]
    undrawn = sorted(path.name for path in figures if path.name not in drawn)
    if not (lost or undrawn):
        return None
    kept = keep_earlier(folder, (FIGURES,))
    rank_zero_info(f"Figures of {lost or ', '.join(undrawn)} are now in {kept}.")
    return kept


def _write(variants: Sequence[Variant], folder: Path, logger: TensorBoardLogger | None) -> None:
    """Write the table and the figures of all variants; one process calls it."""
    variants, lost = _with_earlier(variants, folder)
    pictures, missing = overview(variants)
    kept = _keep_figures(folder, lost, pictures)
    for name, picture in pictures.items():
        write_picture(picture, folder / FIGURES, name)
    write_text(folder / FIGURES / "variants.csv", as_csv(variants_numbers(variants)))
    write_text(folder / FIGURES / VARIANTS, format_variants(variants))
    if logger is not None:
        logger = _version(logger, OVERVIEW)
        _clear(_events(logger), kept)
        write_pictures(logger.experiment, pictures)
        cells = [
            {heading.replace("\n", " "): cell for heading, cell in line.items()}
            for line in variants_cells(variants)
        ]
        logger.experiment.add_text("variants", markdown_table(cells))
        logger.finalize("success")
    show(variants_table(variants))
    for sentence in missing:
        rank_zero_info(sentence)
    rank_zero_info(f"All variants: {folder / FIGURES}")
    if logger is not None:
        rank_zero_info(f"To see the figures: tensorboard --logdir {logger.save_dir}")
    names = ",".join(variant.name for variant in variants)
    print(f"Pages: {folder}/{{{names}}}/{PAGE}", flush=True)
