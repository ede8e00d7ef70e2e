"""The page: its data, and `report.html`."""

import base64
import functools
import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from prunelit.errors import visible
from prunelit.files import write_text
from prunelit.report.page.baselines import baseline_sentences, view_baselines
from prunelit.report.page.changes_view import find_all_changes, view_changes
from prunelit.report.page.comparison import Comparison, compare_runs
from prunelit.report.page.gains import gain_lines, gain_notes
from prunelit.report.page.provenance import (
    list_missing,
    list_provenance,
    list_settings,
    name_command,
)
from prunelit.report.page.reasons import choose_figures, explain_run, warn
from prunelit.report.page.runs import PAGE, Run
from prunelit.report.page.verdict_view import (
    compare_verdicts,
    state_margins,
    strips,
    task_strips,
    verdict_lines,
)
from prunelit.report.page.words import headline, name_run, tell_no_verdict
from prunelit.report.tables import class_rows
from prunelit.report.verdicts import use_sentences

_FIGURES, _ITEMS = 1_300_000, 900_000  # bytes of a page


def write_page(
    runs: Sequence[Run], path: Path | None = None, search: dict[str, Any] | None = None
) -> Path:
    """Write the page of one or several runs whose verdicts are decided.

    Args:
        runs: with their verdicts.
        path: of the page; None is `report.html` in the folder of the first run.
        search: answers of a search, see `prunelit.report.page.search_view`; they come first.

    Returns:
        The path of the page.
    """
    path = path or runs[0].folder / PAGE
    write_text(path, render(build_page(runs) | ({} if search is None else {"search": search})))
    return path


def closing_sentences(runs: Sequence[Run]) -> list[str]:
    """Return the sentences that a terminal shows: the verdicts, or the reason for none.

    Args:
        runs: with their verdicts.
    """
    comparison = compare_runs(runs) if len(runs) > 1 else None
    lines = [] if comparison is None else [f"Comparable? {comparison.sentence}"]
    if comparison is not None and comparison.word == "no":
        return lines
    for run in runs:
        lines += [f"{run.name}:"] if len(runs) > 1 else []
        lines += use_sentences(run.verdicts) or [f"No verdict: {tell_no_verdict(run)}"]
        lines += baseline_sentences(run)
    return lines


def render(page: dict[str, Any]) -> str:
    """Fill the template. Every text is escaped, and hidden characters are made visible.

    The page allows its own style and script by their hashes, and nothing else: no other script,
    event handler or request runs, whatever a text holds.

    Args:
        page: data of `build_page`.
    """
    folder = Path(__file__).parent
    parts = {name: (folder / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(parts['css'])}; script-src {_hash(parts['js'])}"
    )
    own = {name: Markup(text) for name, text in parts.items()}
    return _template().render(page=page, policy=policy, **own)


@functools.cache
def _template() -> Template:
    """Compile the template, which takes longer than to fill it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html")


def _finalize(value: object) -> object:
    plain = isinstance(value, str) and not isinstance(value, Markup)
    return visible(value) if plain else value  # type: ignore[arg-type]


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def build_page(runs: Sequence[Run]) -> dict[str, Any]:
    """Collect all that the page shows, as plain data.

    Args:
        runs: with their verdicts.
    """
    comparison = compare_runs(runs) if len(runs) > 1 else None
    refused = comparison is not None and comparison.word == "no"
    views = [_run_view(run, len(runs), refused) for run in runs]
    title = views[0]["headline"] if len(runs) == 1 else f"{len(runs)} runs"
    if comparison is not None:
        title = (
            "No verdict: the runs cannot be compared" if refused else f"{len(runs)} runs compared"
        )
    return {
        "search": None,
        "title": title,
        "version": version("prunelit"),
        "runs": views,
        "comparison": None if comparison is None else _comparison_view(comparison, runs),
        "overview": [] if comparison is None or refused else compare_verdicts(runs),
        "side_by_side": []
        if comparison is None or refused
        else task_strips([(run.name, run.verdicts) for run in runs]),
    }


def _comparison_view(comparison: Comparison, runs: Sequence[Run]) -> dict[str, Any]:
    looks = {"yes": "keep", "with care": "tell", "no": "lose"}
    return {
        "look": looks[comparison.word],
        "sentence": comparison.sentence,
        "differences": [*comparison.rows, *comparison.settings],
        "alone": ", ".join(comparison.alone),
        "names": [run.name for run in runs],
    }


def _run_view(run: Run, count: int, refused: bool) -> dict[str, Any]:
    changes, unreadable = find_all_changes(run)
    figures, left = choose_figures(run, _FIGURES // count)
    budget = _ITEMS // count // max(1, 2 * len(changes))
    return {
        "name": run.name,
        "headline": "" if refused else headline(run),
        "about": name_run(run),
        "margins": state_margins(run.verdicts),
        "verdicts": [] if refused else list(verdict_lines(run.verdicts)),
        "strips": [] if refused else strips(run.verdicts),
        "baselines": None if refused else view_baselines(run),
        "gains": gain_lines(run),
        "gain_note": " ".join(gain_notes(run)),
        "reasons": explain_run(run, changes),
        "figures": figures,
        "changes": [view_changes(run, one, budget) for one in changes],
        "classes": class_rows(run.results),
        "warnings": warn(run),
        "provenance": list_provenance(run),
        "details": list_settings(run),
        "command": name_command(run),
        "missing": [*list_missing(run), *unreadable, *_left_figures(run, left)],
    }


def _left_figures(run: Run, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"Figures that are not on this page, in {run.folder / 'figures'}: {', '.join(names)}."]
