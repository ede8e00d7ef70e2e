"""The folder of a pruned model: which one a recipe has, and what it holds."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from prunelit.errors import InputError
from prunelit.models.report_file import read_report
from prunelit.models.saving import check_apart, check_unchanged, check_writable
from prunelit.models.without_sublayers import is_uneven
from prunelit.pruners.base import Pruner
from prunelit.recipe import find_differences, recipe_id, tell_differences


def find_folder(first: Path, recipe: dict[str, Any], source: str, *, chosen: bool = False) -> Path:
    """Return the folder of a recipe: another one if the first holds another recipe.

    Args:
        first: folder of the first recipe.
        recipe: of the run.
        source: of the model to prune.
        chosen: True if only `first` will do.

    Raises:
        InputError: if the model to prune is in the folder.
    """
    check_apart(source, first)
    if chosen:
        return first
    report = read_report(first)
    if report is not None and _fits(report, recipe):
        return first
    own = first.with_name(f"{first.name}-{recipe_id(recipe)}")
    # The first folder may have been moved away since.
    return first if report is None and read_own(own, recipe) is None else own


def read_own(folder: Path, recipe: dict[str, Any]) -> dict[str, Any] | None:
    """Read the report of a folder; None if it holds no model that this recipe pruned."""
    report = read_report(folder)
    return report if report is not None and _fits(report, recipe) else None


def _fits(report: dict[str, Any], recipe: dict[str, Any]) -> bool:
    return not find_differences(recipe, report.get("recipe"))


def tell_other(report: dict[str, Any] | None, recipe: dict[str, Any]) -> str:
    """Say why a folder with this report, or without one, is not that of the recipe."""
    if report is None:
        return "holds no pruned model"
    return f"was pruned by another recipe ({tell_differences(recipe, report.get('recipe'))})"


def check_output(folder: Path, recipe: dict[str, Any]) -> None:
    """Refuse a folder that a run could not write without a loss.

    Raises:
        InputError: if it holds other files, another recipe, or a pruned model that was changed.
    """
    check_writable(folder)
    if (report := read_report(folder)) is None:
        return
    if not _fits(report, recipe):
        raise InputError(
            f"{str(folder)!r} {tell_other(report, recipe)}: choose another `pruning.output`, or "
            "move the folder away."
        )
    check_unchanged(folder, report)


def check_code(pruner: Pruner, config: PreTrainedConfig) -> None:
    """Refuse `custom_code` where the folder will be that of a stock model, which needs none.

    Args:
        pruner: the method.
        config: of the model before pruning.

    Raises:
        InputError: naming the method.
    """
    drops = pruner.drops_sublayers and not pruner.drops_blocks
    if not (drops or pruner.by_block or is_uneven(config)):
        raise InputError(
            "Expected a method that drops sublayers, or gives blocks different sizes, with "
            f"`custom_code` true but got {type(pruner).__name__}: transformers loads its folder "
            "without code of its own, so leave `custom_code` out."
        )
