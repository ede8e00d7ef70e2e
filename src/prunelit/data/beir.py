"""Read retrieval collections in BEIR format: corpus, queries and judgements (qrels)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunelit.data.cells import as_whole
from prunelit.data.rows import hash_rows, load_rows, refuse_row
from prunelit.data.sources import is_hub_name, local_path
from prunelit.errors import InputError

_KINDS = (".jsonl", ".json", ".parquet", ".tsv", ".csv")
_ENDINGS = tuple(kind + packed for kind in _KINDS for packed in ("", ".gz"))
_HIGHEST = 10**6  # grade of relevance; that of TREC is at most 4
_JUDGEMENT = ["query-id", "corpus-id", "score"]


@dataclass
class Collection:
    """Queries, documents, and the grades of the documents that are relevant to a query.

    Args:
        query_ids: of the Q queries that have a relevant document.
        queries: their texts.
        document_ids: of the N documents.
        documents: their texts: title and text, joined by a space.
        grades: for each query the grade, at least 1, of every relevant document, by its number.
        missing_grades: for each query the grades of relevant documents that are not in the corpus.
    """

    query_ids: list[str]
    queries: list[str]
    document_ids: list[str]
    documents: list[str]
    grades: list[dict[int, int]]
    missing_grades: list[list[int]]

    def hash(self) -> str:
        """Return the SHA-256 of the whole content."""
        queries = zip(self.query_ids, self.queries, strict=True)
        documents = zip(self.document_ids, self.documents, strict=True)
        grades = [sorted(grades.items()) for grades in self.grades]
        return hash_rows([*queries, *documents, *grades, *self.missing_grades])


def load_collection(
    path: str,
    *,
    split: str,
    qrels: str | None = None,
    limit: int | None = None,
    corpus_limit: int | None = None,
) -> Collection:
    """Read a collection.

    A folder has three files of rows, gzipped or not:

    * `corpus` with the columns `_id`, `text` and optionally `title`;
    * `queries` with the columns `_id` and `text`;
    * `qrels/<split>` or `qrels` with the columns `query-id`, `corpus-id` and `score`.

    Each is a jsonl, json, parquet, tsv or csv file; the first line of a tsv or csv file has the
    names of the columns, and its cells are quoted as CSV writers do.

    A data set on the hub has them as the configurations `corpus`, `queries` and `default`, as those
    of MTEB do.

    As in trec_eval, a document with a score of 1 or more is relevant. A relevant document that is
    not in the corpus counts as not found. Queries without a relevant document are left out. A
    warning gives the numbers of the judged queries and documents that are in no file.

    Args:
        path: folder, or data set on the hub.
        split: of the judgements.
        qrels: file or data set on the hub with the judgements, if they are not in `path`
            (`BeIR/scifact-qrels` for `BeIR/scifact`).
        limit: number of queries; None keeps all.
        corpus_limit: number of documents; None keeps all. The relevant documents are always kept,
            then the first others. A smaller collection is easier.

    Raises:
        InputError: if a file or column is missing or not valid, or if the judgements belong to
            another collection.
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
                f"{path!r} is a file: name its folder."
            )
        documents = _texts(str(_find(folder, ["corpus"], _ENDINGS)))
        queries = _texts(str(_find(folder, ["queries"], _ENDINGS)))
        source = qrels or str(_find(folder, [f"qrels/{split}", "qrels"], _ENDINGS))
        name = None
    judged = _judgements(source, split, name)
    asked = {query: judged[query] for query in queries if query in judged}
    asked = dict(list(asked.items())[:limit])
    if not asked or not any(document in documents for row in asked.values() for document in row):
        raise InputError(
            f"No query of {source!r} and its relevant documents are in {path!r}. Are the qrels of "
            "another collection?"
        )
    _tell_unknown(source, judged, queries, documents)
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


