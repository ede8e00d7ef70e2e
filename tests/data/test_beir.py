"""Collections in every supported form, and errors for broken ones."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from prunelit import InputError
from prunelit.data.beir import Collection, load_collection
from prunelit.data.local_files import Table

CORPUS = [
    {"_id": "d1", "title": "Snow", "text": "It is white."},
    {"_id": "d2", "title": "", "text": "Bees make honey."},
    {"_id": "007", "title": "Paris", "text": ""},
    {"_id": "d4", "title": None, "text": "Water is wet."},
]
QUERIES = [
    {"_id": "q1", "text": "What is white?"},
    {"_id": "q2", "text": "What do bees make?"},
    {"_id": "q3", "text": "Nobody judged this."},
    {"_id": "007", "text": "Where?"},
]
QRELS = [("q2", "d2", 2), ("q2", "d1", 0), ("q1", "d1", 1), ("007", "007", 1), ("q1", "gone", 3)]
TABLE = "query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{s}\n" for q, d, s in QRELS)

Write = Callable[..., Path]

# One relevant document of `QRELS` is not in the corpus.
pytestmark = pytest.mark.filterwarnings("ignore:1 of 4 relevant documents in:UserWarning")


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """`write(**{name: content})`: a folder; `.` in a name is `__`, `/` is `___`."""

    def make(**files: str) -> Path:
        given = {
            "corpus__jsonl": lines(CORPUS),
            "queries__jsonl": lines(QUERIES),
            "qrels___test__tsv": TABLE,
            **files,
        }
        folder = tmp_path / "collection"
        for name, content in given.items():
            path = folder / name.replace("___", "/").replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            if content:
                data = content.encode()
                path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return folder

    return make


def load(folder: Path, **options: Any) -> Collection:
    return load_collection(str(folder), split="test", **options)


def check(found: Collection) -> None:
    # Queries in the order of their file; the one that nobody judged is left out.
    assert found.query_ids == ["q1", "q2", "007"]
    assert found.queries == ["What is white?", "What do bees make?", "Where?"]
    assert found.document_ids == ["d1", "d2", "007", "d4"]
    assert found.documents == ["Snow It is white.", "Bees make honey.", "Paris", "Water is wet."]
    assert found.grades == [{0: 1}, {1: 2}, {2: 1}]
    assert found.missing_grades == [[3], [], []]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"qrels___test__tsv": "", "qrels__tsv": TABLE},
        {"qrels___test__tsv": "", "qrels__tsv__gz": TABLE},
        {
            "corpus__jsonl": "",
            "corpus__jsonl__gz": lines(CORPUS),
            "queries__jsonl": "",
            "queries__jsonl__gz": lines(QUERIES),
        },
        {
            "qrels___test__tsv": "",
            "qrels___test__jsonl": lines(
                [{"query-id": q, "corpus-id": d, "score": s} for q, d, s in QRELS]
            ),
        },
        # An empty last line, and the byte order mark of other programs.
        {"qrels___test__tsv": TABLE + "\n  \n"},
        {"qrels___test__tsv": "\ufeff" + TABLE.replace("\n", "\r\n")},
        {"qrels___test__tsv": "", "qrels___test__csv": TABLE.replace("\t", ",")},
        {
            "corpus__jsonl": "",
            "corpus__tsv": "_id\ttitle\ttext\nd1\tSnow\tIt is white.\nd2\t\tBees make honey.\n"
            "007\tParis\t\nd4\t\tWater is wet.\n",
        },
        # The judgements of the asked split win over a table without one.
        {"qrels__tsv": "query-id\tcorpus-id\tscore\nq1\td2\t1\n"},
        # More columns, in another order, and the metadata of BEIR.
        {
            "qrels___test__tsv": "score\tcorpus-id\tx\tquery-id\n"
            + "".join(f"{s}\t{d}\t0\t{q}\n" for q, d, s in QRELS),
            "corpus__jsonl": lines([{**CORPUS[0], "metadata": {}}, *CORPUS[1:]]),
            "queries__jsonl": lines(
                [{**row, "metadata": {row["_id"]: [{"label": "SUPPORT"}]}} for row in QUERIES]
            ),
        },
    ],
    ids=[
        *("plain", "one-table", "one-table-gz", "gz", "jsonl", "empty-line", "byte-order-mark"),
        *("csv", "corpus-tsv", "split-first", "more"),
    ],
)
def test_folders(write: Write, files: dict[str, str]) -> None:
    check(load(write(**files)))


def test_titles_may_be_missing(write: Write) -> None:
    bare = [{"_id": row["_id"], "text": row["text"] or "Paris"} for row in CORPUS]
    found = load(write(corpus__jsonl=lines(bare)))
    assert found.documents == ["It is white.", "Bees make honey.", "Paris", "Water is wet."]


def give_hub(
    monkeypatch: pytest.MonkeyPatch, find: Callable[[str, str | None, str], datasets.Dataset]
) -> None:
    """Let `find` stand for the hub; `tests/hub/` runs its clients."""

    def open_hub_table(path: str, subset: str | None, split: str) -> Table:
        data = find(path, subset, split)
        return Table(data.column_names, lambda wanted: data.select_columns(list(wanted)).to_list())

    monkeypatch.setattr("prunelit.data.hub_rows.open_hub_table", open_hub_table)


@pytest.mark.parametrize("qrels", [None, "BeIR/tiny-qrels"])
def test_the_hub(monkeypatch: pytest.MonkeyPatch, qrels: str | None) -> None:
    judged = {"query-id": [], "corpus-id": [], "score": []}  # type: ignore[var-annotated]
    for row in QRELS:
        for column, value in zip(judged, row, strict=True):
            judged[column].append(float(value) if column == "score" else value)
    known = {
        ("BeIR/tiny", "corpus", "corpus"): datasets.Dataset.from_list(CORPUS),
        ("BeIR/tiny", "queries", "queries"): datasets.Dataset.from_list(QUERIES),
        (qrels or "BeIR/tiny", None if qrels else "default", "test"): datasets.Dataset.from_dict(
            judged
        ),
    }
    give_hub(monkeypatch, lambda path, subset, split: known[path, subset, split])
    check(load_collection("BeIR/tiny", split="test", qrels=qrels))


def test_numbers_as_ids_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {
        "corpus": datasets.Dataset.from_list(
            [{"_id": "3", "text": "a"}, {"_id": "4", "text": "b"}]
        ),
        "queries": datasets.Dataset.from_list([{"_id": "1", "text": "c"}]),
        "default": datasets.Dataset.from_list([{"query-id": 1, "corpus-id": 4, "score": 1}]),
    }
    give_hub(monkeypatch, lambda path, subset, split: known[subset])
    assert load_collection("org/ids", split="test").grades == [{1: 1}]


def test_ids_with_quotes_and_tabs_are_read_as_a_csv_writer_wrote_them(write: Write) -> None:
    names = ['7" single', '"Heroes"', "a\tb", "a,b", "two\nlines"]
    for ending, delimiter in (("tsv", "\t"), ("csv", ",")):
        text = io.StringIO()
        writer = csv.writer(text, delimiter=delimiter)
        writer.writerow(["query-id", "corpus-id", "score"])
        writer.writerows([name, name, 1] for name in names)
        files = {
            "corpus__jsonl": lines([{"_id": name, "text": "x"} for name in names]),
            "queries__jsonl": lines([{"_id": name, "text": "y"} for name in names]),
            "qrels___test__tsv": "",
            f"qrels___{ending}__{ending}": text.getvalue(),
        }
        found = load_collection(str(write(**files)), split=ending)
        assert found.query_ids == names
        assert found.grades == [{number: 1} for number in range(len(names))]


def test_qrels_elsewhere(write: Write, tmp_path: Path) -> None:
    (tmp_path / "mine.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td4\t1\n")
    found = load(write(), qrels=str(tmp_path / "mine.tsv"))
    assert (found.query_ids, found.grades) == (["q3"], [{3: 1}])


def test_limits(write: Write) -> None:
    found = load(write(), limit=2)
    assert found.query_ids == ["q1", "q2"]
    assert len(found.documents) == 4
    found = load(write(), limit=1, corpus_limit=2)
    # The relevant one and the first other one, in the corpus's own order.
    assert found.document_ids == ["d1", "d2"]
    found = load(write(), corpus_limit=1)
    assert found.document_ids == ["d1", "d2", "007"]
    assert found.grades == [{0: 1}, {1: 2}, {2: 1}]
    for name in ("limit", "corpus_limit"):
        with pytest.raises(InputError, match=f"`{name}` of at least 1 but got 0"):
            load(write(), **{name: 0})


def test_what_the_judgements_name_and_no_file_has_is_told(write: Write) -> None:
    folder = write(qrels___test__tsv=TABLE + "z1\td1\t1\nz2\td9\t1\nq3\td9\t0\n")
    with pytest.warns() as told:
        found = load(folder)
    assert found.query_ids == ["q1", "q2", "007"]
    unknown, absent = (str(warning.message) for warning in told)
    assert unknown.startswith("2 of 5 queries with a relevant document in ")
    assert unknown.endswith("of the collection and are left out; the first is 'z1'.")
    assert absent.startswith("1 of 4 relevant documents in ")
    assert absent.endswith("are not in the corpus and count as not found; the first is 'gone'.")


def test_the_hash_is_that_of_the_content(write: Write) -> None:
    first = load(write()).hash()
    changed = {
        "corpus__jsonl": lines([*CORPUS[:3], {**CORPUS[3], "text": "Water is dry."}]),
        "queries__jsonl": lines([{**QUERIES[0], "text": "?"}, *QUERIES[1:]]),
        "qrels___test__tsv": TABLE.replace("q2\td2\t2", "q2\td2\t1"),
    }
    hashes = {first}
    for name, content in changed.items():
        hashes.add(load(write(**{name: content})).hash())
    assert len(hashes) == 4
    assert load(write()).hash() == first


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"corpus__jsonl": ""}, "Expected a file corpus in .* endings .jsonl, .* but found none"),
        ({"qrels___test__tsv": ""}, "Expected a file qrels/test or qrels in "),
        ({"corpus__parquet": "x"}, "Expected one of .'corpus.jsonl', 'corpus.parquet'. in "),
        ({"corpus__jsonl": lines([{"_id": "d1", "body": "x"}])}, "has no column 'text'"),
        (
            {"corpus__jsonl": lines([*CORPUS, CORPUS[0]])},
            "Row 4 .*id 'd1'. .* another row has the same id",
        ),
        (
            {"queries__jsonl": lines([{"_id": "q1", "text": 3}])},
            "'q1'.* `text` must be a string but is 3",
        ),
        (
            {"corpus__jsonl": lines([{"_id": "d1", "title": 3, "text": "x"}])},
            "Row 0 .counted from 0, id 'd1'. of .* `title` must be a string but is 3",
        ),
        (
            {"qrels___test__tsv": "q1\td1\t1\n"},
            r"test.tsv' has no column .*'query-id'.*\. Its columns are 'q1', 'd1'",
        ),
        (
            {"qrels___test__tsv": TABLE + "q1\td1\n"},
            "test.tsv': expected 3 cells .*, separated by '\\\\t', but line 7 has 2",
        ),
        (
            {"qrels___test__tsv": TABLE + 'q1\t"d1\t1\n'},
            "test.tsv': CSV parse error in line 7: unexpected end of data",
        ),
        (
            {"qrels___test__tsv": TABLE + "q1\td1\t2\n"},
            "Row 5 .*'q1' and the document 'd1' the score 2 but an earlier row gives them 1",
        ),
        (
            {"corpus__jsonl": lines([{"_id": None, "text": "x"}])},
            "Row 0 .*a text or a whole number as `_id` but got None",
        ),
        ({"qrels___test__tsv": TABLE + "q1\td2\t0.5\n"}, "Row 5 .*a whole number .* '0.5'"),
        ({"qrels___test__tsv": TABLE + "q1\td2\tyes\n"}, "Row 5 .*a whole number .* 'yes'"),
        (
            {"qrels___test__tsv": TABLE.replace("q", "x")},
            r"test.tsv' has no column 'query-id' .similar: 'xuery-id'.\. Its columns are 'xu",
        ),
        (
            {"qrels___test__tsv": "query-id\tcorpus-id\tscore\nz\td1\t1\n"},
            "No query of .* Are the qrels of another collection",
        ),
        (
            {"qrels___test__tsv": "query-id\tcorpus-id\tscore\nq1\tz\t1\n"},
            "No query of .* Are the qrels of another collection",
        ),
    ],
)
def test_what_is_wrong_is_said(write: Write, files: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(write(**files))


def test_a_file_or_nothing_is_no_collection(write: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Expected a folder with corpus"):
        load(write() / "corpus.jsonl")
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "nowhere")


def test_cranfield(shared: Path) -> None:
    found = load(shared / "data" / "retrieval" / "cranfield")
    assert (len(found.queries), len(found.documents)) == (225, 1400)
    # 1,837 judgements, 225 of them of grade 0.
    assert sum(map(len, found.grades)) + sum(map(len, found.missing_grades)) == 1612
    assert found.missing_grades == [[]] * 225
    assert {grade for grades in found.grades for grade in grades.values()} == {1, 3}
