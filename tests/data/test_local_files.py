"""Local files are read as they are now, under exactly their name."""

import datetime
import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prunelit import InputError
from prunelit.data import load_rows, load_texts
from prunelit.data.local_files import open_table

ENDINGS = ["jsonl", "json", "csv", "tsv", "txt", "parquet", "jsonl.gz", "txt.gz", "parquet.gz"]


def write(path: Path, texts: list[str]) -> str:
    """Write rows with the column `text` in the form that the name asks for."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": texts}), sink)
        data = sink.getvalue().to_pybytes()
    else:
        lines = [json.dumps({"text": text}) for text in texts] if "json" in kind else texts
        head = ["text"] if kind in ("csv", "tsv") else []
        data = "".join(line + "\n" for line in head + lines).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def texts_of(path: str | Path) -> list[str]:
    return [row["text"] for row in load_rows(str(path), columns=["text"])]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("name", "neighbours"),
    [
        ("q[1]", ["q1"]),
        ("all*", ["all2", "all"]),
        ("what?", ["whats"]),
        ("exp[3]/rows", ["exp3/rows"]),
        ("{a,b}", ["a", "b"]),
        ("**/rows", ["x/rows"]),
        ("ratio=0.5/rows", ["rows"]),
        ("a::b/50%20#c d", ["b/50 #c d"]),
        ("$HOME/line\nbreak ", ["line"]),
        ("e\u0301", ["\u00e9"]),
    ],
)
def test_a_path_is_literal(tmp_path: Path, ending: str, name: str, neighbours: list[str]) -> None:
    for neighbour in neighbours:
        write(tmp_path / f"{neighbour}.{ending}", ["another"])
    assert texts_of(write(tmp_path / f"{name}.{ending}", ["this"])) == ["this"]
    (tmp_path / f"{name}.{ending}").unlink()
    with pytest.raises(InputError, match="does not exist"):
        texts_of(tmp_path / f"{name}.{ending}")


@pytest.mark.parametrize("ending", ENDINGS)
def test_content_decides_not_size_and_time(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    assert texts_of(write(path, ["first", "same"])) == ["first", "same"]
    state = path.stat()
    write(path, ["other", "same"])
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_mtime_ns == state.st_mtime_ns
    assert texts_of(path) == ["other", "same"]


def test_a_link_and_a_file_that_took_the_place_of_another(tmp_path: Path) -> None:
    for name, text in (("a", "first"), ("b", "other")):
        write(tmp_path / f"{name}.jsonl", [text])
        os.utime(tmp_path / f"{name}.jsonl", ns=(1, 1))
    link = tmp_path / "rows.jsonl"
    for name, text in (("a", "first"), ("b", "other"), ("a", "first")):
        link.unlink(missing_ok=True)
        link.symlink_to(f"{name}.jsonl")
        assert texts_of(link) == [text]
    os.replace(tmp_path / "b.jsonl", tmp_path / "a.jsonl")
    assert texts_of(link) == ["other"]


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ["secret"])
    assert texts_of(path) == ["secret"]
    os.chmod(path, 0)
    user = os.geteuid()
    try:
        if user == 0:  # root reads everything
            os.seteuid(65534)
        with pytest.raises(InputError, match=r"rows\.jsonl'.*: Permission denied\."):
            texts_of(path)
    finally:
        os.seteuid(user)


def test_the_name_of_a_folder_is_no_column(tmp_path: Path) -> None:
    path = write(tmp_path / "text=7" / "rows.parquet", ["a"])
    assert texts_of(path) == ["a"]


def test_texts_like_dates_stay_texts(tmp_path: Path) -> None:
    rows = [
        {"id": "2024-01-01", "choices": ["2024-01-01", "2024-01-02 10:00:00"]},
        {"id": "2024-01-03", "choices": ["2024-01-03", "2024-02-02"]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_rows(str(path), columns=["id", "choices"]) == rows


def test_large_files_may_change_their_columns(tmp_path: Path) -> None:
    """`datasets` takes the types of a column from the first 10 MB."""
    path = tmp_path / "rows.jsonl"
    row: dict[str, Any] = {"id": 1, "text": "x" * 5000, "note": None, "more": {"a": 1}}
    last = {"id": "q7b", "text": "last", "note": "n", "more": {"b": [1]}, "new": True}
    path.write_text((json.dumps(row) + "\n") * 2200 + json.dumps(last) + "\n")
    rows = load_rows(str(path), columns=["id", "text"])
    assert (len(rows), rows[0]["id"], rows[-1]) == (2201, 1, {"id": "q7b", "text": "last"})
    assert load_rows(str(path), columns=["new"])[-2:] == [{"new": None}, {"new": True}]
    with pytest.raises(
        InputError, match=r"Row 0 .counted from 0. of .*`note` must be a string but is None"
    ):
        load_texts(str(path), column="note", split="train")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
GOOD = b'{"text": "a"}\n'
POINTER = "it is a pointer of git-lfs, not the file itself: run `git lfs pull` in its folder"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + b'{"text": "b\n', "JSON parse error in line 2: "),
        ("a.jsonl", GOOD + b"\n[1]\n", r"expected an object \{...\} in line 3 but got a list"),
        ("a.jsonl", GOOD + '{"text": "é"}\n'.encode("latin-1"), "line 2 is not UTF-8: .*`iconv"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "line 1 is not UTF-8"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16-le"), "line 1 holds a NUL character"),
        ("a.jsonl", GOOD + b'{"text": "\\ud800"}\n', "line 2: .u names half a character"),
        ("a.jsonl", GOOD + b"[" * 5000 + b"\n", "JSON parse error in line 2"),
        ("a.jsonl", GOOD + b"[" * 500_000 + b"\n", "JSON parse error in line 2"),
        ("a.jsonl", GOOD + b'{"text": ' + b"9" * 5000 + b"}\n", "JSON parse error in line 2"),
        ("a.json", b'[{"text": "a"},\n{"text": }]', "JSON parse error in line 2"),
        ("a.json", b'[{"text": "a"}, 3]', "as item 1 .counted from 0. of the list but got a int"),
        ("a.json", b'{\n"text": ["a"]\n}', "JSON parse error in line 1"),
        ("a.csv", b"text,b\nx\n", "expected 2 cells .*, separated by ',', but line 2 has 1"),
        ("a.csv", b'text,b\n"x\ny,z\n', "CSV parse error in line 3: unexpected end of data"),
        ("a.csv", b"text,text\nx,y\n", "need different names but are .'text', 'text'"),
        ("a.csv", b"text,b\rx,y\r", "line 1: it holds a carriage return without quotes: save it"),
        ("a.jsonl", GOOD + b'{"text": "a", "text": "b"}', "line 2: the key 'text' is given twice"),
        ("a.jsonl", b'{"text": "a", "m": {"k": 1, "k": 1}}', "line 1: the key 'k' is given twice"),
        ("a.jsonl", b'{"text": "a"},\n' + GOOD, "line 1: Extra data"),
        ("a.jsonl", b'{"text": "a",}\n', "line 1: "),
        ("a.jsonl", b'{"text": "a"}{"text": "b"}\n', "line 1: Extra data"),
        ("a.txt", "naïve\n".encode("latin-1"), "line 1 is not UTF-8"),
        (
            "a.jsonl",
            LFS,
            POINTER,
        ),
        (
            "a.parquet",
            LFS,
            POINTER,
        ),
        (
            "a.jsonl.gz",
            LFS,
            POINTER,
        ),
        ("a.jsonl.gz", gzip.compress(GOOD * 999, mtime=0)[:-9], "end-of-stream"),
        ("a.jsonl.gz", gzip.compress(GOOD * 99, mtime=0)[:20] + b"x" * 40, "rror|invalid"),
        ("a.parquet", b"PAR1" + b"\xff" * 60 + b"PAR1", r"\S"),
        ("a.parquet", b"", "it is empty"),
        ("a.csv", b"", "it is empty"),
    ],
)
def test_a_damaged_file_is_one_sentence(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    expected = rf"^No rows could be read from '.*{name}': .*({message})"
    with pytest.raises(InputError, match=expected) as caught:
        texts_of(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("content", [b"\n\n", b" \r\n", b"[]"])
def test_a_file_without_rows(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jsonl' .*holds no rows"):
        texts_of(tmp_path / "a.jsonl")


def test_a_folder_and_a_pipe_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").mkdir()
    with pytest.raises(InputError, match="is a folder: name one of its files"):
        texts_of(tmp_path / "data.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InputError, match="it is not a regular file"):
        texts_of(tmp_path / "pipe.jsonl")


def test_lists_and_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    for content in ('["a", "b"]', '\ufeff[{"text": "a"},\n {"text": "b"}]'):
        path.write_text(content, encoding="utf-8")
        assert texts_of(path) == ["a", "b"]
    lines = '\ufeff{"text": "a"}\r\n\r\n{"text": "b"}\r\n'
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8", newline="")
    assert texts_of(tmp_path / "rows.jsonl") == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("text;b\nx;1,5\n", ["text", "b"]),
        ('"te;xt"|b\nx|1\n', ["te;xt", "b"]),
        ("text\tb\nx\t1\n", ["text", "b"]),
        ("text;a,b\nx,1\n", ["text;a", "b"]),  # a comma counts first
        ('"text;b"\nx;y\n', ["text;b"]),
        ("text\nx;y\n", ["text"]),
    ],
)
def test_the_first_line_tells_what_separates_cells(
    tmp_path: Path, text: str, names: list[str]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    table = open_table(path)
    assert table.names == names
    assert len(table.take(names)) == 1


def test_cells_of_csv_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    long = "x" * 200_000  # the csv module refuses more than 131072 by default
    path.write_text(f'\ufeffid,text\r\n007,"one ""two"", three\nfour"\r\n\r\n2024-01-01,{long}\r\n')
    assert load_rows(str(path), columns=["id", "text"]) == [
        {"id": "007", "text": 'one "two", three\nfour'},
        {"id": "2024-01-01", "text": long},
    ]


def test_lines_of_empty_cells_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text,b\na,1\n\n , \n,\n"b\n\n",\n,2\n,\n', newline="")
    assert texts_of(path) == ["a", "b\n\n", ""]
    (tmp_path / "one.csv").write_text('text\na\n\n""\nb\n')
    assert texts_of(tmp_path / "one.csv") == ["a", "", "b"]


def test_columns_of_parquet_with_one_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), path)
    with pytest.raises(InputError, match=r"its columns need different names but are \['text', 'te"):
        texts_of(path)
    pq.write_table(pa.table({"text.b": ["b"], "text": ["a"]}), path)
    assert texts_of(path) == ["a"]


def test_values_of_parquet_keep_their_type(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    day = datetime.datetime(2024, 1, 1)
    pq.write_table(pa.table({"day": [day], "number": [1], "list": [["a"]]}), path)
    assert load_rows(str(path), columns=["list", "day"]) == [{"list": ["a"], "day": day}]


@pytest.mark.parametrize("copy", [shutil.copy2, os.symlink])
def test_a_copy_has_the_same_rows(tmp_path: Path, copy: Callable[[str, str], Any]) -> None:
    path = write(tmp_path / "rows.jsonl", ["a"])
    copy(path, str(tmp_path / "copy.jsonl"))
    assert texts_of(tmp_path / "copy.jsonl") == ["a"]


def test_a_text_file_is_one_document_or_divided(tmp_path: Path) -> None:
    path = write(tmp_path / "book.txt", ["One long", "sentence.", "", " ", "The next.", "", ""])
    found = {
        rule: load_texts(path, column="text", split="train", documents=rule)
        for rule in ("whole", "lines", "paragraphs")
    }
    assert found["whole"] == ["One long\nsentence.\n\n \nThe next.\n\n"]
    assert found["paragraphs"] == ["One long\nsentence.", "The next."]
    assert found["lines"] == ["One long", "sentence.", "", " ", "The next.", "", ""]
    assert load_texts(path, column="text", split="train[:2]") == ["One long\nsentence."]
    with pytest.raises(InputError, match="Expected `documents` of load_texts as 'whole' or"):
        load_texts(path, column="text", split="train", documents="pages")  # type: ignore[arg-type]
    rows = write(tmp_path / "rows.jsonl", ["a", "b"])
    assert load_texts(rows, column="text", split="train") == ["a", "b"]
