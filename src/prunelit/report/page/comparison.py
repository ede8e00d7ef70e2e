"""Are several runs comparable? A verdict on one is no verdict on another if their rows differ."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prunelit.report.page.runs import Run
from prunelit.report.results import Result, name_content

# Keys of details that are measured; all other ones are settings.
_MEASURED = {
    *("dense", "pruned", "lower_95", "upper_95", "no_error_bar", "doubts", "flips_to_wrong"),
    *("flips_to_right", "rung", "below", "above", "between", "standard_error_tokens"),
}
# Keys that tell which rows were measured.
_ROWS = {
    *("path", "split", "subset", "commit", "rows_sha256", "collection_sha256", "text_sha256"),
    *("n", "documents", "relevant", "missing", "items", "windows", "length"),
}
# Options of `model` that are compared elsewhere, or do not belong to the dense model.
_UNCOMPARED = {
    *("source", "candidate", "candidate_revision"),
    *("optimizer", "recovery", "lr_scheduler"),
}
_LONGEST = 80


@dataclass(frozen=True)
class Difference:
    """One setting that differs: its place, its name, and its value in each run."""

    place: str
    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """The verdict on several runs.

    Args:
        word: `yes` if nothing differs but the pruned model; `with care` if settings or versions
            differ; `no` if rows differ or no task is common.
        sentence: the verdict in words.
        rows: differences of the rows.
        settings: other differences.
        alone: tasks that not all runs have.
    """

    word: Literal["yes", "with care", "no"]
    sentence: str
    rows: list[Difference]
    settings: list[Difference]
    alone: list[str]


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """List what of rows, templates, generation settings and versions differs.

    Args:
        runs: at least two.
    """
    every = list(dict.fromkeys(task for run in runs for task in run.tasks))
    common = [task for task in every if all(task in run.tasks for run in runs)]
    found = [one for task in common for one in _task_differences(runs, task)]
    rows = [one for one in found if one.key in _ROWS]
    settings = [one for one in found if one.key not in _ROWS]
    # The dense model comes first: each verdict is relative to it.
    settings = [*_dense_differences(runs, common), *_run_differences(runs), *settings]
    rows, settings = _merge(rows), _merge(settings)
    alone = [task for task in every if task not in common]
    if not common:
        return Comparison("no", "No: the runs have no task in common.", rows, settings, alone)
    if rows:
        named = ", ".join(dict.fromkeys(one.place for one in rows))
        text = f"No: the rows of {named} differ, so the scores are those of different questions."
        return Comparison("no", text, rows, settings, alone)
    if settings:
        named = ", ".join(dict.fromkeys(one.key for one in settings))
        text = f"Only with care: the rows are the same, but these differ: {named}."
        return Comparison("with care", text, rows, settings, alone)
    text = "Yes: rows, templates, settings, versions and the dense model are the same."
    return Comparison("yes", text, rows, settings, alone)


def _merge(differences: Sequence[Difference]) -> list[Difference]:
    """Give one line to a setting that differs in the same way in several tasks."""
    places: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for one in differences:
        places.setdefault((one.key, one.values), []).append(one.place)
    return [Difference(", ".join(own), *found) for found, own in places.items()]


def _task_differences(runs: Sequence[Run], task: str) -> list[Difference]:
    own = [_settings(run, task) for run in runs]
    keys = dict.fromkeys(key for settings in own for key in settings)
    return [
        one
        for key in keys
        if (one := _difference(task, key, [settings.get(key) for settings in own])) is not None
    ]


def _settings(run: Run, task: str) -> dict[str, Any]:
    """Collect the settings of all results of a task; one that differs between them is a list."""
    collected: dict[str, list[Any]] = {}
    for result in run.results:
        if result.task == task and "class" not in result.details:
            for key, value in _own_settings(result).items():
                values = collected.setdefault(key, [])
                if value not in values:
                    values.append(value)
    return {key: own[0] if len(own) == 1 else own for key, own in collected.items()}


def _own_settings(result: Result) -> dict[str, Any]:
    details = {key: value for key, value in result.details.items() if key not in _MEASURED}
    for key in ("score", "space", "direction", "group"):
        details.pop(key, None)
    return details | ({"n": result.n} if result.metric == "retained" else {})


def _dense_differences(runs: Sequence[Run], tasks: Sequence[str]) -> list[Difference]:
    found = []
    for task in tasks:
        scores = [run.find(run.primary(task) or "", "dense", task) for run in runs]
        values = [None if one is None else round(one.value, 4) for one in scores]
        difference = _difference(task, "score of the dense model", values)
        found += [difference] if difference is not None else []
    return found


def _run_differences(runs: Sequence[Run]) -> list[Difference]:
    """Compare the dense models, seeds, precision and versions of libraries."""
    own = []
    for run in runs:
        trainer, around = run.config.get("trainer") or {}, run.environment
        settings = {
            "dense model": source(run),
            "dense weights": _dense_content(run),
            "precision": around.get("precision", trainer.get("precision")),
            "device": around.get("device"),
            "matmul_precision": around.get("matmul_precision"),
            "accelerator": trainer.get("accelerator"),
            "seed_everything": run.config.get("seed_everything"),
            **{f"version of {k}": v for k, v in run.versions.items()},
        }
        model = run.config.get("model")
        for key, value in model.items() if isinstance(model, dict) else ():
            if key not in _UNCOMPARED:
                settings[f"model.{key}"] = value
        own.append(settings)
    keys = dict.fromkeys(key for settings in own for key in settings)
    found = [_difference("run", key, [settings.get(key) for settings in own]) for key in keys]
    return [one for one in found if one is not None]


def _dense_content(run: Run) -> str | None:
    """Identify the weights of the dense model; None if no file of the run does."""
    if dense := run.models.get("dense"):
        return dense.get("content")
    model = ((run.pruning or {}).get("recipe") or {}).get("model", {})
    version = model.get("full") or model.get("version")
    return None if version is None else name_content(version)


def source(run: Run) -> str | None:
    """Return the path or id of the dense model; None if no file of the run names it."""
    if dense := run.models.get("dense"):
        return dense.get("source")
    recipe = (run.pruning or {}).get("recipe") or {}
    model = run.config.get("model")
    named = model.get("source") if isinstance(model, dict) else None
    return (recipe.get("model") or {}).get("source") or named


def _difference(place: str, key: str, values: Sequence[Any]) -> Difference | None:
    if all(value == values[0] for value in values):
        return None
    return Difference(place, key, tuple(_show(value) for value in values))


def _show(value: Any) -> str:
    text = "not known" if value is None else str(value)
    return (
        text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 4 :]}"
    )
