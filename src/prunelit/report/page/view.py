"""The page: its data, and `report.html`."""

import base64
import hashlib
import math
import shlex
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from prunelit.errors import InputError, visible
from prunelit.files import write_text
from prunelit.report.page.changes import Change, Changes, find_changes
from prunelit.report.page.comparison import Comparison, compare_runs, source
from prunelit.report.page.reasons import choose_figures, explain_run, warn
from prunelit.report.page.runs import PAGE, Run
from prunelit.report.page.texts import cut, mark_difference
from prunelit.report.tables import class_rows
from prunelit.report.verdicts import USES, Verdict, Word, use_sentences, use_words

_FIGURES, _ITEMS = 1_300_000, 900_000  # bytes of a page
_LOOKS: dict[Word, str] = {
    "keeps": "keep",
    "loses": "lose",
    "cannot tell": "tell",
    "no lead": "none",
}
_BEGIN: dict[Word, str] = {
    "keeps": "Keeps",
    "loses": "Loses",
    "cannot tell": "Cannot tell",
    "no lead": "No lead",
}
_NAMES = {
    "multiple choice": "Multiple choice",
    "retrieval": "Retrieval",
    "generation": "Written answers",
    "similarity": "Similarity of texts",
}


def write_page(runs: Sequence[Run], path: Path | None = None) -> Path:
    """Write the page of one or several runs whose verdicts are decided.

    Args:
        runs: with their verdicts.
        path: of the page; None is `report.html` in the folder of the first run.

    Returns:
        The path of the page.
    """
    path = path or runs[0].folder / PAGE
    write_text(path, render(build_page(runs)))
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
        lines += use_sentences(run.verdicts) or [f"No verdict: {_no_verdict(run)}"]
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
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {_hash(parts['css'])}; script-src {_hash(parts['js'])}"
    )
    own = {name: Markup(text) for name, text in parts.items()}
    return environment.get_template("page.html").render(page=page, policy=policy, **own)


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
        "title": title,
        "version": version("prunelit"),
        "runs": views,
        "comparison": None if comparison is None else _comparison_view(comparison, runs),
        "overview": [] if comparison is None or refused else _overview(runs),
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


