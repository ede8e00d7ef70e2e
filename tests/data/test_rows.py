import datetime
import gzip
import json
from pathlib import Path

import datasets
import pytest

from prunelit.data.rows import hash_rows, load_rows, load_texts, name_row
from prunelit.errors import InputError

ROWS = [{"text": f"row {i}", "number": i, "words": ["a", "b"]} for i in range(10)]


def write(path: Path, rows: list[dict] = ROWS) -> str:
    """`rows` in the form that the name of `path` asks for."""
    lines = [json.dumps(row) for row in rows]
    if ".parquet" in path.suffixes:
        datasets.Dataset.from_list(rows).to_parquet(path)
        return str(path)
    if ".json" in path.suffixes:
        content = "[" + ",".join(lines) + "]"
    elif ".jsonl" in path.suffixes:
        content = "\n".join(lines) + "\n"
    else:
        content = "\n".join(row["text"] for row in rows) + "\n"
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


@pytest.mark.parametrize(
    "name", ["rows.json", "rows.jsonl", "rows.jsonl.gz", "rows.v2.jsonl", "rows.parquet"]
)
def test_every_local_form_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    columns = ["text", "number", "words"]
    assert load_rows(write(tmp_path / name), columns=columns) == ROWS


@pytest.mark.parametrize("name", ["rows.txt", "rows.utf8", "rows.txt.gz"])
def test_text_is_one_row_a_line(tmp_path: Path, name: str) -> None:
    rows = load_rows(write(tmp_path / name), columns=["text"])
    assert rows == [{"text": row["text"]} for row in ROWS]


def test_only_the_asked_columns_are_kept(tmp_path: Path) -> None:
    rows = load_rows(write(tmp_path / "rows.jsonl"), columns=["number"])
    assert rows == [{"number": i} for i in range(10)]


def test_limit_and_split(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")

    def numbers(**options: object) -> list[int]:
        return [row["number"] for row in load_rows(path, columns=["number"], **options)]

    assert numbers(limit=3) == [0, 1, 2]
    assert numbers(limit=99) == list(range(10))
    assert numbers(split="train[:70%]") == list(range(7))
    assert numbers(split="train[70%:]", limit=2) == [7, 8]
    assert numbers(split="train[:20%]+train[-1:]") == [0, 1, 9]


def test_shipped_rows() -> None:
    rows = load_rows("prunelit:facts.jsonl", columns=["context", "choices", "label"])
    assert len(rows) >= 200
    assert all(0 <= row["label"] < len(row["choices"]) for row in rows)


def test_missing_column_lists_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match=r"has no column 'title'.* columns are .*'number'"):
        load_rows(path, columns=["text", "title"])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows\.jsonl' does not exist"):
        load_rows(str(tmp_path / "rows.jsonl"), columns=["text"])


def test_neither_a_folder_nor_a_data_set_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "collection").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError,
        match=r"^No rows could be read from 'colection': there is no file or folder of this name "
        r"\(similar: 'collection'\), and as a data set on the hub: \S.*\.$",
    ):
        load_rows("colection", columns=["text"])


def test_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "rows.xml").write_text("<a/>")
    with pytest.raises(InputError, match=r"Expected a file ending in \.json, .* got 'rows\.xml'"):
        load_rows(str(tmp_path / "rows.xml"), columns=["text"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.jsonl", b'{"text": "a"}\n{"text": "b\n'),
        ("broken.parquet", b"PAR1 and then nothing"),
        # A fixed time, so that every process names this test the same.
        ("broken.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 500, mtime=0)[:-20]),
    ],
)
def test_broken_file_is_named_with_the_parsers_reason(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"No rows could be read from '.*{name}': \S") as caught:
        load_rows(str(path), columns=["text"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.txt"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=rf"{name}"):
        load_rows(str(tmp_path / name), columns=["text"])


def test_empty_split(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match=r"rows\.jsonl' \(split 'train\[:0\]'\) holds no rows"):
        load_rows(path, columns=["text"], split="train[:0]")


def test_a_limit_of_no_rows_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match="Expected `limit` of at least 1 but got 0"):
        load_rows(path, columns=["text"], limit=0)


def test_unknown_split(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    for split in ("", "[:10%]", "train[", "train[:150%]"):
        with pytest.raises(InputError, match=r"Expected a split of .*rows\.jsonl' such as `train`"):
            load_rows(path, columns=["text"], split=split)


def test_a_local_file_is_one_split_whatever_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")
    every = load_texts(path, column="text", split="train")
    for name in ("test", "validation", "test-clean", "dev.2", " test "):
        assert load_texts(path, column="text", split=name) == every
        assert load_texts(path, column="text", split=f"{name}[40%:60%]") == every[4:6]
    assert load_texts(path, column="text", split="train[:2]+test[8:]") == every[:2] + every[8:]


def test_a_row_is_named_by_its_number_id_and_split() -> None:
    assert name_row("a\nb.csv", 0) == r"row 0 (counted from 0) of 'a\nb.csv'"
    assert (
        name_row("a.csv", 3, split="train[5:]", id=7)
        == "row 3 (counted from 0, id 7) of 'a.csv' (split 'train[5:]')"
    )
    assert len(name_row("a.csv", 3, id="x" * 999)) < 100


def test_hash_depends_on_content_and_order_only(tmp_path: Path) -> None:
    columns = ["text", "number"]
    hashes = {
        hash_rows(load_rows(write(tmp_path / name), columns=columns))
        for name in ("rows.jsonl", "rows.parquet", "rows.json")
    }
    assert len(hashes) == 1
    rows = [{"text": row["text"], "number": row["number"]} for row in ROWS]
    assert hashes == {hash_rows([dict(reversed(row.items())) for row in rows])}
    assert hash_rows(rows) != hash_rows(rows[::-1])
    assert hash_rows(rows) != hash_rows([*rows[:-1], {**rows[-1], "number": 10}])
    assert hash_rows([1, 23]) != hash_rows([12, 3])
    assert hash_rows([datetime.date(2024, 1, 1)]) == hash_rows(["2024-01-01"])


def test_texts_are_one_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "n": 1}\n{"text": "b", "n": 2}\n', encoding="utf-8")
    assert load_texts(str(path), column="text", split="train") == ["a", "b"]
    with pytest.raises(InputError, match=r"Row 0 .counted from 0. of .*: `n` must be a string"):
        load_texts(str(path), column="n", split="train")


def test_a_row_without_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": null}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"Row 1 .counted from 0. of .*: `text` must be a string"):
        load_texts(str(path), column="text", split="train")


def test_no_row_of_a_local_file_is_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert len(load_rows(str(path), columns=["text"], split="train[:50%]+test[50%:]")) == 2
    with pytest.raises(InputError, match=r"reads each row once but 'train\+test' reads some twice"):
        load_rows(str(path), columns=["text"], split="train+test")
