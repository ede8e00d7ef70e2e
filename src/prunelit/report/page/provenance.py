"""The origin of a run: hashes, versions, settings, its command, and what it did not measure."""

import shlex
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from prunelit.report.page.comparison import source
from prunelit.report.page.runs import Run
from prunelit.report.page.texts import cut, join
from prunelit.report.page.words import NAMES
from prunelit.report.verdicts import USES


def list_provenance(run: Run) -> list[tuple[str, str]]:
    """List hashes, versions, seeds and folders, by name."""
    report = run.pruning or {}
    recipe = report.get("recipe") or {}
    first = run.results[0]
    rows = [
        ("dense model", source(run)),
        *((f"{m}: {k}", v) for m, own in run.models.items() for k, v in _flat(own)),
        *((f"dense: {k}", v) for k, v in _flat((recipe.get("model") or {}).get("version"))),
        ("pruned model", first.pruned or "pruned in memory"),
        ("recipe", first.recipe),
        *((f"version of {name}", text) for name, text in run.versions.items()),
        ("device", run.environment.get("device")),
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


def list_settings(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return for each task the settings of its main result."""
    found = []
    for task in run.tasks:
        own = [result for result in run.results if result.task == task]
        chosen = next((one for one in own if one.metric == "retained"), own[0])
        pairs = [(key, cut(str(value), 300)) for key, value in chosen.details.items()]
        found.append((task, pairs))
    return found


def name_command(run: Run) -> str:
    """Return the command that repeats a run; empty if its configuration is not known."""
    if run.config_path is None:
        return ""
    subcommand = "compare" if run.models else "fit"
    if run.config.get("variants"):
        subcommand = "search" if "seeds" in run.config else "sweep"
    return f"prunelit {subcommand} --config {shlex.quote(str(run.config_path))}"


def list_missing(run: Run) -> Iterator[str]:
    """Yield what the run did not measure, in words."""
    measured = {result.details.get("use") for result in run.results}
    absent = [NAMES[use].lower() for use in USES if use not in measured]
    if absent:
        yield f"No task of this run measures {join(absent, 'or')}."
    if run.gains is None:
        yield "Speed and memory while the model is used."
    else:
        yield "Speed of long texts, of many texts at once, and in other programs."
    yield "Any language, length or kind of text that is not in the rows above; safety."
