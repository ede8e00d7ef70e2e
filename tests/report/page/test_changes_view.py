"""Items that got worse or better, cut to the size of a page."""

from pathlib import Path
from typing import Any

from prunelit.report.page.changes import find_changes
from prunelit.report.page.changes_view import find_all_changes, view_changes
from prunelit.report.page.runs import read_run


def test_items_are_shown_until_the_bytes_are_used_up(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "my run"))
    changes = find_changes(run, "answers")
    whole, part, none = (view_changes(run, changes, budget) for budget in (10**6, 2000, 0))
    assert (len(whole["worse"]["items"]), len(whole["better"]["items"])) == (18, 2)
    assert 0 < len(part["worse"]["items"]) < 18
    assert none["worse"]["items"] == []
    for view in (whole, part, none):
        assert (view["worse"]["all"], view["better"]["all"]) == (18, 2)
        assert view["worse"]["count"] == "18 of 40 items were right and became wrong"
        assert view["command"] == f"prunelit worse '{run.name}' --task answers"
    assert [item["loss"] for item in whole["worse"]["items"]] == list(range(18))


def test_a_long_text_is_cut(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", text="word " * 2000))
    item = view_changes(run, find_changes(run, "choose"), 10**6)["worse"]["items"][0]
    assert len(item["short"]) < 220
    assert len(item["target"]) < 360
    assert len(item["name"]) < 140


def test_a_damaged_table_is_said_and_the_others_are_shown(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "items" / "find.parquet").write_bytes(b"PAR1")
    (folder / "items" / "choose.parquet").unlink()
    found, unreadable = find_all_changes(read_run(folder))
    assert [one.task for one in found] == ["answers"]
    assert len(unreadable) == 1
    assert "find.parquet" in unreadable[0]
