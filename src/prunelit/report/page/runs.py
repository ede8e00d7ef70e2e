"""A run on disk: results, scores of items, items, the model's recipe and the configuration."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from prunelit.errors import InputError, first_line, near_names, similar_paths
from prunelit.files import UNFINISHED
from prunelit.report.items import read_items
from prunelit.report.page.record_file import RESULTS, SCORES, is_recorded
from prunelit.report.results import Result, read_results
from prunelit.report.score_test import PairedScores
from prunelit.report.verdicts import Margins, Verdict, decide

PAGE, CONFIG = "report.html", "config.yaml"
GAINS, OVERLAP, VERDICTS = "gains.json", "overlap.json", "verdicts.json"
ENVIRONMENT = "environment.json"
BASELINES, BASELINE = "baselines", "baseline.json"  # a folder of runs, and the record of each
_GAINS = {"parameters", "bytes", "file_bytes", "peak_bytes", "speed", "device", "dtype"}
_BOTH = ("parameters", "bytes", "file_bytes", "peak_bytes")
_SPEED = ("dense", "pruned", "ratio", "low", "high", "rounds")
_SECTIONS = ("trainer", "pruning")
_BASELINE = {"name", "source", "bits", "left_out"}
_COLUMNS = ("task", "dense", "pruned", "floor", "bounded")
_WEIGHT = "weight"  # a run of an earlier version has none: all items weigh alike


@dataclass
class Run:
    """The files of one run.

    Args:
        folder: of the run, with `results.jsonl`.
        results: of the run.
        pruning: the content of `pruning.json`; None if the pruned model is not on this machine.
        config: the configuration; empty for a run from Python, or if the file is damaged.
        config_path: its file; None if there is no configuration.
        gains: sizes, memory and speed; None if they were not measured.
        overlaps: items that are in the calibration text, by the task's name.
        written: folder of the pruned model, if it is on this machine.
        baseline: name, source or bits, and sizes, if the run is a baseline of another one.
        baselines: measured beside this run, in `baselines/` of its folder.
        environment: device, precision and versions of libraries; empty if the run is of an earlier
            version.
        verdicts: of the tasks; none before `judge`.
    """

    folder: Path
    results: list[Result]
    pruning: dict[str, Any] | None
    config: dict[str, Any]
    config_path: Path | None
    gains: dict[str, Any] | None = None
    overlaps: dict[str, dict[str, Any]] = field(default_factory=dict)
    written: Path | None = None
    baseline: dict[str, Any] | None = None
    baselines: list["Run"] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder as text."""
        return str(self.folder)

    @property
    def models(self) -> dict[str, Any]:
        """Source and content of `dense` and `candidate`; empty for a run that pruned a model."""
        return self.results[0].models or {}

    @property
    def versions(self) -> dict[str, Any]:
        """Versions of the libraries that measured; of an earlier run those that pruned."""
        found = (own.get("versions") for own in (self.environment, self.pruning or {}))
        return next((own for own in found if isinstance(own, dict)), {})

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of the results."""
        return list(dict.fromkeys(result.task for result in self.results))

    def find(self, metric: str, model: str, task: str | None = None) -> Result | None:
        """Return the first result of a metric and model, of one task or of any."""
        found = (r for r in self.results if (r.metric, r.model) == (metric, model))
        return next((result for result in found if task in (None, result.task)), None)

    def items_path(self, task: str) -> Path:
        """Return the path of a task's items."""
        return self.folder / "items" / f"{task}.parquet"

    def items(self, task: str) -> list[dict[str, Any]]:
        """Read the items of a task; an empty list if the task writes none."""
        path = self.items_path(task)
        return read_items(path) if path.is_file() else []

    def primary(self, task: str) -> str | None:
        """Return the name of a task's main score."""
        details = (result.details for result in self.results if result.task == task)
        return next((own["primary"] for own in details if own.get("primary")), None)


