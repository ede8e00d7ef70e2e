"""Write what all variants in a folder have in common."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from prunelit.callbacks.tensorboard import write_pictures, write_settings
from prunelit.errors import InputError
from prunelit.files import keep_earlier, write_text
from prunelit.report.curves import as_csv, write_picture
from prunelit.report.overview import ALL_FIGURES, overview
from prunelit.report.page.records import (
    FIGURES,
    VARIANTS,
    decide_again,
    read_record,
    read_records,
)
from prunelit.report.page.runs import PAGE
from prunelit.report.placed import Placed, place_settings
from prunelit.report.search import SEARCH
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
from prunelit.report.verdicts import Margins, Verdict

OVERVIEW = "overview"


def sweep_folder(trainer: Trainer) -> Path:
    """Return the folder of all variants: `<save_dir>/<name>` of a logger or `default_root_dir`."""
    logger = trainer.logger
    return Path(
        logger.root_dir if isinstance(logger, TensorBoardLogger) else trainer.default_root_dir
    )


def write_overview(
    variants: Sequence[Variant],
    folder: Path,
    logger: TensorBoardLogger | None,
    margins: Margins,
    verbose: bool = False,
) -> None:
    """Write the table and the figures of all variants; one process calls it.

    Args:
        variants: of this run; those of earlier ones that can be compared are added.
        folder: of all variants.
        logger: of the run; None writes nothing for TensorBoard.
        margins: of this run.
        verbose: print the table, and why figures are missing, also if there are verdicts.
    """
    new = {variant.name for variant in variants}
    variants, lost = _with_earlier(variants, folder)
    # Those of this run are last, since the recipe of the last one counts.
    set_ = sorted((v for v in variants if v.point), key=lambda variant: variant.name in new)
    placed = place_settings(set_, {v.name: _verdicts(folder / v.name, margins) for v in set_})
    pictures, missing = overview(variants, placed)
    kept = _keep_figures(folder, lost, pictures)
    for name, picture in pictures.items():
        write_picture(picture, folder / FIGURES, name)
    write_text(folder / FIGURES / "variants.csv", as_csv(variants_numbers(variants)))
    write_text(folder / FIGURES / VARIANTS, format_variants(variants))
    if logger is not None:
        _log(logger, variants, placed, pictures, kept)
    if verbose or not any(r.metric == "retained" for v in variants for r in v.results):
        show(variants_table(variants))
        for sentence in missing:
            rank_zero_info(sentence)
    rank_zero_info(f"All variants: {folder / FIGURES}")
    if logger is not None:
        rank_zero_info(f"To see the figures: tensorboard --logdir {logger.save_dir}")


def _verdicts(folder: Path, margins: Margins) -> list[Verdict]:
    """Decide the verdicts of a variant; none if its files were moved or changed since."""
    if read_record(folder) is None:
        return []
    try:
        return decide_again(folder, margins).verdicts
    except InputError as error:
        rank_zero_info(f"The settings in the figure are without {folder.name!r}: {error}")
        return []


def _log(
    logger: TensorBoardLogger,
    variants: Sequence[Variant],
    placed: Sequence[Placed],
    pictures: Mapping[str, Any],
    kept: Path | None,
) -> None:
    """Write the run `overview` of TensorBoard, and in it one run for each method with settings."""
    methods = dict.fromkeys(one.point.method for one in placed)
    whole = version(logger, OVERVIEW)
    clear_events(sorted(Path(whole.log_dir).rglob("events.out.tfevents.*")), kept)
    write_pictures(whole.experiment, pictures)
    cells = [
        {heading.replace("\n", " "): cell for heading, cell in line.items()}
        for line in variants_cells(variants)
    ]
    whole.experiment.add_text("variants", markdown_table(cells))
    whole.finalize("success")
    for method in methods:
        own = version(logger, f"{OVERVIEW}/{method}")
        write_settings(own.experiment, placed, method)
        own.finalize("success")


def version(
    logger: TensorBoardLogger, name: str, kind: type[TensorBoardLogger] = TensorBoardLogger
) -> TensorBoardLogger:
    """Return a logger that writes beside another one, into a folder with this name."""
    return kind(logger.save_dir, logger.name, name, default_hp_metric=False, sub_dir=logger.sub_dir)


class NoEvents(TensorBoardLogger):
    """A logger that names the folder of a run and writes nothing into it."""

    @property
    def experiment(self) -> Any:
        """Return None in place of a writer, which would open a file."""
        return None

    def save(self) -> None:
        """Write nothing."""


def events_of(logger: Logger) -> list[Path]:
    """Return the event files in the folder of a logger."""
    return sorted(Path(logger.log_dir or "").glob("events.out.tfevents.*"))


def clear_events(events: Sequence[Path], kept: Path | None) -> None:
    """Move events to the folder that has the results of their sweep; delete those of the same."""
    for path in events:
        path.unlink() if kept is None else path.rename(kept / path.name)


def _with_earlier(variants: Sequence[Variant], folder: Path) -> tuple[list[Variant], str]:
    """Add the variants of earlier runs, if they can be compared.

    Args:
        variants: of this run.
        folder: of all variants.

    Returns:
        All variants, and words for what the figures there have and the new ones will not.
    """
    path = folder / FIGURES / VARIANTS
    drawn = read_variants(path) or []
    other = drawn and not same_dense(variants[0], drawn[0])
    # A run that was killed has left records of variants that are in no figure.
    left = {v.name for v in variants} | {v.name for v in drawn}
    more = [v for v in read_records(folder) if v.name not in left and same_dense(variants[0], v)]
    earlier = [*([] if other else drawn), *more]
    new = {variant.name: variant for variant in variants}
    merged = {variant.name: new.get(variant.name, variant) for variant in earlier} | new
    if added := [name for name in merged if name not in new]:
        rank_zero_info(f"Also in the figures, from earlier runs: {', '.join(added)}.")
    if other or (path.is_file() and not drawn):
        return list(merged.values()), "another model or other tasks"
    replaced = [
        old.name for old in drawn if format_variants([old]) != format_variants([merged[old.name]])
    ]
    return list(merged.values()), f"other results of {', '.join(replaced)}" if replaced else ""


def _keep_figures(folder: Path, lost: str, pictures: Iterable[str]) -> Path | None:
    """Keep the figures of earlier runs aside, if the new ones do not show all that they show."""
    drawn = {f"{name}{suffix}" for name in pictures for suffix in (".png", ".csv")}
    figures = [path for name in ALL_FIGURES for path in (folder / FIGURES).glob(f"{name}*")]
    undrawn = sorted(path.name for path in figures if path.name not in drawn)
    if not (lost or undrawn):
        return None
    kept = keep_earlier(folder, (FIGURES, SEARCH, PAGE))
    rank_zero_info(f"Figures of {lost or ', '.join(undrawn)} are now in {kept}.")
    return kept
