"""Every task gives the same numbers on one, two and three processes."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunelit.report.items import read_items
from prunelit.report.rows import Row, read_rows

from .small import TASKS, small_arguments, write_rows

pytestmark = pytest.mark.distributed

# Of seven items or more: on three ranks four uneven batches, or a single one and two ranks without.
SIZES = (2, 50)


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    material: Path,
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    console: Callable[..., subprocess.CompletedProcess[str]],
) -> Callable[[int], Path]:
    """`run(processes)` measures every task with every batch size; the folder of its results."""
    rows_file = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", material)

    def run(processes: int) -> Path:
        folder = tmp_path_factory.mktemp(f"ranks_{processes}")
        config = make_config(folder)
        config["data"]["tasks"] = [
            {
                "class_path": f"prunelit.tasks.{task.__name__}",
                "init_args": {
                    **small_arguments(task, rows_file),
                    "batch_size": size,
                    "name": f"{task.__name__}-{size}",
                },
            }
            for task in TASKS
            for size in SIZES
        ]
        save_config(folder, config)
        options = ("--trainer.devices", str(processes), "--trainer.strategy", "ddp")
        done = console(folder, "validate", "--config", "config.yaml", *options * (processes > 1))
        assert done.returncode == 0, done.stderr
        assert (f"Starting with {processes} processes" in done.stderr) == (processes > 1)
        return folder / "run" / "board" / "only"

    return run


@pytest.fixture(scope="module")
def alone(run: Callable[[int], Path]) -> Path:
    return run(1)


@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_give_the_numbers_of_one_process(
    processes: int, run: Callable[[int], Path], alone: Path
) -> None:
    together = run(processes)
    rows, others = (read_rows(folder / "results.jsonl") for folder in (alone, together))
    assert {row.task for row in rows} == {f"{t.__name__}-{size}" for t in TASKS for size in SIZES}

    def named(row: Row) -> tuple[str, str, str, int]:
        return row.task, row.metric, row.model, row.n

    assert list(map(named, rows)) == list(map(named, others))
    for row, other in zip(rows, others, strict=True):
        # Values of items are exact; sums over tokens are in float64, in an order of their own.
        assert other.value == pytest.approx(row.value, rel=1e-12, abs=1e-12, nan_ok=True), row
        error = pytest.approx(row.standard_error, rel=1e-9, abs=1e-12, nan_ok=True)
        assert other.standard_error == error, row

    files = sorted(path.name for path in (alone / "items").iterdir())
    assert len(files) >= len(SIZES)
    for name in files:
        assert read_items(alone / "items" / name) == read_items(together / "items" / name), name
