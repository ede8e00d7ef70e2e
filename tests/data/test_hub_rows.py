"""Rows of the hub without a hub; `tests/hub` reads them by the real clients."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from prunelit import InputError
from prunelit.data import hub_rows
from prunelit.data.hub_rows import commit_of, open_hub_table, pin

COMMIT = "ab" * 20


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What `datasets` gives for a data set at a commit; nothing is asked."""

    def load(name: str, subset: str | None, revision: str) -> Any:
        found.asked = (name, subset, revision)
        return found

    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "day": ["x", "y"]})
    found = SimpleNamespace(hash=COMMIT, download_and_prepare=lambda: None)
    found.as_dataset = lambda split: rows
    monkeypatch.setattr(hub_rows.datasets, "load_dataset_builder", load)
    monkeypatch.setattr(hub_rows, "resolve_commit", lambda name, kind, revision: COMMIT)
    return found


def test_a_name_is_read_at_one_commit(builder: SimpleNamespace, tmp_path: Path) -> None:
    assert pin("org/name@v1") == f"org/name@{COMMIT}"
    assert commit_of(pin("org/name")) == {"commit": COMMIT}
    path = str(tmp_path / "rows.jsonl")
    assert (pin(path), commit_of(path)) == (path, {})
    table = open_hub_table("org/name", "main", "train")
    assert builder.asked == ("org/name", "main", COMMIT)
    assert table.names == ["text", "day"]
    assert table.take(["text"]) == [{"text": "a"}, {"text": "b"}]


def test_a_copy_of_another_commit_is_not_taken(
    builder: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    builder.hash = "cd" * 20
    builder.dataset_name, builder.config = "name", SimpleNamespace(name="default", version=None)
    builder.config.version = "0.0.0"
    monkeypatch.setattr(hub_rows, "Cache", lambda **_: SimpleNamespace(cache_dir=tmp_path / "no"))
    monkeypatch.setattr(hub_rows, "explain", lambda error, *_: str(error))
    with pytest.raises(InputError, match=f"as a data set on the hub: .*no copy of {COMMIT} is"):
        open_hub_table("org/name", None, "train")