def read_run(folder: str | Path) -> Run:
    """Read the files of a run.

    Args:
        folder: of the run, with `results.jsonl`.

    Raises:
        InputError: if there is no such folder, or one of its files is damaged.
    """
    folder = Path(folder)
    if folder.name == RESULTS:
        folder = folder.parent
    path = folder / RESULTS
    if not path.is_file():
        _refuse(folder)
    results = read_results(path)
    if not results:
        raise InputError(f"{str(path)!r} holds no results: measure at least one task.")
    config_path, config = _find_config(folder)
    gains = _read_mapping(folder / GAINS, _are_gains)
    overlaps = _read_mapping(folder / OVERLAP, _are_overlaps) or {}
    pruning, written = _read_pruning(folder, results)
    baseline = _read_mapping(folder / BASELINE, lambda data: data.keys() >= _BASELINE)
    beside = _read_baselines(folder)
    around = _read_mapping(folder / ENVIRONMENT, lambda data: "versions" in data) or {}
    parts = gains, overlaps, written, baseline, beside, around
    return Run(folder, results, pruning, config, config_path, *parts)


def _read_baselines(folder: Path) -> list[Run]:
    """Read the baselines that were measured completely: roundings first, fewer bits last."""
    records = (folder / BASELINES).glob(f"*/{BASELINE}")
    found = [read_run(path.parent) for path in records if is_recorded(path)]

    def place(run: Run) -> tuple[int, str]:
        bits = (run.baseline or {}).get("bits")
        return -bits if isinstance(bits, int) else 0, run.name

    return sorted(found, key=place)


def judge(runs: Sequence[Run], margins: Margins) -> None:
    """Decide the verdicts of each run and of its baselines from the scores of their items.

    A run is a family of tests of its own, as is a baseline.

    Raises:
        InputError: if a margin names no task and no use, or the scores are damaged.
    """
    every = [one for run in runs for one in run.results if one.metric == "retained"]
    uses = {one.details["use"] for one in every if "use" in one.details}
    margins.check([*uses, *(task for run in runs for task in run.tasks)])
    for run in runs:
        decide_run(run, margins)


def decide_run(run: Run, margins: Margins) -> None:
    """Decide the verdicts of a run and of its baselines; names in the margins are not checked.

    Raises:
        InputError: if the scores are damaged.
    """
    for one in (run, *run.baselines):
        one.verdicts = decide(_read_scores(one.folder / SCORES, one.results), margins)


def check_task(run: Run, task: str) -> None:
    """Refuse a task that a run does not have.

    Raises:
        InputError: naming similar tasks.
    """
    if task not in run.tasks:
        raise InputError(
            f"The run {run.name!r} has no task {task!r}: similar names are "
            f"{near_names(task, run.tasks)}."
        )


def _refuse(folder: Path) -> None:
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else f"does not exist{similar_paths(str(folder))}"
        raise InputError(
            f"Expected the folder of a run, which holds {RESULTS}, but {str(folder)!r} {kind}."
        )
    inside = [path for depth in ("*/", "*/*/") for path in sorted(folder.glob(depth + RESULTS))]
    if not inside and (folder / UNFINISHED).is_dir():
        raise InputError(
            f"The run in {str(folder)!r} was stopped before it had results: start its command "
            "again, and it goes on."
        )
    found = " or ".join(repr(str(path.parent)) for path in inside[-3:]) or "another folder"
    raise InputError(
        f"Expected the folder of a run but {str(folder)!r} holds no {RESULTS}: give {found}."
    )


def _read_scores(path: Path, results: Sequence[Result]) -> list[tuple[Result, PairedScores]]:
    retained = {result.task: result for result in results if result.metric == "retained"}
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            stored = pq.ParquetFile(file)
            names = [*_COLUMNS, *({_WEIGHT} & {*stored.schema_arrow.names})]
            table = stored.read(columns=names)
        # `to_numpy` of the table imports pandas, which takes half a second.
        columns = {name: np.array(table[name].to_pylist()) for name in names}
        columns.setdefault(_WEIGHT, np.ones(len(columns["task"])))
        kinds = ("dense", "pruned", "floor", _WEIGHT)
        numbers = {name: columns[name].astype(np.float64) for name in kinds}
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"No scores could be read from {str(path)!r} ({first_line(error)}): repeat the run "
            "with `prunelit validate`."
        ) from error
    scored = []
    for task in dict.fromkeys(columns["task"].tolist()):
        own = columns["task"] == task
        values = [numbers[name][own] for name in ("dense", "pruned", "floor")]
        weights = numbers[_WEIGHT][own]
        if task not in retained or "use" not in retained[task].details:
            raise InputError(
                f"{str(path)!r} has scores of the task {task!r} that do not belong to the "
                f"{RESULTS} beside it: repeat the run with `prunelit validate`."
            )
        bounded = bool(columns["bounded"][own].all())
        given = None if bool((weights == 1).all()) else weights
        scores = PairedScores(*values, bounded=bounded, weights=given)
        _check_scores(path, retained[task], scores)
        scored.append((retained[task], scores))
    return scored


