"""The words of the page and the terminal: the decision, and what was compared with what."""

from collections.abc import Mapping, Sequence
from typing import Any

from prunelit.report.options import list_options
from prunelit.report.page.comparison import source
from prunelit.report.page.runs import Run
from prunelit.report.page.texts import join, shorten_middle
from prunelit.report.verdicts import use_words

NAMES = {
    "multiple choice": "Multiple choice",
    "classification": "Classification",
    "retrieval": "Retrieval",
    "generation": "Written answers",
    "similarity": "Similarity of texts",
}
# Options of a method that another one takes the place of.
_INSTEAD = {"count": "ratio", "bytes": "parameters", "tokens_per_second": "parameters"}


def headline(run: Run) -> str:
    """Return the decision in one sentence.

    Args:
        run: with its verdicts.
    """
    words = use_words(run.verdicts)
    groups: dict[str, list[str]] = {}
    for use, word in words.items():
        groups.setdefault(word, []).append(NAMES.get(use, use).lower())
    keeps, loses = groups.get("keeps", []), groups.get("loses", [])
    rest = [
        f"{join(loses)} {_verb(loses, 'loses', 'lose')}" if loses else "",
        f"{join(groups['cannot tell'])} cannot be told" if "cannot tell" in groups else "",
        f"the dense model has no lead at {join(groups['no lead'])}" if "no lead" in groups else "",
    ]
    others = "; ".join(text for text in rest if text)
    if not words:
        return f"No verdict: {tell_no_verdict(run)}"
    if not others:
        return f"Ship: {join(keeps)} {_verb(keeps, 'keeps', 'keep')} enough"
    if keeps:
        return f"Ship for {join(keeps)} only: {others}"
    if loses:
        return f"Do not ship: {others}"
    return f"No decision yet: {others}"


def _verb(subjects: Sequence[str], one: str, several: str) -> str:
    return one if len(subjects) == 1 and subjects[0] != "written answers" else several


def tell_no_verdict(run: Run) -> str:
    """Say why a run has no verdict."""
    if any(result.metric == "retained" for result in run.results):
        return (
            "the run has no scores of its items, as it is of an earlier version. Repeat it with "
            "`prunelit validate`."
        )
    if any(run.primary(task) for task in run.tasks):
        return "the run has no dense model to compare with."
    return "no task of the run has a main score."


def name_run(run: Run) -> str:
    """Say what was compared with what."""
    dense = shorten_middle(source(run) or "the dense model")
    if run.baseline is not None and (bits := run.baseline.get("bits")):
        return f"{dense}, rounded to {bits} bit, against the same model dense."
    if candidate := run.models.get("candidate"):
        other = shorten_middle(str(candidate.get("source")))
        return f"{other} against {dense}, which is called dense here."
    recipe = (run.pruning or {}).get("recipe") or {}
    pruner = recipe.get("pruner")
    if not isinstance(pruner, dict):
        pruner = run.config.get("pruning") or {}
        pruner = (pruner.get("init_args") or pruner).get("pruner") or {}
    if not pruner.get("class_path"):
        return f"Pruned model against {dense}."
    return f"{dense}, pruned by {_name_method(pruner)}, against the same model dense."


def _name_method(pruner: Mapping[str, Any]) -> str:
    """Name a method with its options; the methods of a sequence one after another."""
    arguments = pruner.get("init_args") or {}
    if methods := arguments.get("methods"):
        return ", then ".join(_name_method(method) for method in methods)
    found = list(list_options(arguments))
    replaced = {_INSTEAD[key] for key, value in found if key in _INSTEAD and value is not None}
    options = ", ".join(
        f"{key.rpartition('.')[2]} {value}"
        for key, value in found
        # False is told too: `uniform` is True if nobody says so.
        if isinstance(value, int | float | str) and key not in replaced
    )
    name = str(pruner["class_path"]).rpartition(".")[2]
    return name + (f" ({options})" if options else "")
