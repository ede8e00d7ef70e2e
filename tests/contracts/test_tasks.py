"""Every task keeps the contract of `Task`."""

import copy
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.report.quantities import find_quantity
from prunelit.report.results import Result
from prunelit.tasks import ItemTable, ModelPair, Task, TaskReport
from prunelit.tasks.window_task import WindowTask

from .small import TASKS, family_of, small_arguments, write_rows

METRICS_PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"

every_task = pytest.mark.parametrize("task_class", TASKS, ids=lambda task: task.__name__)


@pytest.fixture
def rows_file(tmp_path: Path, material: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", material)


@torch.no_grad()
def summed_up(
    task_class: type[Task], path: Path, pair: ModelPair, batch_size: int = 3
) -> TaskReport:
    task = task_class(batch_size=batch_size, **small_arguments(task_class, path))  # type: ignore[call-arg]
    task.read()
    size = task.prepare(pair.tokenizer)
    assert size > batch_size
    task.check(pair.dense or pair.pruned)
    table = ItemTable(size)
    for batch in task.batches(size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    table.all_reduce_()
    return task.report(table)


def measure(
    task_class: type[Task], path: Path, pair: ModelPair, batch_size: int = 3
) -> list[Result]:
    rows = summed_up(task_class, path, pair, batch_size).results
    assert len({row.task for row in rows}) == 1
    return rows


def by_name(rows: list[Result]) -> dict[tuple[str, str], float]:
    values = {(row.metric, row.model): row.value for row in rows}
    assert len(values) == len(rows)
    return values


@pytest.fixture
def pair(
    task_class: type[Task],
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
) -> ModelPair:
    pruned, dense = (make_model(family_of(task_class), seed=seed) for seed in (1, 0))
    return ModelPair(pruned, dense, tokenizer)


def documented_metrics() -> re.Pattern[str]:
    """The names in the tables of the page; `<k>` in a name stands for anything."""
    names: list[str] = []
    for line in METRICS_PAGE.read_text(encoding="utf-8").splitlines():
        if (mark := re.fullmatch(r"<!-- metric: (.+) = \w+ -->", line)) is not None:
            names += mark[1].split(", ")
        elif line.startswith("| `"):
            names += re.findall(r"`([^`]+)`", line.split(" | ")[0])
    return re.compile("|".join(re.sub(r"<\w+>", ".+", re.escape(name)) for name in names))


def test_there_are_tasks_to_check() -> None:
    assert len(TASKS) >= 5


@every_task
def test_a_model_against_its_own_copy_shows_no_difference(
    task_class: type[Task], rows_file: Path, pair: ModelPair
) -> None:
    same = ModelPair(copy.deepcopy(pair.pruned), pair.pruned, pair.tokenizer)
    rows = by_name(measure(task_class, rows_file, same))
    for (metric, model), value in rows.items():
        if model == "difference":
            assert value == 0, metric
            assert rows[metric, "dense"] == rows[metric, "pruned"]
    if not any(model == "difference" for _, model in rows):
        # Quantities of the pair: swapping two equal models changes none of them.
        swapped = ModelPair(same.dense, same.pruned, pair.tokenizer)  # type: ignore[arg-type]
        assert by_name(measure(task_class, rows_file, swapped)) == rows


@every_task
def test_another_model_is_noticed(task_class: type[Task], rows_file: Path, pair: ModelPair) -> None:
    same = ModelPair(copy.deepcopy(pair.pruned), pair.pruned, pair.tokenizer)
    null = measure(task_class, rows_file, same)
    changed = measure(task_class, rows_file, pair)
    assert by_name(null).keys() == by_name(changed).keys()
    # A mean may stay by chance; the error of the paired difference then tells.
    assert any(
        (row.value, row.standard_error) != (before.value, before.standard_error)
        for before, row in zip(null, changed, strict=True)
        if row.model in ("difference", "pair") and not row.metric.endswith("_p")
    )


@every_task
def test_rows_are_complete(task_class: type[Task], rows_file: Path, pair: ModelPair) -> None:
    rows, known = measure(task_class, rows_file, pair), documented_metrics()
    assert rows
    for row in rows:
        # A median is undefined if fewer than half of the prompts diverge, a retained score if
        # the dense model is at chance. Extremes, quantiles and p-values have no standard error.
        assert math.isfinite(row.value) or "median" in row.metric or "retained" in row.metric, row
        assert math.isnan(row.standard_error) or 0 <= row.standard_error < math.inf, row
        assert row.n >= 2, row
        assert row.model in ("dense", "pruned", "difference", "pair"), row
        assert known.fullmatch(row.metric), f"{METRICS_PAGE} has no row for {row.metric!r}."
        hashes = [value for key, value in row.details.items() if key.endswith("_sha256")]
        assert hashes, row
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes), row
        assert "bos" in row.details, row
        assert ("text_rule" in row.details) == issubclass(task_class, WindowTask), row
        # A number says what it stands for, and why it has no error bar.
        assert row.details["score"], row
        if (quantity := find_quantity(row.metric)) is not None:
            assert row.details["space"] == quantity.space, row
            assert row.details.get("direction", "") == quantity.direction, row
            assert quantity.direction or not quantity.name.startswith("kl"), row
        known_reason = row.details.get("no_error_bar") not in (None, "the task gives none")
        assert known_reason == math.isnan(row.standard_error), row
        assert json.loads(json.dumps(row.details)) == row.details


@every_task
def test_the_use_of_a_verdict_is_known_before_the_run(
    task_class: type[Task], rows_file: Path, pair: ModelPair
) -> None:
    report = summed_up(task_class, rows_file, pair)
    task = task_class(**small_arguments(task_class, rows_file))  # type: ignore[call-arg]
    assert (task.use is None) == (report.scores is None)
    used = [row.details["use"] for row in report.results if row.metric == "retained"]
    assert used == ([] if task.use is None else [task.use])


@every_task
def test_figures_are_drawn_only_where_they_are_asked_for(
    task_class: type[Task], rows_file: Path, pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = Figure.__init__

    def count(figure: Figure, *arguments: object, **options: object) -> None:
        drawn.append(figure)
        draw(figure, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "__init__", count)
    report = summed_up(task_class, rows_file, pair)
    assert not drawn
    names = [name for name, _ in report.pictures]
    assert len(drawn) == len(names) == len(set(names))


@every_task
def test_the_hash_belongs_to_the_data(
    task_class: type[Task], rows_file: Path, pair: ModelPair, tmp_path: Path
) -> None:
    def hashes(path: Path) -> set[str]:
        rows = measure(task_class, path, pair)
        return {v for row in rows for k, v in row.details.items() if k.endswith("_sha256")}

    lines = rows_file.read_text().splitlines()
    moved, changed = tmp_path / "moved.jsonl", tmp_path / "changed.jsonl"
    moved.write_text("\n".join(lines))
    last = json.loads(lines[-1])
    last |= {"context": last["context"] + "?", "text": last["text"] + "."}
    changed.write_text("\n".join([*lines[:-1], json.dumps(last)]))
    assert hashes(rows_file) == hashes(moved)
    assert hashes(rows_file).isdisjoint(hashes(changed))


@every_task
def test_batch_size_does_not_matter(
    task_class: type[Task], rows_file: Path, pair: ModelPair
) -> None:
    alone = by_name(measure(task_class, rows_file, pair, batch_size=1))
    together = by_name(measure(task_class, rows_file, pair, batch_size=3))
    assert together == pytest.approx(alone, rel=1e-4, abs=1e-5, nan_ok=True)


@every_task
def test_without_a_reference_only_the_pruned_model_is_measured(
    task_class: type[Task], rows_file: Path, pair: ModelPair
) -> None:
    if task_class.needs_reference:
        pytest.skip("compares with the dense model, which the module checks before a run")
    both = by_name(measure(task_class, rows_file, pair))
    alone = by_name(measure(task_class, rows_file, ModelPair(pair.pruned, None, pair.tokenizer)))
    assert alone == {key: value for key, value in both.items() if key[1] == "pruned"}
    assert alone
