"""Retrieval collections in the form of BEIR: corpus, queries and judgements (qrels)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunelit.data.rows import hash_rows, load_rows
from prunelit.data.sources import is_hub_name, local_path
from prunelit.errors import InputError

_ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
_TABLES = (".tsv", ".tsv.gz", *_ENDINGS)
_JUDGEMENT = ["query-id", "corpus-id", "score"]


@dataclass
class Collection:
    """Queries, documents, and how relevant which document is to which query.

    Args:
        query_ids: of the Q queries that have a relevant document.
        queries: their texts.
        document_ids: of the N documents.
        documents: their texts: title and text, joined by a space.
        grades: for each query the grade, at least 1, of every relevant document, by its number.
        lacking: for each query the grades of relevant documents that are not in the corpus.
    """

    query_ids: list[str]
    queries: list[str]
    document_ids: list[str]
    documents: list[str]
    grades: list[dict[int, int]]
    lacking: list[list[int]]

    def hash(self) -> str:
        """SHA-256 of all of it."""
        queries = zip(self.query_ids, self.queries, strict=True)
        documents = zip(self.document_ids, self.documents, strict=True)
        grades = [sorted(grades.items()) for grades in self.grades]
        return hash_rows([*queries, *documents, *grades, *self.lacking])


def load_collection(
    path: str,
    *,
    split: str,
    qrels: str | None = None,
    limit: int | None = None,
    corpus_limit: int | None = None,
) -> Collection:
    """Read a collection.

    A folder holds `corpus` and `queries` as json, jsonl or parquet with `_id`, `text` and, for
    documents, perhaps `title`; and `qrels/<split>` or `qrels` as tsv with a header, json, jsonl or
    parquet with `query-id`, `corpus-id` and `score`; gzipped or not. A data set on the hub has
    them as the configurations `corpus`, `queries` and `default`, as those of MTEB do.

    As in trec_eval a score of 1 or more is relevant, and a relevant document that the corpus lacks
    counts as one that is never found. Queries without a relevant document are left out.

    Args:
        path: a folder, or a data set on the hub.
        split: of the judgements.
        qrels: where the judgements are, if elsewhere: a file, or a data set on the hub
            (`BeIR/scifact-qrels` beside `BeIR/scifact`).
        limit: keep only the first so many queries.
        corpus_limit: keep only so many documents: those that are relevant to the queries, all of
            them, and then the first others. A smaller collection is an easier one.

    Raises:
        InputError: if something is missing, broken or empty, or judgements and rows do not belong
            together.
    """
    for name, value in (("limit", limit), ("corpus_limit", corpus_limit)):
        if value is not None and value < 1:
            raise InputError(f"Expected `{name}` of at least 1 but got {value}.")
    if is_hub_name(path):
        documents = _texts(path, "corpus", "corpus")
        queries = _texts(path, "queries", "queries")
        source, name = qrels or path, None if qrels else "default"
    else:
        folder = local_path(path)
        if not folder.is_dir():
            raise InputError(
                f"Expected a folder with corpus, queries and qrels, or a data set on the hub, but "
                f"{path!r} is a file."
            )
        documents = _texts(str(_find(folder, ["corpus"], _ENDINGS)))
        queries = _texts(str(_find(folder, ["queries"], _ENDINGS)))
        source = qrels or str(_find(folder, [f"qrels/{split}", "qrels"], _TABLES))
        name = None
    judged = _judgements(source, split, name)
    asked = {query: judged[query] for query in queries if query in judged}
    asked = dict(list(asked.items())[:limit])
    if not asked or not any(document in documents for row in asked.values() for document in row):
        raise InputError(
            f"None of the {len(judged)} queries and their documents that {source!r} holds to be "
            f"relevant is among those of {path!r}: they do not belong together."
        )
    if corpus_limit is not None:
        documents = _fewer(documents, asked, corpus_limit)
    place = {document: number for number, document in enumerate(documents)}
    return Collection(
        list(asked),
        [queries[query] for query in asked],
        list(documents),
        list(documents.values()),
        [{place[d]: grade for d, grade in row.items() if d in place} for row in asked.values()],
        [[grade for d, grade in row.items() if d not in place] for row in asked.values()],
    )


def _find(folder: Path, stems: Sequence[str], endings: Sequence[str]) -> Path:
    for stem in stems:
        found = [path for ending in endings if (path := folder / f"{stem}{ending}").is_file()]
        if len(found) > 1:
            names = [path.name for path in found]
            raise InputError(f"Expected one of {names} in {str(folder)!r} but got all of them.")
        if found:
            return found[0]
    raise InputError(
        f"Expected {' or '.join(stems)} in {str(folder)!r}, a file that ends in "
        f"{', '.join(endings)}, but got none."
    )


def _texts(path: str, name: str | None = None, split: str = "train") -> dict[str, str]:
    """Title and text by id."""
    wanted = ("_id", "title", "text")
    rows = load_rows(
        path,
        columns=lambda there: [column for column in wanted if column != "title" or column in there],
        split=split,
        name=name,
    )
    texts: dict[str, str] = {}
    for number, row in enumerate(rows):
        identifier, title = str(row["_id"]), row.get("title") or ""
        if not isinstance(row["text"], str) or not isinstance(title, str):
            raise InputError(f"Row {number} (id {identifier!r}) of {path!r}: `text` is not a text.")
        if identifier in texts:
            raise InputError(f"Row {number} of {path!r} has the id {identifier!r} of another row.")
        texts[identifier] = f"{title} {row['text']}".strip()
    return texts


def _judgements(path: str, split: str, name: str | None) -> dict[str, dict[str, int]]:
    """For each query the grade of every relevant document, by id."""
    if is_hub_name(path):
        rows = load_rows(path, columns=_JUDGEMENT, split=split, name=name)
    elif any(suffix == ".tsv" for suffix in Path(path).suffixes):
        rows = _table(path)
    else:
        rows = load_rows(path, columns=_JUDGEMENT)
    judged: dict[str, dict[str, int]] = {}
    for number, row in enumerate(rows):
        query, document, score = (row[column] for column in _JUDGEMENT)
        if (grade := _whole(score)) is None:
            raise InputError(
                f"Row {number} of {path!r}: expected a whole number as `score` but got {score!r}."
            )
        if grade > 0:
            judged.setdefault(str(query), {})[str(document)] = grade
    return judged


def _whole(score: Any) -> int | None:
    """A score as it is written or as a data set's type makes it: 1, 1.0 or "1"."""
    try:
        value = float(score)
    except (TypeError, ValueError):
        return None
    return int(value) if value.is_integer() else None


def _table(path: str) -> list[dict[str, Any]]:
    """Rows of a tsv file, every cell as it is written: an id may be 007."""
    lines = [row["text"] for row in load_rows(path, columns=["text"])]
    header = lines[0].strip().split("\t")
    if not set(_JUDGEMENT) <= set(header):
        raise InputError(f"Expected a first line with {_JUDGEMENT} in {path!r} but got {header}.")
    rows = []
    for number, line in enumerate(lines[1:]):
        cells = line.strip().split("\t")
        if len(cells) != len(header):
            raise InputError(
                f"Row {number} of {path!r}: expected {len(header)} cells, parted by tabs, but got "
                f"{len(cells)}."
            )
        rows.append(dict(zip(header, cells, strict=True)))
    return rows


def _fewer(
    documents: dict[str, str], asked: dict[str, dict[str, int]], count: int
) -> dict[str, str]:
    relevant = {document for row in asked.values() for document in row if document in documents}
    others = [document for document in documents if document not in relevant]
    kept = relevant | set(others[: max(0, count - len(relevant))])
    return {document: text for document, text in documents.items() if document in kept}
