"""The script that compares the ratios of all benchmarks with those of the last release."""

import ast
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    yield importlib.import_module("all")
    sys.modules.pop("all")


class Quick:
    """Gives prepared ratios, one after another, and then an error."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def __call__(self) -> dict[str, float]:
        return {"ratio": self.values.pop(0)}


@pytest.mark.parametrize(
    ("values", "left", "verdict"),
    [
        ((1.09, 9), 1, "as before"),
        ((1.0 / 1.2, 9), 1, "better"),
        ((1.2, 1.05, 9), 1, "as before"),  # worse once alone
        ((1.2, 1.3, 1.09, 9), 1, "as before"),
        ((1.2, 1.3, 1.11), 0, "WORSE"),
    ],
)
def test_a_ratio_fails_that_is_worse_by_a_tenth_three_times(
    script: Any, values: tuple[float, ...], left: int, verdict: str
) -> None:
    quick = Quick(*values)
    (row,) = script.compare("one", quick, {"ratio": 1.0})
    assert (row.verdict, len(quick.values)) == (verdict, left)


def test_ratios_that_are_new_or_gone_and_errors_are_told_apart(script: Any) -> None:
    rows = script.compare("one", Quick(5.0), {"other": 1.0})
    assert {row.name: row.verdict for row in rows} == {"one: other": "GONE", "one: ratio": "new"}
    (row,) = script.compare("one", Quick(), {"ratio": 1.0})
    assert (row.verdict, row.name) == ("ERROR", "one")


def test_every_benchmark_has_a_small_form_or_a_reason(script: Any) -> None:
    small = set()
    for file in BENCHMARKS.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if any(isinstance(one, ast.FunctionDef) and one.name == "quick" for one in tree.body):
            small.add(file.stem)
    every = {file.stem for file in BENCHMARKS.glob("*.py")} - {"all"}
    assert not small & set(script.LEFT_OUT)
    assert small | set(script.LEFT_OUT) == every
    assert set(json.loads(script.STORED.read_text())["ratios"]) == small


def test_the_table_and_the_status(
    script: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(script, "STORED", tmp_path / "ratios.json")
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    (tmp_path / "one.py").touch()

    def run(*values: float, options: tuple[str, ...] = ()) -> tuple[int, str]:
        monkeypatch.setitem(sys.modules, "one", SimpleNamespace(quick=Quick(*values)))
        return script.main(["--quick", *options]), capsys.readouterr().out

    assert run(1.0, 1.3, 1.2, options=("--store",))[0] == 0
    assert json.loads(script.STORED.read_text())["ratios"] == {"one": {"ratio": 1.2}}
    status, output = run(1.25)
    assert status == 0
    assert "0 of 1 ratios fail" in output
    status, output = run(1.4, 1.33, 1.5)
    assert status == 1
    (line,) = [line for line in output.splitlines() if line.startswith("one: ratio")]
    assert line.split() == ["one:", "ratio", "1.200", "1.400,", "1.330,", "1.500", "WORSE"]
    assert run(options=("--store",))[0] == 1  # an error is not stored
    assert json.loads(script.STORED.read_text())["ratios"] == {"one": {"ratio": 1.2}}
