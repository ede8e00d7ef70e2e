"""The script that checks a GPU runs here on a tiny model, and reports what fails."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("gpu")
    for file in BENCHMARKS.glob("*.py"):  # benchmarks import each other by these names
        sys.modules.pop(file.stem, None)


# The command line hides it.
@pytest.mark.filterwarnings("ignore:.*configure_optimizers` returned `None`:UserWarning")
def test_the_dry_run_gives_every_line(gpu: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status = gpu.main(["--device", "cpu"])
    output, errors = capsys.readouterr()
    assert status == 0, output + errors
    _, *lines, last = output.splitlines()
    assert last.startswith("0 lines failed")
    words = {line[6:].partition(": ")[0]: line[:4] for line in lines}
    skipped = [name for name, word in words.items() if word == "skip"]
    assert skipped == [
        "peak memory resident",
        "peak memory streamed",
        "2:4 kernel",
        "time of Wanda",
        "time of SparseGPT",
        "speed of generation",
    ]
    assert [name for name, word in words.items() if word == "pass"] == [
        "masks of Wanda in bfloat16",
        "masks of SparseGPT in bfloat16",
        "Wanda streamed, pruned weights",
        "Wanda streamed, results",
        "SparseGPT streamed, pruned weights",
        "bf16-mixed against float32",
        "bf16-mixed streamed, results",
        "TF32 off",
        "texts of generation",
    ]
    assert len(words) == len(lines) == 15


def test_a_failed_line_and_an_error_do_not_end_the_others(
    gpu: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def inexact(bench: Any) -> Iterator[Any]:
        with monkeypatch.context() as patch:  # as TF32 rounds
            patch.setattr(torch, "randn", lambda *size, **_: torch.ones(size) / 3)
            patch.setattr(gpu, "distance", lambda *_: 3e-4)
            yield from gpu.check_tf32(bench)

    def broken(bench: Any) -> Iterator[Any]:
        raise RuntimeError("no kernel image\nis available")
        yield

    monkeypatch.setattr(gpu, "CHECKS", (inexact, broken, gpu.check_tf32))
    assert gpu.main(["--device", "cpu"]) == 1
    output, errors = capsys.readouterr()
    lines = output.splitlines()[1:]
    assert [line[:4] for line in lines] == ["fail", "fail", "pass", "2 li"]
    assert lines[1] == "fail  broken: RuntimeError: no kernel image"
    assert "Traceback" in errors
