"""`results.jsonl`, written and read back."""

import json
import math
import stat
from pathlib import Path

import pytest

from prunelit.errors import InputError
from prunelit.report.results import Result, read_results, scalar_name, write_results

ROWS = [
    Result(
        "facts", "acc", "dense", 0.8400000000000001, 0.03, 45, {"path": "東京.jsonl", "seed": 0}
    ),
    Result("facts", "acc", "difference", -0.24, 0.05, 45),
]


def test_rows_are_read_back_to_the_last_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    write_results(ROWS, path)
    assert read_results(path) == ROWS
    assert [file.name for file in path.parent.iterdir()] == ["results.jsonl"]


def test_a_row_is_one_json_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_results(ROWS, path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {
        "task": "facts",
        "metric": "acc",
        "model": "dense",
        "value": 0.8400000000000001,
        "standard_error": 0.03,
        "n": 45,
        "details": {"path": "東京.jsonl", "seed": 0},
        "recipe": None,
        "models": None,
        "pruned": None,
    }
    assert "東京" in lines[0]
    assert len(lines) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_becomes_null_and_nan(tmp_path: Path, value: float) -> None:
    path = tmp_path / "results.jsonl"
    write_results([Result("facts", "acc", "pair", value, value, 1)], path)
    data = json.loads(path.read_text())
    assert data["value"] is None
    assert data["standard_error"] is None
    (row,) = read_results(path)
    assert math.isnan(row.value)
    assert math.isnan(row.standard_error)


def test_a_failed_write_leaves_the_older_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_results(ROWS, path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_results(
            [ROWS[0], Result("facts", "acc", "pruned", 0.5, 0.1, 45, {"odd": object()})], path
        )
    assert read_results(path) == ROWS
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_results(ROWS, path)
    content = path.read_text(encoding="utf-8")
    with path.open(encoding="utf-8") as reader:
        write_results(ROWS[:1], path)
        assert reader.read() == content
    assert read_results(path) == ROWS[:1]


def test_a_line_separator_in_a_text_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    rows = [Result("facts", "acc", "dense", 0.5, 0.1, 4, {"template": "a\u2028b"})]
    write_results(rows, path)
    assert read_results(path) == rows


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{}", "expected a key `task`"),
        ('{"task": "a"', "delimiter"),
        ("[1]", "expected a mapping"),
        (b"\xff{}", "decode"),
        ('{"value": "high"}', "`value`"),
        ('{"n": 0.5}', "`n`"),
        ('{"speed": 3}', "'speed' is unknown"),
        ('{"details": 3}', "`details`"),
        ('{"task": 3}', "`task`"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str | bytes, problem: str) -> None:
    path = tmp_path / "results.jsonl"
    write_results(ROWS[:1], path)
    if isinstance(line, str) and line.startswith('{"') and line.endswith("}"):
        line = json.dumps({**json.loads(path.read_text()), **json.loads(line)})
    path.write_bytes(path.read_bytes() + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(InputError, match=rf"Line 2 of .*results.jsonl' is no result \(.*{problem}"):
        read_results(path)


def test_others_may_read_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    write_results(ROWS, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_folder_names_its_results(tmp_path: Path) -> None:
    write_results(ROWS, tmp_path / "board" / "only" / "results.jsonl")
    with pytest.raises(InputError, match=r"is a folder: give '.*/board/only/results\.jsonl'\."):
        read_results(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is a folder: give a file of another folder"):
        read_results(tmp_path / "empty")
    for name in ("none.jsonl", "x" * 300, "a\0b"):
        with pytest.raises(InputError, match=r"with results of a run but '.*' does not exist"):
            read_results(f"{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("pruned", "val/facts/acc"),
        ("pair", "val/facts/acc"),
        ("dense", "val/facts/acc_dense"),
        ("difference", "val/facts/acc_difference"),
    ],
)
def test_scalar_names(model: str, name: str) -> None:
    assert scalar_name(Result("facts", "acc", model, 0.0, 0.0, 1)) == name


def test_a_number_of_the_details_that_is_none_is_null(tmp_path: Path) -> None:
    details = {"dense": math.nan, "interval": [-math.inf, 0.5], "floor": 0}
    path = tmp_path / "results.jsonl"
    write_results([Result("similarity", "retained", "pair", math.nan, math.nan, 3, details)], path)
    (found,) = read_results(path)
    assert found.details == {"dense": None, "interval": [None, 0.5], "floor": 0}
