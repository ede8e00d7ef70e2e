"""A sweep on two processes against one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from prunelit.report.results import Result

Config = dict[str, Any]
Save = Callable[[Path, Config], str]
Results = Callable[[Path, str], list[Result]]
Table = Callable[[Path], list[dict[str, str]]]


def numbers(line: dict[str, str]) -> dict[str, float]:
    """Return the numbers of a line; a word becomes the sum of its bytes."""
    return {
        key: float(value) if value[:1].isdigit() else float(sum(value.encode()))
        for key, value in line.items()
    }


@pytest.mark.distributed
def test_two_processes_find_what_one_finds(
    results: Results,
    table: Table,
    save: Save,
    swept: Path,
    tmp_path: Path,
    make_sweep: Callable[[Path], Config],
    forked: Callable[..., Any],
) -> None:
    options = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    path = save(tmp_path, make_sweep(tmp_path))
    done = forked(tmp_path, "sweep", "--config", path, *options, ranks=2)
    assert done.returncode == 0, done.stderr
    assert "Starting with 2 processes" in done.stderr
    assert done.stdout.count("Verdicts: share of the dense model's lead") == 1
    for variant in ("wanda", "attention_2", "block", "attention_1"):
        one, two = (
            load_file(folder / "run" / variant / "pruned" / "model.safetensors")
            for folder in (swept, tmp_path)
        )
        assert one.keys() == two.keys()
        assert all(tensor.equal(two[name]) for name, tensor in one.items())
        pairs = zip(results(swept, variant), results(tmp_path, variant), strict=True)
        for mine, other in pairs:
            assert (mine.task, mine.metric, mine.model, mine.n) == (
                *(other.task, other.metric, other.model, other.n),
            )
            value = pytest.approx(mine.value, rel=1e-6, abs=1e-6, nan_ok=True)
            assert other.value == value, mine
    for name in ("perturbations", "score_by_dropped", "spaces_by_variant", "variants"):
        one, two = (
            table(folder / "run" / "board" / "figures" / f"{name}.csv")
            for folder in (swept, tmp_path)
        )
        assert len(one) == len(two) > 0
        for mine, other in zip(one, two, strict=True):
            assert numbers(other) == pytest.approx(numbers(mine), rel=1e-6, abs=1e-6)
