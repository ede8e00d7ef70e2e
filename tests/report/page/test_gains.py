"""The gains on the page: sizes, memory and speed."""

import json
from pathlib import Path
from typing import Any

import pytest

from prunelit import InputError
from prunelit.report.page.gains import gain_lines, gain_notes, gain_sentence
from prunelit.report.page.runs import read_run


def speed(dense: float, pruned: float, ratio: float, low: float, high: float) -> dict[str, Any]:
    own = {"dense": dense, "pruned": pruned, "ratio": ratio, "low": low, "high": high}
    return {**own, "rounds": 5}


GAINS = {
    "parameters": {"dense": 100_000_000, "pruned": 90_000_000},
    "bytes": {"dense": 400_000_000, "pruned": 360_000_000},
    "file_bytes": {"dense": None, "pruned": 360_100_000},
    "peak_bytes": {"dense": 430_000_000, "pruned": 430_000_100},
    "speed": {
        "prefill": speed(371, 410, 1.11, 1.08, 1.14),
        "decode": speed(12, 11.9, 0.99, 0.97, 1.02),
    },
    "loads_in": "stock transformers by from_pretrained",
    "device": "cpu, 2 threads",
    "dtype": "float32",
}


def test_each_gain_has_a_line(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "gains.json").write_text(json.dumps(GAINS))
    run = read_run(folder)
    found = {line["label"].partition(",")[0]: line for line in gain_lines(run)}
    assert found["Parameters"]["gain"] == "10.0%"
    assert (found["Weights in memory"]["dense"], found["Weights in memory"]["pruned"]) == (
        *("400", "360"),
    )
    assert "Files of weights and masks" not in found  # the dense model's are not known
    assert found["Memory in use"]["gain"] == "none"
    assert found["Reading a prompt"]["gain"] == "1.11 times (1.08 to 1.14)"
    assert found["Writing"]["gain"] == "none (0.97 to 1.02)"
    assert "The folder loads in stock transformers by from_pretrained." in gain_notes(run)
    assert "on cpu, 2 threads in float32; both models in turns, 5 rounds" in gain_notes(run)[1]
    slower = {**GAINS, "speed": {"prefill": speed(10, 8, 0.8, 0.7, 0.9)}}
    assert gain_sentence(slower) == (
        "Gains: parameters 10.0%; memory none; reading slower, 0.80 times (0.70 to 0.90)."
    )


def test_a_run_without_gains_has_the_sizes_of_its_files(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert [line["gain"] for line in gain_lines(run)] == ["none", "none", ""]
    assert gain_notes(run)[1].startswith("Speed, and memory while the model is used, were not")


@pytest.mark.parametrize("text", ["[1]", "{", '{"bytes": 1}'])
def test_damaged_gains_are_named(make_run: Any, tmp_path: Path, text: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "gains.json").write_text(text)
    with pytest.raises(InputError, match=r"gains.json' is not as a run writes it .*repeat the run"):
        read_run(folder)