def _check_scores(path: Path, result: Result, scores: PairedScores) -> None:
    """Refuse scores that are not those of a result, such as a part of them."""
    means = [float(column.mean()) for column in scores.weighted()]
    for key, mean in zip(("dense", "pruned", "chance"), means, strict=True):
        known = result.details.get(key)
        own = math.nan if known is None else known
        same = isinstance(own, int | float) and np.isclose(mean, own, atol=1e-6, equal_nan=True)
        if not same or result.n != len(scores):
            raise InputError(
                f"{str(path)!r} does not belong to the {RESULTS} beside it: of the task "
                f"{result.task!r} it has {len(scores)} items with the mean {mean:.4g} as `{key}`, "
                f"but the result has {result.n} with {known!r}. Repeat the run with `prunelit "
                "validate`."
            )


def _read_pruning(
    folder: Path, results: Sequence[Result]
) -> tuple[dict[str, Any] | None, Path | None]:
    """Read the report of the pruned model and find its folder, wherever the run was started from.

    A candidate may be pruned from another model than the dense one, so its report says nothing.
    Nor does that of another recipe, which a later run may have written in the same place.
    """
    named = next((result for result in results if result.pruned), None)
    if named is None or named.pruned is None or named.models:
        return None, None
    for start in (Path(), *folder.absolute().parents):
        path = start / named.pruned / "pruning.json"
        if path.is_file():
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                if not isinstance(data, dict) or not {"recipe", "parameters"} <= data.keys():
                    raise ValueError("expected the keys `recipe` and `parameters`")
            except (ValueError, RecursionError, OSError) as error:
                raise InputError(
                    f"{str(path)!r} is no report of a pruned model ({first_line(error)}): prune "
                    "again."
                ) from error
            if data.get("recipe_id", named.recipe) == named.recipe:
                return data, path.parent
    return None, None


def _are_overlaps(data: dict[str, Any]) -> bool:
    return all(
        isinstance(own, dict) and "first" in own and _are_numbers(own, "items", "n")
        for own in data.values()
    )


def _are_gains(data: dict[str, Any]) -> bool:
    if not data.keys() >= _GAINS or not isinstance(data["speed"], dict):
        return False
    both = all(_are_numbers(data[key], "dense", "pruned") for key in _BOTH)
    return both and all(_are_numbers(own, *_SPEED) for own in data["speed"].values())


def _are_numbers(data: Any, *keys: str) -> bool:
    """Return True for a mapping with numbers at these keys; one that is not known is None."""
    return isinstance(data, dict) and all(
        key in data and isinstance(data[key], int | float | None) for key in keys
    )


def _read_mapping(path: Path, check: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """Read a file of the run with one mapping; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or not check(data):
            raise ValueError("keys are missing")
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(
            f"{str(path)!r} is not as a run writes it ({first_line(error)}): repeat the run with "
            "`prunelit validate`, or remove the file."
        ) from error
    return data


def _find_config(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """Find the configuration of a run; that of a sweep lies beside its variants.

    That of a baseline is the one of the run that it was measured for.
    """
    places = [(folder / CONFIG, "model"), (folder.parent / CONFIG, "variants")]
    if folder.parent.name == BASELINES:
        places.append((folder.parent.parent / CONFIG, "model"))
    for path, key in places:
        config = _read_config(path) if path.is_file() else {}
        if config.get(key):
            return path, config
    return None, {}


def _read_config(path: Path) -> dict[str, Any]:
    """Read a configuration; a file that is none, such as one of another program, is empty."""
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict):
        return {}
    return {k: v for k, v in data.items() if k not in _SECTIONS or isinstance(v, dict)}
