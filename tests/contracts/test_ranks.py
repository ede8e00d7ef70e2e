"""Every task gives the same numbers on 1, 2 and 3 processes, through the command line."""

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from prunelit.report.items import read_items
from prunelit.report.results import Result, read_results
from prunelit.tasks import Distribution, Generation, MultipleChoice, Task

from .small import ON_MIXTURES, TASKS, small_arguments, write_rows

pytestmark = pytest.mark.distributed

# Of a mixture there is `tests/tasks/test_routing.py`.
ON_LLAMA = [task for task in TASKS if task not in ON_MIXTURES]
# Items per batch. Seven items make four batches, which do not divide evenly among three ranks;
# three batches, which do not divide evenly among two; and one, which leaves other ranks without.
BATCH_SIZES = (2, 3, 99)

# The order of sums over tokens depends on the ranks: they differ by at most 2e-15. All other values
# are equal.
STREAMED = (Distribution,)
# Drawing takes most of the time of such a run.
UNDRAWN = """
import prunelit.tasks
for name, task in vars(prunelit.tasks).items():
    if isinstance(task, type):
        globals()[name] = type(name, (task,), {"pictures": lambda *_: {}, "__module__": __name__})
"""

# The number of processes, and how many batch sizes each task takes.
Run = Callable[[int, int], Path]


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    material: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    forked: Callable[..., Any],
) -> Run:
    """`run(devices, sizes)` returns the folder of the results of all tasks.

    With one size, the tasks take the three of `BATCH_SIZES` in turn.
    """
    rows_file = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", material)

    def task(task_class: type[Task], name: str, batch_size: int, **more: Any) -> dict[str, Any]:
        arguments = {**small_arguments(task_class, rows_file), **more}
        arguments |= {"batch_size": batch_size, "name": name}
        if "cache" in inspect.signature(task_class).parameters:
            arguments["cache"] = f"cache-{name}"  # or else one task would read another's
        return {"class_path": f"undrawn.{task_class.__name__}", "init_args": arguments}

    sampled = {"samples": 2, "temperature": 1.0, "stop": ["a", "e", "i", "("]}
    others = [
        task(Generation, "ends", 1, max_new_tokens=24, **sampled),
        task(MultipleChoice, "shots", 2, few_shot={"count": 2}, template="{context}"),
    ]

    @cache
    def measure(devices: int, sizes: int) -> Path:
        folder = tmp_path_factory.mktemp(f"ranks{devices}")
        config = make_config(folder)
        config["data"]["tasks"] = others + [
            task(task_class, f"{task_class.__name__}-{batch_size}", batch_size)
            for place, task_class in enumerate(ON_LLAMA)
            for batch_size in (BATCH_SIZES[place % 3 :] + BATCH_SIZES[: place % 3])[:sizes]
        ]
        config["trainer"] |= {"devices": devices, "logger": False}
        config["trainer"] |= {"strategy": "ddp"} if devices > 1 else {}
        (folder / "undrawn.py").write_text(UNDRAWN)
        save_config(folder, config)
        done = forked(folder, "validate", "--config", "config.yaml", ranks=devices)
        assert done.returncode == 0, done.stderr
        assert devices == 1 or f"Starting with {devices} processes" in done.stderr
        return folder / "run"

    return measure


def test_there_is_something_to_share(run: Run) -> None:
    alone = run(1, 1)
    rows = read_results(alone / "results.jsonl")
    assert len({row.task for row in rows}) == len(ON_LLAMA) + 2
    # Batches of one prompt each take different numbers of decoding steps.
    lengths = [item["length"] for item in read_items(alone / "items" / "ends.parquet")]
    assert len(set(lengths)) > 5
    assert 24 in lengths
    assert any(row.value for row in rows if row.model == "difference")


def parts(row: Result) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the cells that must be equal, and the numbers, which may be NaN."""
    fields = {**row.details, **vars(row)}
    del fields["details"]
    numbers = {key: value for key, value in fields.items() if isinstance(value, float)}
    return {key: value for key, value in fields.items() if key not in numbers}, numbers


@pytest.mark.parametrize(
    ("devices", "sizes"),
    [
        (2, 1),
        pytest.param(2, len(BATCH_SIZES), marks=pytest.mark.full),
        pytest.param(3, len(BATCH_SIZES), marks=pytest.mark.full),
    ],
)
def test_results_do_not_depend_on_ranks(devices: int, sizes: int, run: Run) -> None:
    alone, folder = run(1, sizes), run(devices, sizes)
    one, several = (read_results(path / "results.jsonl") for path in (alone, folder))
    assert [parts(row)[0] for row in one] == [parts(row)[0] for row in several]
    summed = {f"{task.__name__}-{batch_size}" for task in STREAMED for batch_size in BATCH_SIZES}
    for row, other in zip(one, several, strict=True):
        relative = 1e-12 if row.task in summed else 0
        numbers = pytest.approx(parts(row)[1], rel=relative, abs=0, nan_ok=True)
        assert parts(other)[1] == numbers, row
    files = sorted(path.name for path in (alone / "items").iterdir())
    assert files == sorted(path.name for path in (folder / "items").iterdir())
    for file in files:
        assert read_items(alone / "items" / file) == read_items(folder / "items" / file), file