def _tell_unknown(
    source: str,
    judged: dict[str, dict[str, int]],
    queries: dict[str, str],
    documents: dict[str, str],
) -> None:
    """Warn of relevant pairs whose query or document is missing."""
    if unasked := [query for query in judged if query not in queries]:
        _warn(
            f"{len(unasked)} of {len(judged)} queries with a relevant document in {source!r} are "
            f"not among the queries of the collection and are left out; the first is "
            f"{unasked[0]!r}."
        )
    known = {document for query in judged.keys() & queries.keys() for document in judged[query]}
    if absent := sorted(known - documents.keys()):
        _warn(
            f"{len(absent)} of {len(known)} relevant documents in {source!r} are not in the corpus "
            f"and count as not found; the first is {absent[0]!r}."
        )


def _warn(text: str) -> None:
    from lightning.pytorch.utilities import rank_zero_warn  # with libraries that take seconds

    rank_zero_warn(text)


def _find(folder: Path, stems: Sequence[str], endings: Sequence[str]) -> Path:
    for stem in stems:
        found = [path for ending in endings if (path := folder / f"{stem}{ending}").is_file()]
        if len(found) > 1:
            names = [path.name for path in found]
            raise InputError(f"Expected one of {names} in {str(folder)!r} but found all of them.")
        if found:
            return found[0]
    raise InputError(
        f"Expected a file {' or '.join(stems)} in {str(folder)!r} with one of the endings "
        f"{', '.join(endings)} but found none."
    )


def _texts(path: str, name: str | None = None, split: str = "train") -> dict[str, str]:
    """Read texts, title included, by id."""
    wanted = ("_id", "title", "text")
    rows = load_rows(
        path,
        columns=lambda there: [column for column in wanted if column != "title" or column in there],
        split=split,
        name=name,
    )
    texts: dict[str, str] = {}
    for number, row in enumerate(rows):
        identifier, title = _identifier(row, "_id", number, path), row.get("title") or ""
        for column, value in (("text", row["text"]), ("title", title)):
            if not isinstance(value, str):
                problem = f"`{column}` must be a string but is {value!r:.60}"
                raise refuse_row(path, number, problem, id=identifier)
        if identifier in texts:
            problem = "another row has the same id: give each its own"
            raise refuse_row(path, number, problem, id=identifier)
        texts[identifier] = f"{title} {row['text']}".strip()
    return texts


def _judgements(path: str, split: str, name: str | None) -> dict[str, dict[str, int]]:
    """Read for each query id the grades of its relevant documents by id."""
    judged: dict[str, dict[str, int]] = {}
    for number, row in enumerate(load_rows(path, columns=_JUDGEMENT, split=split, name=name)):
        query, document = (_identifier(row, key, number, path) for key in _JUDGEMENT[:2])
        if (grade := as_whole(row["score"])) is None or abs(grade) > _HIGHEST:
            problem = (
                f"expected a whole number of at most {_HIGHEST} as `score` but got {row['score']!r}"
            )
            raise refuse_row(path, number, problem)
        if (first := judged.setdefault(query, {}).setdefault(document, grade)) != grade:
            problem = (
                f"it gives the query {query!r} and the document {document!r} the score {grade} but "
                f"an earlier row gives them {first}: keep one"
            )
            raise refuse_row(path, number, problem)
    relevant = {query: {d: g for d, g in row.items() if g > 0} for query, row in judged.items()}
    return {query: row for query, row in relevant.items() if row}


def _identifier(row: dict[str, Any], column: str, number: int, path: str) -> str:
    """Return an id as text. A date or a fraction may be another id's other form."""
    value = row[column]
    if isinstance(value, bool) or not isinstance(value, str | int):
        problem = f"expected a text or a whole number as `{column}` but got {value!r:.60}"
        raise refuse_row(path, number, problem)
    return str(value)


def _fewer(
    documents: dict[str, str], asked: dict[str, dict[str, int]], count: int
) -> dict[str, str]:
    relevant = {document for row in asked.values() for document in row if document in documents}
    others = [document for document in documents if document not in relevant]
    kept = relevant | set(others[: max(0, count - len(relevant))])
    return {document: text for document, text in documents.items() if document in kept}