def _overview(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one line a task, one cell a run."""
    tasks = dict.fromkeys(verdict.task for run in runs for verdict in run.verdicts)
    lines = []
    for task in tasks:
        own = [next((v for v in run.verdicts if v.task == task), None) for run in runs]
        cells = [
            {"look": "none", "text": "not measured"}
            if verdict is None
            else {"look": _LOOKS[verdict.word], "text": f"{verdict.word} {_interval(verdict)}"}
            for verdict in own
        ]
        lines.append({"task": task, "cells": cells})
    return lines


def _run_view(run: Run, count: int, refused: bool) -> dict[str, Any]:
    changes, unreadable = _find_changes(run)
    figures, left = choose_figures(run, _FIGURES // count)
    budget = _ITEMS // count // max(1, 2 * len(changes))
    return {
        "name": run.name,
        "headline": "" if refused else headline(run),
        "about": _about(run),
        "margins": _margins(run.verdicts),
        "verdicts": [] if refused else list(_verdict_lines(run.verdicts)),
        "strips": [] if refused else _strips(run.verdicts),
        "gains": _gains(run),
        "gain_note": " ".join(_gain_notes(run)),
        "reasons": explain_run(run, changes),
        "figures": figures,
        "changes": [_changes_view(run, one, budget) for one in changes],
        "classes": class_rows(run.results),
        "warnings": warn(run),
        "provenance": _provenance(run),
        "details": _details(run),
        "command": _command(run),
        "missing": [*_missing(run), *unreadable, *_left_figures(run, left)],
    }


def headline(run: Run) -> str:
    """Return the decision in one sentence.

    Args:
        run: with its verdicts.
    """
    words = use_words(run.verdicts)
    groups: dict[str, list[str]] = {}
    for use, word in words.items():
        groups.setdefault(word, []).append(_NAMES.get(use, use).lower())
    keeps, loses = groups.get("keeps", []), groups.get("loses", [])
    rest = [
        f"{_join(loses)} {_verb(loses, 'loses', 'lose')}" if loses else "",
        f"{_join(groups['cannot tell'])} cannot be told" if "cannot tell" in groups else "",
        f"the dense model has no lead at {_join(groups['no lead'])}" if "no lead" in groups else "",
    ]
    others = "; ".join(text for text in rest if text)
    if not words:
        return f"No verdict: {_no_verdict(run)}"
    if not others:
        return f"Ship: {_join(keeps)} {_verb(keeps, 'keeps', 'keep')} enough"
    if keeps:
        return f"Ship for {_join(keeps)} only: {others}"
    if loses:
        return f"Do not ship: {others}"
    return f"No decision yet: {others}"


def _verb(subjects: Sequence[str], one: str, several: str) -> str:
    return one if len(subjects) == 1 and subjects[0] != "written answers" else several


def _no_verdict(run: Run) -> str:
    if any(result.metric == "retained" for result in run.results):
        return (
            "the run has no scores of its items, as it is of an earlier version. Repeat it with "
            "`prunelit validate`."
        )
    if any(run.primary(task) for task in run.tasks):
        return "the run has no dense model to compare with."
    return "no task of the run has a main score."


def _about(run: Run) -> str:
    """Say what was compared with what."""
    dense = source(run) or "the dense model"
    if candidate := run.models.get("candidate"):
        return f"{candidate.get('source')} against {dense}, which is called dense here."
    recipe = (run.pruning or {}).get("recipe") or {}
    pruner = recipe.get("pruner")
    if not isinstance(pruner, dict):
        pruner = run.config.get("pruning") or {}
        pruner = (pruner.get("init_args") or pruner).get("pruner") or {}
    if not pruner.get("class_path"):
        return f"Pruned model against {dense}."
    options = ", ".join(f"{key} {value}" for key, value in _options(pruner.get("init_args") or {}))
    name = str(pruner["class_path"]).rpartition(".")[2]
    name += f" ({options})" if options else ""
    return f"{dense}, pruned by {name}, against the same model dense."


def _options(arguments: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options of a recipe; a class is its name, before its own options."""
    for key, value in arguments.items():
        if isinstance(value, dict) and "class_path" in value:
            yield key, str(value["class_path"]).rpartition(".")[2]
            yield from _options(value.get("init_args") or {})
        elif isinstance(value, int | float | str) and value is not False:
            yield key, value


def _margins(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    bars = {(verdict.bar(), verdict.absolute) for verdict in verdicts}
    if len(bars) == 1:
        ((bar, absolute),) = bars
        kind = (
            "a score may fall by"
            if absolute
            else "share of the dense model's lead over its floor that must remain:"
        )
        return f"Margin: {kind} {bar.lstrip('-')}."
    return "Margins differ by task; each line names its own."


def _verdict_lines(verdicts: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
    for use, word in use_words(verdicts).items():
        yield {
            "look": _LOOKS[word],
            "word": _BEGIN[word],
            "name": _NAMES.get(use, use),
            "tasks": [_task_line(verdict) for verdict in verdicts if verdict.use == use],
        }


def _task_line(verdict: Verdict) -> dict[str, str]:
    own = verdict.plain()
    score = (
        f"{own['score']} {_two(own['dense'])} before, {_two(own['pruned'])} after, "
        f"floor {_two(own['floor'])}; {own['n']:,} items"
    )
    if verdict.word == "no lead":
        return {"task": verdict.task, "value": "no lead", "text": score}
    kind = "change of the score" if verdict.absolute else "of the lead is kept"
    more = f"; {verdict.more_items()}" if verdict.more_items() else ""
    return {
        "task": verdict.task,
        "value": f"{_interval(verdict)} {kind}",
        "text": f"{score}; margin {verdict.bar()}; {verdict.word}{more}",
    }


def _two(value: float | None) -> str:
    """Format a score; one that does not exist, such as a correlation of equal numbers, is said."""
    return "not defined" if value is None or math.isnan(value) else f"{value:.2f}"


def _interval(verdict: Verdict) -> str:
    return verdict.interval().replace("inf", "∞")


def _strips(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Return the intervals on one axis for shares, and on another one for changes of a score."""
    strips = []
    for absolute in (False, True):
        own = [v for v in verdicts if v.absolute == absolute and v.word != "no lead"]
        if not own:
            continue
        ends = [end for v in own for end in (v.low, v.high, v.value) if math.isfinite(end)]
        if absolute:
            low, high = min(-1.3 * max(v.margin for v in own), *ends), max(0.05, *ends)
            ticks = [(0.0, "0: as dense")]
        else:
            low, high = max(-0.5, min(0.0, *ends)), min(2.0, max(1.1, *ends))
            ticks = [(0.0, "0: floor"), (1.0, "1: dense")]
        pad = 0.03 * (high - low)
        axis = low - pad, high + pad
        strips.append(
            {
                "absolute": absolute,
                "rows": [_strip_row(v, *axis) for v in own],
                "ticks": [_tick(_percent(place, *axis), text) for place, text in ticks],
            }
        )
    return strips


def _strip_row(verdict: Verdict, low: float, high: float) -> dict[str, Any]:
    margin = -verdict.margin if verdict.absolute else verdict.margin
    places = {
        name: _percent(value, low, high)
        for name, value in (
            *(("low", verdict.low), ("high", verdict.high)),
            *(("value", verdict.value), ("margin", margin)),
        )
    }
    return {
        "task": verdict.task,
        "text": _interval(verdict),
        "look": _LOOKS[verdict.word],
        "word": verdict.word,
        **places,
        "width": round(places["high"] - places["low"], 2),
        "shade": round(100 - places["margin"], 2),
    }


def _tick(place: float, text: str) -> tuple[float, str, str]:
    """Return place, text and the side of the text that is at the place; it stays in the axis."""
    return place, text, "start" if place < 12 else "end" if place > 88 else "middle"


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (min(max(value, low), high) - low) / (high - low), 2)


def _gains(run: Run) -> list[dict[str, str]]:
    report = run.pruning or _sizes(run)
    if report is None:
        return []
    lines = []
    place = "in memory" if run.models else "on disk"
    for label, key, unit in (
        ("Parameters, millions, zeros included", "parameters", 1_000_000),
        (f"Weights {place}, MB", "bytes", 1_000_000),
    ):
        before, after = report.get(key), report.get(f"stored_{key}")
        if before and after:
            gain = f"{1 - after / before:.1%}" if after != before else "none"
            cells = [f"{one / unit:,.4g}" for one in (before, after)]
            lines.append({"label": label, "dense": cells[0], "pruned": cells[1], "gain": gain})
    if "sparsity" in report:
        share = f"{report['sparsity']:.1%}"
        line = {
            "label": "Weights of the blocks that were removed",
            "dense": "0.0%",
            "pruned": share,
        }
        lines.append({**line, "gain": ""})
    return lines


def _sizes(run: Run) -> dict[str, Any] | None:
    """Return the sizes of a dense model and its candidate, by the keys of a pruning report."""
    names = {"": "dense", "stored_": "candidate"}
    if not run.models.keys() >= set(names.values()):
        return None
    keys = ("parameters", "bytes")
    return {f"{start}{key}": run.models[names[start]].get(key) for start in names for key in keys}


def _gain_notes(run: Run) -> list[str]:
    report = run.pruning
    if run.models:
        return [
            "Sizes are those of the weights as they were loaded: a GGUF file is loaded in float32, "
            "and a quantised weight counts its packed numbers.",
            "Speed, and memory while the model is used, were not measured.",
        ]
    if report is None:
        return ["The pruned model is not on this machine, so its size is not known here."]
    notes = []
    if report.get("stored_parameters") == report.get("parameters"):
        notes.append(
            "The removed weights are zeros. Zeros are stored and multiplied like any other number: "
            "this model is not smaller and not faster."
        )
    else:
        notes.append("The removed parts are taken out of the model: it is smaller.")
    notes.append("Speed, and memory while the model is used, were not measured.")
    return notes


def _find_changes(run: Run) -> tuple[list[Changes], list[str]]:
    found, unreadable = [], []
    for task in run.tasks:
        if run.primary(task) is None or not run.items_path(task).is_file():
            continue
        try:
            found.append(find_changes(run, task))
        except InputError as error:
            unreadable.append(str(error))
    return found, unreadable


def _changes_view(run: Run, changes: Changes, budget: int) -> dict[str, Any]:
    worse, better = (_fit(items, budget) for items in (changes.worse, changes.better))
    return {
        "task": changes.task,
        "worse": {"count": changes.count(), "items": worse, "all": len(changes.worse)},
        "better": {
            "count": changes.count(better=True),
            "items": better,
            "all": len(changes.better),
        },
        "command": f"prunelit worse {shlex.quote(run.name)} --task {shlex.quote(changes.task)}",
    }


def _fit(changes: Sequence[Change], budget: int) -> list[dict[str, Any]]:
    """Prepare items for the page until their bytes are used up."""
    items: list[dict[str, Any]] = []
    for number, change in enumerate(changes):
        dense, pruned = mark_difference(cut(change.dense), cut(change.pruned))
        prompt = cut(change.prompt.strip())
        texts = (prompt, change.target, change.dense[:1300], change.pruned[:1300], change.name)
        budget -= 600 + sum(len(visible(text).encode("utf-8", "replace")) for text in texts)
        if budget < 0:
            break
        items.append(
            {
                "loss": number,
                "place": change.place,
                "part": change.part,
                "name": cut(change.name, 80),
                "prompt": prompt,
                "short": cut(" ".join(prompt.split()), 160),
                "target": cut(change.target, 300),
                "dense": dense,
                "pruned": pruned,
                "note": change.note,
            }
        )
    return items


def _provenance(run: Run) -> list[tuple[str, str]]:
    report = run.pruning or {}
    recipe = report.get("recipe") or {}
    first = run.results[0]
    rows = [
        ("dense model", source(run)),
        *((f"{m}: {k}", v) for m, own in run.models.items() for k, v in _flat(own)),
        *((f"dense: {k}", v) for k, v in _flat((recipe.get("model") or {}).get("version"))),
        ("pruned model", first.pruned or "pruned in memory"),
        ("recipe", first.recipe),
        *((f"version of {name}", text) for name, text in (report.get("versions") or {}).items()),
        ("version of prunelit that wrote this page", version("prunelit")),
        ("seed_everything", run.config.get("seed_everything")),
        ("precision", (run.config.get("trainer") or {}).get("precision") or None),
        ("folder of the run", run.name),
        ("test", f"Holm over {len(run.verdicts)} tasks, one-sided 5%" if run.verdicts else None),
    ]
    return [(name, cut(str(value), 300)) for name, value in rows if value is not None]


def _flat(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif value is not None:
        yield "version", value


def _details(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for each task the settings of its main result."""
    found = []
    for task in run.tasks:
        own = [result for result in run.results if result.task == task]
        chosen = next((one for one in own if one.metric == "retained"), own[0])
        pairs = [(key, cut(str(value), 300)) for key, value in chosen.details.items()]
        found.append((task, pairs))
    return found


def _command(run: Run) -> str:
    if run.config_path is None:
        return ""
    subcommand = "sweep" if run.config.get("variants") else "compare" if run.models else "fit"
    return f"prunelit {subcommand} --config {shlex.quote(str(run.config_path))}"


def _missing(run: Run) -> Iterator[str]:
    measured = {result.details.get("use") for result in run.results}
    absent = [_NAMES[use].lower() for use in USES if use not in measured]
    if absent:
        yield f"No task of this run measures {_join(absent, 'or')}."
    yield "Speed and memory while the model is used."
    yield "Any language, length or kind of text that is not in the rows above; safety."


def _left_figures(run: Run, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    return [f"Figures that are not on this page, in {run.folder / 'figures'}: {', '.join(names)}."]


def _join(parts: Sequence[str], word: str = "and") -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"
