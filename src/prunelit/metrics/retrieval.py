"""Rank documents for queries in chunks of the corpus, and score the ranked lists."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from prunelit.arguments import checked
from prunelit.errors import InputError, check_whole
from prunelit.metrics.checks import check_numbers
from prunelit.metrics.correlation import rank_correlation

# Scores in memory at a time, float64: 32 MB, and a few times as much during a sort.
_AT_A_TIME = 1 << 22

Chunks = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class RankedLists:
    """The `depth` best documents of each query among the documents so far.

    Of two documents with equal scores, the earlier one is ranked higher.

    Args:
        queries: Q, number of queries.
        depth: length of a list.
    """

    def __init__(self, queries: int, depth: int) -> None:
        self._depth = depth
        self._scores = torch.zeros(queries, 0, dtype=torch.float64)
        self.documents = torch.zeros(queries, 0, dtype=torch.int64)

    def update(self, scores: Tensor, documents: Tensor) -> None:
        """Add documents.

        Args:
            scores: (Q, C) float64, higher is better.
            documents: (C,), their numbers.
        """
        scores = torch.cat([self._scores, scores], 1)
        numbers = torch.cat([self.documents, documents.expand(len(scores), -1)], 1)
        order = scores.argsort(dim=1, descending=True, stable=True)[:, : self._depth]
        self._scores, self.documents = scores.gather(1, order), numbers.gather(1, order)


@checked
def rank_documents(
    queries: Tensor,
    chunks: Chunks,
    *,
    depth: int,
    centre: bool,
    excluded: Sequence[int] | None = None,
) -> Tensor:
    """Rank the documents of a corpus for each query by cosine similarity, the best first.

    Only the queries, their lists and one chunk are in memory. The memory grows with queries times
    `depth`, not with queries times documents.

    Formula:
        ``score(q, d) = cos(q - mean(q), d - mean(d))``; without `centre` both means are 0

    Args:
        queries: (Q, D), embeddings.
        chunks: gives the corpus from its beginning, each chunk with the numbers (C,) and the
            embeddings (C, D) of its documents. With `centre` it is called twice.
        depth: length of a list; lists are shorter if there are fewer documents.
        centre: subtract the mean query from each query and the mean document from each document.
        excluded: for each query the one document that is not listed, or -1.

    Returns:
        (Q, L) int64, document numbers; L is the smaller of `depth` and the number of documents. An
        excluded document is replaced by -1 and stands last.

    Raises:
        InputError: if the shapes do not fit, an embedding is NaN, or there is no document.

    Example:
        >>> import torch
        >>> from prunelit.metrics import rank_documents
        >>> corpus = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> queries = torch.tensor([[1.0, 0.1]])
        >>> chunks = lambda: iter([(torch.arange(3), corpus)])
        >>> rank_documents(queries, chunks, depth=2, centre=False)
        tensor([[0, 2]])
    """
    check_whole("depth", depth, 1)
    if queries.ndim != 2 or (excluded is not None and len(excluded) != len(queries)):
        raise InputError(
            "Expected queries of shape (Q, D), and one excluded document for each, but got "
            f"{tuple(queries.shape)} and {'none' if excluded is None else len(excluded)}."
        )
    check_numbers(queries=queries)
    chunks = _checked_chunks(chunks, queries.shape[1])
    queries = queries.double()
    mean = torch.zeros(queries.shape[1], dtype=torch.float64)
    if centre:
        queries = queries - queries.mean(0)
        total = 0
        for numbers, embeddings in chunks():
            mean += embeddings.double().sum(0)
            total += len(numbers)
        mean /= total
    queries = normalize(queries, dim=1)
    out = torch.full((len(queries),), -1) if excluded is None else torch.tensor(excluded)
    slices = [
        (part, RankedLists(len(part), depth))
        for part in torch.arange(len(queries)).split(max(1, _AT_A_TIME // (2 * depth)))
    ]
    for numbers, embeddings in _merge_chunks(chunks(), depth):
        embeddings = normalize(embeddings.double() - mean, dim=1)
        for part, lists in slices:
            scores = queries[part] @ embeddings.T
            scores[out[part, None] == numbers] = -torch.inf
            lists.update(scores, numbers)
    if not sum(lists.documents.shape[1] for _, lists in slices):
        raise InputError("Expected at least one document in the chunks but got none.")
    ranked = torch.cat([lists.documents for _, lists in slices])
    return ranked.masked_fill(ranked == out[:, None], -1)


@checked
def list_metrics(
    ranked: Sequence[int],
    grades: Mapping[int, int],
    *,
    depth: int,
    recall_at: Sequence[int],
    mrr_at: int = 10,
    missing_grades: Sequence[int] = (),
) -> dict[str, float]:
    """Score one ranked list as trec_eval does; all values are in [0, 1], higher is better.

    The order within the list is that of the caller. trec_eval sorts a list by score, and documents
    with equal scores by id, the last id first.

    Formula:
        ``ndcg@10 = sum_{i <= 10} grade_i / log2(i + 1)``, relative to the best possible list;
        ``recall@k`` = share of the relevant documents among the first k;
        ``mrr@k = 1 / rank`` of the first relevant document, 0 if it is not among the first k;
        ``map@depth`` = mean over the relevant documents of the precision at their ranks, 0 for
        those that are not in the list

    Source:
        trec_eval; Järvelin and Kekäläinen 2002 for nDCG. Computed by torchmetrics.

    Args:
        ranked: document numbers, the best first, at most `depth`, without repetition.
        grades: grade of every relevant document, at least 1 and below 2^63.
        depth: at least 10 and at least the largest of `recall_at`.
        recall_at: every k of `recall@k`.
        mrr_at: k of `mrr@k`.
        missing_grades: grades of relevant documents that are not in the corpus.

    Raises:
        InputError: if an argument is not as above, or no document is relevant.

    Example:
        >>> from prunelit.metrics import list_metrics
        >>> list_metrics([7, 3, 8], grades={3: 1}, depth=10, recall_at=[10])["mrr@10"]
        0.5
    """
    _check_list(ranked, depth=depth, at=[10, mrr_at, *recall_at])
    _check_grades([*grades.values(), *missing_grades])
    # Relevant documents that are not in the list stand after `depth`. They are not found, but they
    # count for the best possible list.
    target = torch.zeros(depth + len(grades) + len(missing_grades), dtype=torch.int64)
    target[: len(ranked)] = torch.tensor([grades.get(document, 0) for document in ranked])
    found = int((target > 0).sum())
    listed = set(ranked)
    rest = [grade for document, grade in grades.items() if document not in listed]
    rest += missing_grades
    target[depth : depth + len(rest)] = torch.tensor(rest, dtype=torch.int64)
    # torchmetrics ignores documents with a score of 0 or less, so the last rank gets score 1.
    scores = torch.arange(len(target), 0, -1, dtype=torch.float32)
    relevant = target > 0
    values = {"ndcg@10": retrieval_normalized_dcg(scores, target, top_k=10)}
    for k in recall_at:
        values[f"recall@{k}"] = retrieval_recall(scores, relevant, top_k=k)
    values[f"mrr@{mrr_at}"] = retrieval_reciprocal_rank(scores, relevant, top_k=mrr_at)
    # torchmetrics divides by the number of relevant documents in the list, trec_eval by all.
    share = found / (found + len(rest))
    values[f"map@{depth}"] = share * retrieval_average_precision(scores, relevant, top_k=depth)
    return {metric: float(value) for metric, value in values.items()}


def collection_metrics(
    lists: Mapping[str, Tensor],
    grades: Sequence[Mapping[int, int]],
    *,
    depth: int,
    recall_at: Sequence[int],
    missing_grades: Sequence[Sequence[int]],
) -> dict[str, Tensor]:
    """Compute `list_metrics` of every query and model, and `list_agreement` of two models.

    Args:
        lists: for each model (Q, L), as `rank_documents` returns them.
        grades: for each query, see `list_metrics`.
        depth: see `list_metrics`.
        recall_at: see `list_metrics`.
        missing_grades: for each query, see `list_metrics`.

    Returns:
        (Q,) float64 for each `<model>/<metric>` and each quantity of both models.
    """
    columns: dict[str, list[float]] = {}
    for index, (own, others) in enumerate(zip(grades, missing_grades, strict=True)):
        rows = {name: [d for d in rows[index].tolist() if d >= 0] for name, rows in lists.items()}
        found: dict[str, float] = {}
        for name, row in rows.items():
            values = list_metrics(row, own, depth=depth, recall_at=recall_at, missing_grades=others)
            found |= {f"{name}/{metric}": value for metric, value in values.items()}
        if len(rows) == 2:
            found |= list_agreement(*rows.values())
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    return {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}


@checked
def chance_ndcg(grades: Sequence[int], found: int, documents: int) -> float:
    """Expected nDCG@10 of a random order.

    Formula:
        ``found / N sum_{i <= 10} 1 / log2(i + 1)``, relative to the best possible list

    Args:
        grades: grade of every relevant document.
        found: sum of the grades of the relevant documents in the corpus.
        documents: N, number of documents in the corpus.

    Raises:
        InputError: if no document is relevant, a grade is below 1, there is no document, or `found`
            is more than the sum of the grades.

    Example:
        >>> from prunelit.metrics import chance_ndcg
        >>> chance_ndcg([1], found=1, documents=100)
        0.0454
    """
    _check_grades(grades)
    check_whole("documents", documents, 1)
    check_whole("found", found, 0, sum(grades))
    discounts = [1 / math.log2(place + 2) for place in range(10)]
    best = sorted(grades, reverse=True)
    ideal = sum(grade * discount for grade, discount in zip(best, discounts, strict=False))
    return found / documents * sum(discounts[:documents]) / ideal


@checked
def list_agreement(one: Sequence[int], other: Sequence[int]) -> dict[str, float]:
    """Compare two ranked lists of one query; 1 means no change for both values.

    Formula:
        ``rank_correlation`` = Spearman's correlation of the ranks of all documents in either list;
        documents that a list does not hold share one rank after its last;
        ``top10_overlap = |first 10 of one intersect first 10 of other| / 10``

    Args:
        one: document numbers, the best first, without repetition.
        other: likewise, of the same length.

    Returns:
        `rank_correlation` in [-1, 1], NaN for one document, and `top10_overlap` in [0, 1]. Lists
        shorter than ten use their own length.

    Raises:
        InputError: if the lists are empty, differ in length, or name a document twice.

    Example:
        >>> from prunelit.metrics import list_agreement
        >>> list_agreement([1, 2, 3, 4], [1, 3, 2, 4])
        {'rank_correlation': 0.8, 'top10_overlap': 1.0}
    """
    if len(one) != len(other) or not one:
        raise InputError(
            f"Expected two lists of one length, at least 1, but got {len(one)} and {len(other)} "
            "documents."
        )
    for row in (one, other):
        _check_list(row, depth=len(row))
    documents = list(dict.fromkeys([*one, *other]))
    places = [{document: place for place, document in enumerate(row)} for row in (one, other)]
    first, second = (
        [place.get(document, len(place)) for document in documents] for place in places
    )
    top = min(10, len(one))
    return {
        "rank_correlation": rank_correlation(np.array(first), np.array(second)),
        "top10_overlap": len(set(one[:top]) & set(other[:top])) / top,
    }


def _check_list(ranked: Sequence[int], *, depth: int, at: Sequence[int] = ()) -> None:
    if len(set(ranked)) < len(ranked):
        raise InputError("Expected a list that names each document once.")
    if min(at, default=1) < 1 or depth < max(len(ranked), *at, 0):
        raise InputError(
            f"Expected at most `depth` documents, and metrics at ranks from 1 to `depth`, but "
            f"`depth` is {depth}, the list has {len(ranked)} and the ranks are {[*at]}."
        )


def _check_grades(grades: Sequence[int]) -> None:
    if not grades or min(grades) < 1 or max(grades) >= 2**63:
        raise InputError(
            "Expected grades of at least one relevant document, from 1 to below 2^63, but got "
            f"{[*grades]!r:.60}."
        )


def _checked_chunks(chunks: Chunks, width: int) -> Chunks:
    """Refuse chunks of another form while they are read."""

    def read() -> Iterator[tuple[Tensor, Tensor]]:
        for numbers, embeddings in chunks():
            if embeddings.shape != (len(numbers), width):
                raise InputError(
                    f"Expected embeddings of shape ({len(numbers)}, {width}) in a chunk but got "
                    f"{tuple(embeddings.shape)}."
                )
            check_numbers(embeddings=embeddings)
            yield numbers, embeddings

    return read


def _merge_chunks(
    chunks: Iterable[tuple[Tensor, Tensor]], least: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Merge chunks until each has at least `least` documents: lists are then sorted less often."""
    held: list[tuple[Tensor, Tensor]] = []
    for chunk in chunks:
        held.append(chunk)
        if sum(len(numbers) for numbers, _ in held) >= least:
            yield torch.cat([n for n, _ in held]), torch.cat([e for _, e in held])
            held = []
    if held:
        yield torch.cat([n for n, _ in held]), torch.cat([e for _, e in held])
