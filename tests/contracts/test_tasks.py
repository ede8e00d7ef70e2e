"""What holds of every task that prunelit exports."""

import copy
import inspect
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import prunelit.tasks
from prunelit.report.rows import Row
from prunelit.tasks import ItemTable, Pair, Task

TASKS = [
    task
    for name in prunelit.tasks.__all__
    if inspect.isclass(task := getattr(prunelit.tasks, name))
    and issubclass(task, Task)
    and not inspect.isabstract(task)
]
# Arguments that fit a task to the tiny data, given to those that have them.
SMALL = {"length": 12, "max_new_tokens": 4, "limit": 7}
SIMILARITY = {"first": "context", "second": "text", "score": "label"}

every_task = pytest.mark.parametrize("task_class", TASKS, ids=lambda task: task.__name__)


@pytest.fixture
def rows_file(tmp_path: Path, material: Path) -> Path:
    """Rows that any task can read: questions that have a text too."""
    questions = (material / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    texts = (material / "text.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "rows.jsonl"
    merged = [
        json.dumps(json.loads(question) | json.loads(text))
        for question, text in zip(questions, texts, strict=False)
    ]
    path.write_text("\n".join(merged))
    return path


def as_collection(path: Path) -> Path:
    """The rows as a folder of queries and documents: who asks a context looks for its answer."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    files: dict[str, list[dict]] = {"queries": [], "corpus": [], "qrels": []}
    for row in rows:
        files["queries"].append({"_id": row["id"], "text": row["context"]})
        answer = f"{row['id']}-{row['label']}"
        files["qrels"].append({"query-id": row["id"], "corpus-id": answer, "score": 1})
        for number, choice in enumerate(row["choices"]):
            files["corpus"].append({"_id": f"{row['id']}-{number}", "text": choice})
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@torch.no_grad()
def measure(task_class: type[Task], path: Path, pair: Pair, batch_size: int = 3) -> list[Row]:
    parameters = inspect.signature(task_class).parameters
    small: dict = {name: value for name, value in SMALL.items() if name in parameters}
    if "qrels" in parameters:
        path = as_collection(path)
    if {"first", "second", "score"} <= set(parameters):
        small |= SIMILARITY
    if "skip" in parameters:  # texts, whose template alone has more tokens
        del small["length"]
    task = task_class(path=str(path), batch_size=batch_size, **small)  # type: ignore[call-arg]
    task.read()
    size = task.prepare(pair.tokenizer)
    assert size > batch_size
    task.check(pair.dense or pair.pruned)
    table = ItemTable(size)
    for batch in task.batches(size, 0, 1):
        table.assign(batch["indices"], task.step(pair, batch))
    table.all_reduce_()
    rows = task.summarise(table)
    assert all(row.task == task.name for row in rows)
    return rows


def by_name(rows: list[Row]) -> dict[tuple[str, str], float]:
    values = {(row.metric, row.model): row.value for row in rows}
    assert len(values) == len(rows)
    return values


@pytest.fixture
def pair(make_model: Callable[..., PreTrainedModel], tokenizer: PreTrainedTokenizerBase) -> Pair:
    return Pair(make_model("llama", seed=1), make_model("llama", seed=0), tokenizer)


def test_there_are_tasks_to_check() -> None:
    assert len(TASKS) >= 5


@every_task
def test_a_model_against_its_own_copy_shows_no_difference(
    task_class: type[Task], rows_file: Path, pair: Pair
) -> None:
    same = Pair(copy.deepcopy(pair.pruned), pair.pruned, pair.tokenizer)
    rows = by_name(measure(task_class, rows_file, same))
    for (metric, model), value in rows.items():
        if model == "difference":
            assert value == 0, metric
            assert rows[metric, "dense"] == rows[metric, "pruned"]
    if not any(model == "difference" for _, model in rows):
        # Quantities of the pair: swapping two equal models changes none of them.
        swapped = Pair(same.dense, same.pruned, pair.tokenizer)  # type: ignore[arg-type]
        assert by_name(measure(task_class, rows_file, swapped)) == rows


@every_task
def test_another_model_is_noticed(task_class: type[Task], rows_file: Path, pair: Pair) -> None:
    same = Pair(copy.deepcopy(pair.pruned), pair.pruned, pair.tokenizer)
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
def test_rows_are_complete(task_class: type[Task], rows_file: Path, pair: Pair) -> None:
    rows = measure(task_class, rows_file, pair)
    assert rows
    for row in rows:
        # A median is undefined where fewer than half of the prompts diverge, what is retained where
        # the dense model is at chance; extremes, quantiles and p-values have no standard error.
        assert math.isfinite(row.value) or "median" in row.metric or "retained" in row.metric, row
        assert math.isnan(row.standard_error) or 0 <= row.standard_error < math.inf, row
        assert row.n >= 2, row
        assert row.model in ("dense", "pruned", "difference", "pair"), row
        hashes = [value for key, value in row.details.items() if key.endswith("_sha256")]
        assert hashes, row
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in hashes), row
        assert json.loads(json.dumps(row.details)) == row.details


@every_task
def test_the_hash_belongs_to_the_data(
    task_class: type[Task], rows_file: Path, pair: Pair, tmp_path: Path
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
def test_batch_size_does_not_matter(task_class: type[Task], rows_file: Path, pair: Pair) -> None:
    alone = by_name(measure(task_class, rows_file, pair, batch_size=1))
    together = by_name(measure(task_class, rows_file, pair, batch_size=3))
    assert together == pytest.approx(alone, rel=1e-4, abs=1e-5, nan_ok=True)


@every_task
def test_without_a_reference_only_the_pruned_model_is_measured(
    task_class: type[Task], rows_file: Path, pair: Pair
) -> None:
    if task_class.needs_reference:
        pytest.skip("compares with the dense model, which the module checks before a run")
    both = by_name(measure(task_class, rows_file, pair))
    alone = by_name(measure(task_class, rows_file, Pair(pair.pruned, None, pair.tokenizer)))
    assert alone == {key: value for key, value in both.items() if key[1] == "pruned"}
    assert alone
