"""Runs whose models are placed otherwise give the same numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

Measured = tuple[list[dict[str, Any]], dict[str, Any]]


@pytest.fixture
def measure(
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    cli: Callable[..., None],
    tmp_path: Path,
) -> Callable[..., Measured]:
    """`measure(placement, *options)` returns the results of `fit`, and the weights it wrote."""

    def run(placement: str, *options: str) -> Measured:
        folder = tmp_path / placement
        folder.mkdir()
        config = save_config(folder, make_config(folder))
        cli("fit", "--config", str(config), "--model.placement", placement, *options)
        (file,) = folder.rglob("results.jsonl")
        results = [json.loads(line) for line in file.read_text().splitlines()]
        (report,) = folder.rglob("pruning.json")
        weights = {}
        for part in report.parent.glob("model*.safetensors"):
            weights |= load_file(part)
        return results, weights

    return run


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.full), "bfloat16"])
def test_a_streamed_run_gives_the_numbers_of_a_resident_one(
    measure: Callable[..., Measured], dtype: str
) -> None:
    results, weights = measure("resident", "--model.dtype", dtype)
    streamed, other = measure("streamed", "--model.dtype", dtype)
    assert [(one["task"], one["metric"], one["model"]) for one in results] == [
        (one["task"], one["metric"], one["model"]) for one in streamed
    ]
    assert [one["value"] for one in results] == [one["value"] for one in streamed]
    assert weights.keys() == other.keys()
    assert all(weights[name].equal(other[name]) for name in weights)


def test_training_of_streamed_weights_is_refused(
    measure: Callable[..., Measured], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        measure("streamed", "--trainer.max_epochs", "1")
    assert "`model.placement` 'streamed'" in capsys.readouterr().err
