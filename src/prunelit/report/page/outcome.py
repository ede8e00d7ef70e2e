"""The files that follow from the verdicts of a run: the page, `verdicts.json`, the model card."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunelit.errors import InputError
from prunelit.files import write_text
from prunelit.report.page.baselines import list_baselines
from prunelit.report.page.card import write_card
from prunelit.report.page.comparison import compare_runs
from prunelit.report.page.runs import PAGE, VERDICTS, Run
from prunelit.report.page.view import write_page
from prunelit.report.verdicts import as_json, list_verdicts

_PAGES = (".html", ".htm")
SEVERAL = "comparison.html"  # the page of several runs, in the folder of the first one


def write_outcome(run: Run) -> str | None:
    """Write the page, `verdicts.json` and the model card of a run, as at its end.

    The card is written if the pruned model is on this machine.

    Args:
        run: with its verdicts.

    Returns:
        None, or a sentence that says why there is no card.
    """
    if run.verdicts:
        write_text(run.folder / VERDICTS, format_outcome(run))
    write_page([run])
    return None if run.written is None else write_card(run, run.written)


def write_elsewhere(runs: Sequence[Run], page: Path) -> None:
    """Write a page, and the verdicts beside it with the suffix `.json`; the runs stay as they are.

    Runs that cannot be compared have no verdicts there.

    Args:
        runs: with their verdicts.
        page: path of the page.

    Raises:
        InputError: if the page does not end in .html, or its verdicts would replace another file.
    """
    path = beside(page)
    write_page(runs, page)
    if len(runs) == 1:
        write_text(path, format_outcome(runs[0]))
        return
    found = compare_runs(runs)
    shown = [] if found.word == "no" else runs
    data = {
        "comparable": {"verdict": found.word, "sentence": found.sentence},
        "runs": {run.name: _list_outcome(run) for run in shown},
    }
    write_text(path, as_json(data))


def beside(page: Path) -> Path:
    """Return the path of the verdicts beside a page that is not in the folder of its run.

    Args:
        page: path of the page.

    Raises:
        InputError: if the page does not end in .html, or its verdicts would replace another file.
    """
    path = page.with_suffix(".json")
    if page.suffix.lower() not in _PAGES:
        raise InputError(
            f"Expected a page that ends in .html but got {str(page)!r}: give another name."
        )
    if path.exists() and not page.exists() and page.name != SEVERAL:
        raise InputError(
            f"The verdicts of {str(page)!r} would replace {str(path)!r}, which is another file: "
            "give the page another name, or remove it."
        )
    return path


def format_outcome(run: Run) -> str:
    """Format the verdicts of a run, and those of its baselines, as JSON.

    Args:
        run: with its verdicts.
    """
    return as_json(_list_outcome(run))


def _list_outcome(run: Run) -> dict[str, Any]:
    more = {"baselines": list_baselines(run)} if run.baselines else {}
    return list_verdicts(run.verdicts) | more


def page_path(runs: Sequence[Run], output: Path | None) -> Path:
    """Return the path of the page.

    Args:
        runs: that are on it.
        output: given by the user; None takes the folder of the first run.
    """
    return output or runs[0].folder / (PAGE if len(runs) == 1 else SEVERAL)
