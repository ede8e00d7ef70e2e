"""The page of all variants in a folder, as a sweep or a search ends with it, and `prunelit report`.

Everything is read from the folder, so that both give the same words and numbers.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from prunelit.errors import InputError
from prunelit.files import write_text
from prunelit.report.curves import DPI, as_csv, write_picture
from prunelit.report.page.outcome import beside
from prunelit.report.page.record_file import is_recorded
from prunelit.report.page.records import FIGURES, RECORD, decide_again, read_all
from prunelit.report.page.runs import PAGE, Run, judge, read_run
from prunelit.report.page.search_view import view_search
from prunelit.report.page.view import write_page
from prunelit.report.placed import SETTINGS, Placed, place_settings, settings_numbers
from prunelit.report.search import (
    SEARCH,
    Answer,
    closing,
    find_answers,
    format_search,
    name_decisive,
    read_search,
    search_table,
)
from prunelit.report.tables import brief_table, wrap
from prunelit.report.variants import Variant
from prunelit.report.verdicts import USES, Margins, Word, use_words

if TYPE_CHECKING:
    from prunelit.report.curves import Picture


@dataclass(frozen=True)
class FolderReport:
    """The answers and verdicts of a folder, and the page that shows them.

    Args:
        path: of the page.
        answers: for each use of each method that has settings.
        alone: the variants without a setting.
        notes: sentences on variants that are left out.
    """

    path: Path
    answers: Sequence[Answer]
    alone: Sequence[Run]
    notes: Sequence[str]

    def words(self) -> list[Word]:
        """Return the verdicts that a pipeline may stop on: answers, and variants alone."""
        words: list[Word] = [answer.word for answer in self.answers]
        return words + [word for run in self.alone for word in use_words(run.verdicts).values()]

    def lines(self) -> list[str]:
        """Return what a terminal shows at the end, in at most 80 columns."""
        lines = [wrap(note) for note in self.notes]
        if any(run.verdicts for run in self.alone):
            lines.append(brief_table(_verdicts_table(self.alone)))
        if self.answers:
            lines.append(brief_table(search_table(self.answers)))
            lines += [wrap(sentence) for sentence in closing(self.answers)]
        return [*lines, f"Page: {self.path}"]


def report_folder(folder: Path, margins: Margins, output: Path | None = None) -> FolderReport:
    """Decide all verdicts anew, and write the page as the end of the sweep or the search did.

    Args:
        folder: of all variants.
        margins: of the verdicts.
        output: of the page, and with the suffix `.json` of the answers; the folder then stays as it
            is. None writes all files of the folder.

    Raises:
        InputError: if a file is damaged, or no variant is left.
    """
    names, uses = read_search(folder) or (None, None)
    return write_folder(folder, margins, names, uses, output)


def write_folder(
    folder: Path,
    margins: Margins,
    names: Sequence[str] | None = None,
    uses: Sequence[str] | None = None,
    output: Path | None = None,
) -> FolderReport:
    """Decide all verdicts, and write the page, the answers, and the figure if it changes.

    Args:
        folder: of all variants.
        margins: of the verdicts.
        names: of the variants that count, None is all; of those of one method with other recipes,
            the recipe of the last one counts.
        uses: that are searched; None is all.
        output: see `report_folder`.

    Raises:
        InputError: if a file is damaged, no variant is left, or `output` is no name for a page.
    """
    target = folder / SEARCH if output is None else beside(output)
    every = read_all(folder)
    names = [variant.name for variant in every] if names is None else names
    order = {name: place for place, name in enumerate(names)}
    every.sort(key=lambda variant: order.get(variant.name, -1))
    runs, notes = _decide(folder, every, margins, write=output is None)
    counted = [variant for variant in every if variant.name in order and variant.name in runs]
    if not counted:
        raise InputError(
            f"Expected measured variants in {str(folder)!r} but each one was moved or changed: run "
            "the sweep or the search again."
        )
    verdicts = {name: run.verdicts for name, run in runs.items()}
    answers = find_answers(place_settings(counted, verdicts), uses)
    alone = [runs[variant.name] for variant in counted if variant.point is None]
    shown = [*alone, *_around(counted, runs, answers)] or [runs[counted[0].name]]
    figure = _figure(folder, place_settings(every, verdicts), write=output is None)
    view = view_search(answers, figure) if answers else None
    path = write_page(shown, output or folder / PAGE, view)
    if answers:
        write_text(target, format_search(answers, [v.name for v in counted], uses))
    return FolderReport(path, answers, alone, notes)


def _decide(
    folder: Path, variants: Sequence[Variant], margins: Margins, *, write: bool
) -> tuple[dict[str, Run], list[str]]:
    """Decide the verdicts of each variant; leave out those whose files were moved or changed."""
    runs, notes = {}, []
    for variant in variants:
        own = folder / variant.name
        if not is_recorded(own / RECORD):
            notes.append(f"Without {variant.name}: its results were moved or changed.")
            continue
        if write:
            runs[variant.name] = decide_again(own, margins)
        else:
            runs[variant.name] = read_run(own)
            judge([runs[variant.name]], margins)
    return runs, notes


def _around(
    variants: Sequence[Variant], runs: Mapping[str, Run], answers: Sequence[Answer]
) -> list[Run]:
    """Return the runs of the settings around the answers."""
    around = {(answer.method, one.setting) for answer in answers for one in answer.around}
    methods = [answer.method for answer in answers]
    points = {v.name: v.point for v in variants if v.point is not None and not v.point.seed}
    found = [name for name, p in points.items() if (p.method, p.setting) in around]
    found.sort(key=lambda name: (methods.index(points[name].method), points[name].setting))
    return [runs[name] for name in found]


def _figure(folder: Path, placed: Sequence[Placed], *, write: bool) -> bytes:
    """Return the figure of settings; it is drawn if that of the folder has other numbers."""
    if not placed:
        return b""
    path = folder / FIGURES / f"{SETTINGS}.png"
    numbers = path.with_suffix(".csv")
    if path.is_file() and numbers.is_file():
        text = as_csv(settings_numbers(placed))
        if numbers.read_bytes() == text.encode():
            return path.read_bytes()
    picture = _draw(placed)
    if write:
        write_picture(picture, path.parent, SETTINGS)
        return path.read_bytes()
    content = io.BytesIO()
    picture.figure.savefig(content, dpi=DPI)
    return content.getvalue()


def _draw(placed: Sequence[Placed]) -> "Picture":
    from prunelit.report.settings import settings_picture  # matplotlib: half a second

    return settings_picture(placed)


def _verdicts_table(runs: Sequence[Run]) -> Table:
    """Build the table of verdicts: one line a variant, one column a use."""
    table = Table(title="Verdicts: share of the dense model's lead [bounds]", title_justify="left")
    table.add_column("variant")
    found = dict.fromkeys(verdict.use for run in runs for verdict in run.verdicts)
    uses = [*(use for use in USES if use in found), *sorted({*found} - {*USES})]
    for use in uses:
        table.add_column(use)
    for run in runs:
        words = use_words(run.verdicts)
        cells = []
        for use in uses:
            own = [verdict for verdict in run.verdicts if verdict.use == use]
            cells.append(f"{words[use]}\n{name_decisive(words[use], own)}".strip() if own else "")
        table.add_row(run.folder.name, *cells)
    return table
