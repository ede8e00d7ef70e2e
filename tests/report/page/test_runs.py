import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunelit import InputError
from prunelit.report.page.runs import check_task, judge, read_run
from prunelit.report.verdicts import Margins


def test_verdicts_follow_from_the_scores_of_items(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    judge([run], Margins())
    assert [verdict.word for verdict in run.verdicts] == ["loses"] * 3
    judge([run], Margins(keep="0.1"))
    assert [verdict.word for verdict in run.verdicts] == ["keeps"] * 3
    judge([run], Margins(margin="find=0.1"))
    assert [verdict.absolute for verdict in run.verdicts] == [False, True, False]
    with pytest.raises(InputError, match="`keep` names 'fnid', which is no task of this run"):
        judge([run], Margins(keep="fnid=0.5"))
    with pytest.raises(InputError, match="has no task 'fnid': similar names are find"):
        check_task(run, "fnid")


def test_the_pruned_model_is_found_from_the_folder_that_the_run_was_started_in(
    make_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "runs" / "a")
    monkeypatch.chdir("/")
    assert read_run(folder).pruning["sparsity"] == 0.5
    (tmp_path / "a").mkdir()
    (folder / "pruned").rename(tmp_path / "a" / "pruned")
    assert read_run(folder).pruning["sparsity"] == 0.5
    shutil.rmtree(tmp_path / "a")
    assert read_run(folder).pruning is None


def test_a_variant_has_the_configuration_of_its_sweep(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "sweep" / "a")
    (folder / "config.yaml").unlink()
    assert read_run(folder).config_path is None
    (folder / "config.yaml").write_text("of: [another")
    (folder.parent / "config.yaml").write_text("variants: {a: {}}")
    assert read_run(folder).config_path == folder.parent / "config.yaml"


def test_a_folder_above_a_run_names_it(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs" / "version_0")
    (folder.parent / "unfinished").mkdir()  # of a later run
    for above in (folder.parent, tmp_path):
        with pytest.raises(InputError, match=f"holds no results.jsonl: give '{folder}'"):
            read_run(above)
    assert read_run(folder / "results.jsonl").folder == folder
    (folder / "results.jsonl").unlink()
    (folder / "unfinished").mkdir()
    with pytest.raises(InputError, match="was stopped before it had results: start its command"):
        read_run(folder)
    with pytest.raises(InputError, match=r"does not exist \(similar: .*version_0"):
        read_run(folder.parent / "version_1")


@pytest.mark.parametrize("name", ["scores.parquet", "items/find.parquet"])
def test_a_damaged_table_is_named(make_run: Any, tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / name
    path.write_bytes(path.read_bytes()[:-20])
    run = read_run(folder)
    with pytest.raises(InputError, match=path.name):
        judge([run], Margins()) if "scores" in name else run.items("find")


@pytest.mark.parametrize("name", ["pruned/pruning.json", "results.jsonl"])
def test_a_damaged_text_is_named(make_run: Any, tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).write_text("{")
    with pytest.raises(InputError, match=name.rpartition("/")[2]):
        read_run(folder)


def test_scores_of_another_run_are_refused(make_run: Any, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run") / "scores.parquet"
    table = pq.read_table(path)
    names = [f"other_{name}" for name in table["task"].to_pylist()]
    pq.write_table(table.set_column(0, "task", [names]), path)
    with pytest.raises(InputError, match="'other_choose' that do not belong to the"):
        judge([read_run(path.parent)], Margins())
    pq.write_table(table.drop_columns("floor"), path)
    with pytest.raises(InputError, match="No scores could be read from"):
        judge([read_run(path.parent)], Margins())


@pytest.mark.parametrize("part", [slice(0, 60), slice(0, 0, 2)])
def test_a_part_of_the_scores_is_refused(make_run: Any, tmp_path: Path, part: slice) -> None:
    path = make_run(tmp_path / "run") / "scores.parquet"
    rows = pq.read_table(path).to_pylist()
    changed = rows[part] or [row | {"dense": 1.0} for row in rows]
    pq.write_table(pa.Table.from_pylist(changed), path)
    with pytest.raises(InputError, match=r"does not belong to the results\.jsonl beside it"):
        judge([read_run(path.parent)], Margins())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gains.json", '{"parameters": {"dense": "x", "pruned": 1}}'),
        ("overlap.json", '{"find": {"items": "1", "n": 2, "first": "x"}}'),
        ("environment.json", "[]"),
    ],
)
def test_a_file_with_other_values_is_named(
    make_run: Any, tmp_path: Path, name: str, text: str
) -> None:
    folder = make_run(tmp_path / "run")
    both = {"dense": 1, "pruned": 1}
    keys = ("parameters", "bytes", "file_bytes", "peak_bytes")
    whole = {**dict.fromkeys(keys, both), "speed": {}, "device": "cpu", "dtype": "float32"}
    given = json.loads(text)
    (folder / name).write_text(json.dumps(whole | given if name == "gains.json" else given))
    with pytest.raises(InputError, match=f"{name}' is not as a run writes it"):
        read_run(folder)


def test_a_configuration_with_other_sections_is_read_without_them(
    make_run: Any, tmp_path: Path
) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "config.yaml").write_text("{model: {source: x}, trainer: hello, pruning: [1]}")
    assert read_run(folder).config == {"model": {"source": "x"}}


def test_results_without_a_use_are_refused(make_run: Any, tmp_path: Path) -> None:
    path = make_run(tmp_path / "run") / "results.jsonl"
    path.write_text(path.read_text().replace('"use"', '"used"'))
    with pytest.raises(InputError, match="'choose' that do not belong to the"):
        judge([read_run(path.parent)], Margins())
