"""A record belongs to the results beside it."""

import json
from pathlib import Path

import pytest

from prunelit.report.page.record_file import digest_results, is_recorded, read_digested


@pytest.fixture
def record(tmp_path: Path) -> Path:
    (tmp_path / "results.jsonl").write_text("{}\n")
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"key": "key", "results": digest_results(tmp_path)}))
    return path


def test_a_record_has_a_key(record: Path) -> None:
    assert is_recorded(record)
    assert is_recorded(record, "key")
    assert not is_recorded(record, "other")
    assert read_digested(record, "key") == json.loads(record.read_text())


@pytest.mark.parametrize("name", ["results.jsonl", "scores.parquet"])
def test_other_results_or_scores_have_no_record(record: Path, name: str) -> None:
    record.with_name(name).write_text("other")
    assert read_digested(record, None) is None
    assert not is_recorded(record)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null"])
def test_a_damaged_record_is_none(record: Path, text: str) -> None:
    record.write_text(text)
    assert not is_recorded(record)
